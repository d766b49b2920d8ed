"""Settings: the order of their sources, and the values that are refused."""

import re
from pathlib import Path

import pytest

from cnnserve.config import ConfigError, ServerConfig, from_sources


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
        from_sources(["--model-repository", str(tmp_path), *arguments], environment)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grpc_prot = 1", "unknown settings: grpc_prot"),
        ("grpc_port = true", "expected INTEGER"),
        ("load_model = [1]", "expected NAME,NAME"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        from_sources(["--config", str(tmp_path / "c.toml")], {})


def test_help_names_each_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        from_sources(["--help"], {})
    options = capsys.readouterr().out.split("\noptions:")[1]
    flags = [" ".join(flag.split()) for flag in options.split("\n  --")[1:]]
    without = [flag for flag in flags if not re.search(r"\(default: [^)]", flag)]
    assert [flag.split()[0] for flag in without] == ["model-repository"]


def test_the_repository_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        ServerConfig(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="--model-repository"):
        from_sources([], {})
