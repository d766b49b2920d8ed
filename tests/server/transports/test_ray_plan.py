"""The arguments of an application on Ray Serve: what they make, and what is refused by name."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cnnserve.config.settings import ConfigError
from cnnserve.transports.ray_plan import read


def test_every_model_of_the_repository_becomes_a_deployment(tiny_repository: Path) -> None:
    plan = read({"repository": str(tiny_repository)})
    assert set(plan.deployments) >= {"tiny", "plain"}
    deployment = plan.deployments["tiny"]
    config = plan.config(deployment)
    assert config.model == (f"tiny={tiny_repository / 'tiny'}",)
    assert (config.device, config.cpu_threads, config.model_control_mode) == ("cpu", 1, "none")


def test_options_reach_the_settings_of_the_replica(tiny_repository: Path) -> None:
    options = {"version": 1, "cpus": 2.5, "gpus": 0.25, "autoscaling": {"min_replicas": 1, "max_replicas": 4}}
    plan = read(
        {"repository": str(tiny_repository), "models": {"tiny": options}, "settings": {"require_manifest": True}}
    )
    config = plan.config(plan.deployments["tiny"])
    assert config.model == (f"tiny={tiny_repository / 'tiny' / '1'}",)
    assert (config.device, config.cpu_threads, config.require_manifest) == ("cuda", 2, True)


def test_models_that_share_replicas_are_loaded_when_they_are_asked_for(tiny_repository: Path) -> None:
    plan = read({"repository": str(tiny_repository), "shared": {"models": ["tiny", "plain"], "loaded": 1}})
    assert list(plan.deployments) == ["shared"]
    assert plan.deployments["shared"].shares
    assert plan.config(plan.deployments["shared"]).model_control_mode == "explicit"


def test_settings_have_the_types_of_a_config_file(tiny_repository: Path) -> None:
    settings = {"max_message_mib": "8", "trusted_proxy": ["10.0.0.0/8"], "tokens_file": "/tokens"}
    plan = read({"repository": str(tiny_repository), "models": {"tiny": {}}, "settings": settings})
    config = plan.config(plan.deployments["tiny"])
    assert (config.max_message_mib, config.trusted_proxy) == (8, ("10.0.0.0/8",))
    assert config.tokens_file == Path("/tokens")
    assert plan.guarded


def test_a_model_may_have_the_name_of_a_deployment_of_ours(tiny_repository: Path, tmp_path: Path) -> None:
    for name in ("shared", "tiny", "plain"):
        shutil.copytree(tiny_repository / "tiny", tmp_path / name)
    plan = read({"repository": str(tmp_path), "models": {"shared": {}}, "shared": {"models": ["tiny", "plain"]}})
    assert [deployment.models for deployment in plan.deployments.values()] == [("shared",), ("tiny", "plain")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"repository": "models"}, "repository is 'models', expected the absolute path"),
        ({}, "repository is None"),
        ({"repostory": "/x"}, "has 'repostory', which is unknown; did you mean repository"),
        ({"models": {"tinny": {}}}, r"model 'tinny' is not in the model repository .*; did you mean tiny\?"),
        ({"models": {}}, "models is empty"),
        ({"models": ["tiny"]}, "models is .*, expected names with values"),
        ({"models": {"tiny": {"gpu": 1}}}, r"model tiny has 'gpu', which is unknown; did you mean gpus\?"),
        ({"models": {"tiny": {"cpus": "2"}}}, "tiny.cpus is '2', expected a number"),
        ({"models": {"tiny": {"replicas": 0}}}, "tiny.replicas is 0, expected a number of at least 1"),
        ({"models": {"tiny": {"version": 7}}}, "model tiny has no folder .*/tiny/7 on this node"),
        ({"shared": {"models": ["tiny"]}}, "expected the names of two models or more"),
        ({"shared": {"models": ["tiny", "plain"], "version": 1}}, "several models share it"),
        ({"models": {"tiny": {}}, "shared": {"models": ["tiny", "plain"]}}, "model tiny is in two deployments"),
        (
            {"settings": {"max_mesage_mib": 1}},
            "settings has 'max_mesage_mib', which is unknown; did you mean max_message",
        ),
        # Whoever sets it would believe that there is TLS.
        ({"settings": {"tls_certificate": "/x"}}, "settings has 'tls_certificate', which has no effect in a replica"),
        ({"settings": {"max_message_mib": 0}}, "max_message_mib"),
        ({"settings": {"max_message_mib": "many"}}, "settings.max_message_mib is 'many', expected INTEGER"),
        (
            {"settings": {"require_manifest": "perhaps"}},
            "settings.require_manifest is 'perhaps', expected true or false",
        ),
        ({"stream_s": 0}, "stream_s is 0"),
    ],
)
def test_what_is_wrong_is_named(tiny_repository: Path, arguments: dict[str, Any], said: str) -> None:
    if arguments and "repository" not in arguments and "repostory" not in arguments:
        arguments = {"repository": str(tiny_repository)} | arguments
    with pytest.raises(ConfigError, match=said):
        read(arguments)


def test_a_node_without_the_repository_says_so(tiny_repository: Path, tmp_path: Path) -> None:
    plan = read({"repository": str(tmp_path / "elsewhere"), "models": {"tiny": {}}})
    with pytest.raises(ConfigError, match=r"this node has no folder .*/elsewhere; mount the model repository"):
        plan.config(plan.deployments["tiny"])
