"""Settings: the order of their sources, and the values that are refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.config import spelling
from cnnserve.config.settings import ConfigError, ServerConfig, Setting
from cnnserve.config.sources import doubts, from_sources, gather


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'model_repository = "{tmp_path}"\ngrpc_port = 1\nhttp_port = 2\nmax_message_mib = 3\n')
    environment = {"CNNSERVE_GRPC_PORT": "10", "CNNSERVE_HTTP_PORT": "20", "CNNSERVE_CONFIG": str(file)}
    config = from_sources(["--grpc-port", "100"], environment)
    assert (config.grpc_port, config.http_port, config.max_message_mib, config.drain_grace_s) == (100, 20, 3, 25)


@pytest.mark.parametrize("text", ["true", "1", "True"])
def test_booleans(tmp_path: Path, text: str) -> None:
    arguments = ["--model-repository", str(tmp_path)]
    assert from_sources(arguments, {"CNNSERVE_STRICT_READINESS": text}).strict_readiness
    assert from_sources([*arguments, "--strict-readiness"], {}).strict_readiness
    assert not from_sources(arguments, {}).strict_readiness


def test_names_may_be_repeated_or_have_commas_between_them(tmp_path: Path) -> None:
    arguments = ["--model-repository", str(tmp_path), "--model-control-mode", "explicit"]
    file = tmp_path / "c.toml"
    file.write_text('load_model = ["a", "b"]')
    assert from_sources(arguments, {}).load_model == ()
    assert from_sources([*arguments, "--load-model", "a, b", "--load-model", "c"], {}).load_model == ("a", "b", "c")
    assert from_sources(arguments, {"CNNSERVE_LOAD_MODEL": "a,b"}).load_model == ("a", "b")
    assert from_sources([*arguments, "--config", str(file)], {}).load_model == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--grpc-port", "70000"], {}, "grpc_port is 70000, expected 0 to 65535"),
        (["--grpc-port", "many"], {}, "--grpc-port is 'many', expected INTEGER"),
        ([], {"CNNSERVE_HTTP_PORT": "x"}, "CNNSERVE_HTTP_PORT is 'x'"),
        (["--grpc-port", "8000"], {}, "both 8000"),
        (["--max-message-mib", "4096"], {}, "max_message_mib"),
        (["--max-pending-mib", "63"], {}, "max_pending_mib is 63, expected 64 to"),
        (["--drain-grace-s", "-1"], {}, "drain_grace_s"),
        (["--drain-grace-s", "nan"], {}, "drain_grace_s"),
        (["--poll-interval-s", "0.05"], {}, "poll_interval_s is 0.05, expected 0.1 to"),
        (["--model-control-mode", "auto"], {}, "model_control_mode is 'auto', expected none, poll or explicit"),
        (["--load-model", "m"], {}, "load_model is 'm', which has no effect in model_control_mode none"),
        (
            ["--model-control-mode", "explicit", "--load-model", "a,,b"],
            {},
            r"--load-model is \['a,,b'\], expected NAME",
        ),
        (["--host", ""], {}, "host is empty, expected an address"),
        (["--tokens-file", ""], {}, "--tokens-file is '', expected FILE"),
        (["--model", "digits"], {}, "model is 'digits', expected NAME=PATH"),
        (["--model", "../a=b"], {}, "expected NAME=PATH; a name has letters"),
        (["--model", "a=/no/such/file"], {}, "'/no/such/file' does not exist"),
        (["--model", "a=/,a=/tmp"], {}, "expected each name once"),
        (["--log-level", "loud"], {}, "log_level is 'loud'"),
        (["--shared-memory-prefix", ".a"], {}, "shared_memory_prefix is '.a', expected .* without a leading dot"),
        (["--shared-memory-prefix", "/a"], {}, "shared_memory_prefix is '/a', expected .* without a slash"),
        (["--model-config-name", "../secret"], {}, "model_config_name is '../secret', expected the name of a file in"),
        (["--model-config-name", "a..b"], {}, "model_config_name"),
        ([], {"CNNSERVE_MODEL_CONFIG_NAME": "gpu/large"}, "model_config_name is 'gpu/large'"),
        ([], {"CNNSERVE_MODEL_CONFIG_NAME": "gpu.pbtxt"}, "model_config_name is 'gpu.pbtxt'.* without .pbtxt"),
        ([], {"CNNSERVE_STRICT_READINESS": "perhaps"}, "expected true or false"),
        ([], {"CNNSERVE_CONFIG": "/no/such/file"}, "cannot be read"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, arguments: list[str], environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_sources(arguments, {"CNNSERVE_REPOSITORY": str(tmp_path), **environment})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grpc_prot = 1", "unknown settings: grpc_prot; remove .* did you mean grpc_port?"),
        ('repository = "a"\nmodel_repository = "b"', "c.toml: repository is 'a' and c.toml: model_repository is 'b'"),
        ("grpc_port = true", "expected INTEGER"),
        ("load_model = [1]", "expected NAME,NAME"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        from_sources(["--config", str(tmp_path / "c.toml")], {})


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfgrpc_port = 7")
    arguments = ["--repository", str(tmp_path), "--config", str(tmp_path / "c.toml")]
    assert from_sources(arguments, {}).grpc_port == 7


def test_help_names_each_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        from_sources(["--help"], {})
    options = capsys.readouterr().out.split("\noptions:")[1]
    flags = [" ".join(flag.split()) for flag in options.split("\n  --")[1:]]
    without = [flag for flag in flags if not re.search(r"\(default: [^)]", flag)]
    assert [flag.split()[0] for flag in without] == ["repository"]


def test_the_repository_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        ServerConfig(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="--repository DIR or CNNSERVE_REPOSITORY"):
        from_sources([], {})
    # An empty variable is not the current folder.
    with pytest.raises(ConfigError, match="CNNSERVE_REPOSITORY is '', expected DIR"):
        from_sources([], {"CNNSERVE_REPOSITORY": ""})


@pytest.mark.parametrize("environment", [{}, {"CNNSERVE_REPOSITORY": "x"}, {"CNNSERVE_MODEL_REPOSITORY": "x"}])
def test_the_repository_has_two_names(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "c.toml").write_text('model_repository = "x"')
    for flag in ("--repository", "--model-repository"):
        config = from_sources([flag, str(tmp_path), "--config", str(tmp_path / "c.toml")], environment)
        assert config.repository == tmp_path
    assert from_sources(["--repository", str(tmp_path), "--model-repository", str(tmp_path)], {}).repository == tmp_path


def test_two_different_repositories_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="CNNSERVE_REPOSITORY is 'a' and CNNSERVE_MODEL_REPOSITORY is 'b', but both"):
        from_sources([], {"CNNSERVE_REPOSITORY": "a", "CNNSERVE_MODEL_REPOSITORY": "b"})
    with pytest.raises(SystemExit):
        from_sources(["--repository", "a", "--model-repository", "b"], {})
    assert "--model-repository b differs from a; give one of them (see" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CNNSERVE_GRPC_PRT", "CNNSERVE_GRPC_PORT"),
        ("CNNSERVE_GRPC_PROT", "CNNSERVE_GRPC_PORT"),
        ("CNNSERVE_HTTPPORT", "CNNSERVE_HTTP_PORT"),
        ("CNNSERVE_MODEL_REPOSITOR", "CNNSERVE_MODEL_REPOSITORY"),
        ("CNNSERVE_LOGLEVEL", "CNNSERVE_LOG_LEVEL"),
    ],
)
def test_a_mistaken_variable_stops_the_start(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown environment variable {name}; did you mean {meant}"):
        from_sources(["--repository", str(tmp_path)], {name: "9001"})


SERVICE_LINKS = {
    "CNNSERVE_SERVICE_HOST": "10.0.0.1",
    "CNNSERVE_SERVICE_PORT": "8001",
    "CNNSERVE_SERVICE_PORT_GRPC": "8001",
    "CNNSERVE_PORT": "tcp://10.0.0.1:8001",
    "CNNSERVE_PORT_8001_TCP": "tcp://10.0.0.1:8001",
    "CNNSERVE_PORT_8001_TCP_PROTO": "tcp",
    "CNNSERVE_PORT_8001_TCP_PORT": "8001",
    "CNNSERVE_PORT_8001_TCP_ADDR": "10.0.0.1",
    "CNNSERVE_HTTP_2_PORT": "tcp://10.0.0.1:8001",
}


def test_variables_of_kubernetes_and_of_the_client_pass_and_others_are_told(tmp_path: Path) -> None:
    environment = SERVICE_LINKS | {"CNNSERVE_TOKEN": "x"}
    assert from_sources(["--repository", str(tmp_path)], environment).grpc_port == 8001
    assert doubts({}, environment) == []
    assert doubts({}, environment | {"CNNSERVE_FLAVOUR": "x", "OTHER_GRPC_PRT": "1"}) == [
        "environment variable CNNSERVE_FLAVOUR is unknown and has no effect; remove it"
    ]


def test_a_service_link_in_place_of_a_port_has_no_effect_and_is_told(tmp_path: Path) -> None:
    """A Service named cnnserve-grpc sets the variable of a setting in every pod."""
    file = tmp_path / "c.toml"
    file.write_text("grpc_port = 9001\n")
    environment = {"CNNSERVE_GRPC_PORT": "tcp://10.0.0.1:8001", "CNNSERVE_CONFIG": str(file)}
    assert from_sources(["--repository", str(tmp_path)], environment).grpc_port == 9001
    (told,) = doubts({}, environment)
    assert "CNNSERVE_GRPC_PORT is 'tcp://10.0.0.1:8001', which Kubernetes sets" in told
    assert "Set enableServiceLinks: false" in told


def test_the_defaults_of_an_image_give_way_to_everything_else(tmp_path: Path) -> None:
    defaults, file = tmp_path / "image.toml", tmp_path / "c.toml"
    defaults.write_text(f'repository = "{tmp_path}"\nhost = "0.0.0.0"\ngrpc_port = 1\nhttp_port = 2\n')
    file.write_text("grpc_port = 3\nhttp_port = 4\n")
    environment = {"CNNSERVE_DEFAULTS": str(defaults), "CNNSERVE_CONFIG": str(file), "CNNSERVE_HTTP_PORT": "5"}
    settings = gather({}, environment)
    assert settings["host"] == Setting("0.0.0.0", "image.toml: host")
    assert (settings["repository"].value, settings["grpc_port"].value, settings["http_port"].value) == (tmp_path, 3, 5)
    assert doubts({}, {"CNNSERVE_DEFAULTS": str(defaults), "CNNSERVE_HTTP_PORT": "5"}) == []


def test_single_models_and_a_repository_exclude_each_other(tmp_path: Path) -> None:
    model = f"tiny={tmp_path}"
    with pytest.raises(ConfigError, match="--model and --repository exclude each other"):
        from_sources(["--repository", str(tmp_path), "--model", model], {})
    repository = {"CNNSERVE_REPOSITORY": str(tmp_path)}
    assert list(from_sources(["--model", model], repository).models) == ["tiny"]
    # As in the image, whose environment names a repository.
    assert doubts({"model": [model]}, repository) == []
    assert doubts({}, repository | {"CNNSERVE_MODEL": model}) == [
        "CNNSERVE_REPOSITORY has no effect, because CNNSERVE_MODEL names single models; remove one of the two"
    ]
    assert doubts({"repository": str(tmp_path)}, {"CNNSERVE_MODEL": model}) == [
        "--repository has no effect, because CNNSERVE_MODEL names single models; remove one of the two"
    ]


def test_a_key_that_loses_to_a_variable_is_told(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("grpc_port = 1\nhttp_port = 2\ncpu_threads = 3\n")
    environment = {"CNNSERVE_CONFIG": str(file), "CNNSERVE_GRPC_PORT": "10", "CNNSERVE_HTTP_PORT": "2"}
    assert doubts({}, environment) == [
        "c.toml: grpc_port has no effect, because CNNSERVE_GRPC_PORT is '10'; remove one of the two"
    ]
    # A flag is given on purpose.
    assert doubts({"grpc_port": "11"}, environment) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grpc-prt", "1"], "unknown flag --grpc-prt; did you mean --grpc-port?"),
        (["--grpc-prt=1"], "unknown flag --grpc-prt; did you mean --grpc-port?"),
        (["--model-repo", "x"], "unknown flag --model-repo; did you mean --"),
        (["--xyzzy"], "unknown flag --xyzzy (see"),
        (["models"], "unexpected argument 'models'"),
        (["--grpc-port"], "argument --grpc-port: expected one argument"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        from_sources(arguments, {})
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cnnserve serve: error: {said}")
    assert error.endswith("(see cnnserve serve --help)\n")
    assert error.count("\n") == 1


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_distance_counts_changes(one: str, other: str) -> None:
    found = spelling.distance(one, other)
    assert found == spelling.distance(other, one)
    assert (found == 0) == (one == other)
    assert abs(len(one) - len(other)) <= found <= max(len(one), len(other))
    assert spelling.distance(one, f"{one}x") == 1


def test_trusted_keys_may_be_missing(tmp_path: Path) -> None:
    arguments = ["--model-repository", str(tmp_path)]
    assert from_sources(arguments, {}).trusted_keys is None
    assert from_sources(arguments, {"CNNSERVE_TRUSTED_KEYS": str(tmp_path)}).trusted_keys == tmp_path
    assert from_sources([*arguments, "--trusted-keys", "keys"], {}).trusted_keys == Path("keys")
