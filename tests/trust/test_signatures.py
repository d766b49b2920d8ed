"""Kind: everything was made anew. Only a signature finds it: files that no trusted key has signed are not used."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed, PermissionDenied
from cnnserve.registry.control import ModelControl
from cnnserve.registry.lifecycle import State, VersionLabels
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.poller import Poller
from cnnserve.registry.registry import Registry
from cnnserve.registry.version_labels import read_labels
from cnnserve.repository import folders
from cnnserve.repository.signature import Trust
from cnnserve.repository.signed_tree import SignedTree
from cnnserve.trust import keys
from cnnserve.trust.verify import verify
from cnnserve_client import Client, FailedPreconditionError
from cnnserve_export.signing import Signer, sign
from signing import Authority, model_signing, new_key, public_key
from spoiling import lenet5, refusal
from spoilings import ROWS, Row, outcome, prepare
from support import as_schema_1, open_files, open_version, picture, rewrite_manifest, serving, write_version

WARMUP = (
    'model_warmup { name: "w" batch_size: 1 inputs { key: "image" value { data_type: TYPE_UINT8 dims: [ 8, 8, 1 ] '
    'input_data_file: "rows" } } }'
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "key.pem")


@pytest.fixture
def signer(key: Path) -> Signer:
    return Signer(key)


@pytest.fixture
def trust(key: Path) -> Trust:
    return keys.read(public_key(key))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def tiny(root: Path, signer: Signer) -> Path:
    """A signed model with a config, further configs, labels of versions and warm-up data."""
    write_version(root / "tiny" / "1")
    (root / "tiny" / "config.pbtxt").write_text("max_batch_size: 8\n" + WARMUP)
    (root / "tiny" / "configs").mkdir()
    (root / "tiny" / "configs" / "small.pbtxt").write_text("max_batch_size: 2")
    (root / "tiny" / "warmup").mkdir()
    (root / "tiny" / "warmup" / "rows").write_bytes(bytes(64))
    (root / "tiny" / "version_labels.json").write_text('{"stable": 1}')
    for folder in (root / "tiny" / "1", root / "tiny"):
        sign(folder, signer)
    return root / "tiny"


@pytest.fixture
async def registry(root: Path, trust: Trust) -> AsyncIterator[Registry]:
    with ThreadPoolExecutor(1) as decoders:
        opener = VersionOpener(open_files, decoders, require_manifest=True)
        registry = Registry(root, opener, "small", trust)
        yield registry
        await registry.close()


async def test_a_signed_version_is_served(tiny: Path, registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await registry.load_all()
    model = registry.get("tiny", "stable")
    assert model.info.self_test is not None
    assert model.info.settings.max_batch_size == 2
    assert "model tiny version 1 is signed by key.pub" in caplog.text


def test_bundles_of_the_standard_tool_count(root: Path, key: Path, trust: Trust) -> None:
    version = lenet5(root)
    for folder, ignored in ((version, []), (root / "lenet5", ["--ignore-paths", version])):
        own = ["--private_key", key, "--signature", folder / "model.sig"]
        model_signing("sign", "key", folder, *ignored, *own)
    assert refusal(version, trust) == ""


def test_certificates_count_like_keys(root: Path, tmp_path: Path) -> None:
    version, authority = lenet5(root), Authority(tmp_path)
    for folder in (version, version.parent):
        sign(folder, Signer(*authority.issue("release")))
    assert refusal(version, keys.read(authority.file)) == ""


def grow(name: str) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        path = model / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(path.read_bytes() + b" " if path.exists() else b"{}")

    return change


def gone(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).unlink()


def again(name: str) -> Callable[[Path], object]:
    """A file that cannot be seen to be another one without its signature: the manifest follows it."""

    def change(model: Path) -> None:
        grow(name)(model)
        rewrite_manifest(model / "1")

    return change


def another_version(model: Path) -> None:
    """Version 2 with the signature of version 1."""
    shutil.copytree(model / "1", model / "2")
    rewrite_manifest(model / "2")


def turned(path: str) -> Callable[[Path], object]:
    """Returns a change of a file's bytes, but not of its size."""
    return lambda model: (model / path).write_bytes((model / path).read_bytes()[::-1])


ALTERED = r"file {} is not the one that was signed: SHA-256 [0-9a-f]{{12}}…, model\.sig says [0-9a-f]{{12}}…; put the"
MISSING = r"model\.sig names the file {}, which is missing: it was removed after signing, or the signature belongs to"
ADDED = r"model\.sig does not cover {}: it was added after signing, or the signature belongs to another folder; remove"

SAID = (
    "is not the one that was signed|does not cover|names the file|has no model.sig|leads out of the model's folder|"
    "cannot be read|is not a file but|is missing from the version folder|is that of model|is empty"
)

SPOILED: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "no signature of the version",
        gone("1/model.sig"),
        r"version 1 has no model\.sig, which --trusted-keys demands; sign",
    ),
    (
        "no signature beside it",
        gone("model.sig"),
        r"the model's folder has no model\.sig, which --trusted-keys demands",
    ),
    (
        "half a signature",
        lambda m: (m / "1/model.sig").write_bytes((m / "1/model.sig").read_bytes()[:999]),
        "is damaged",
    ),
    ("manifest", again("1/labels.txt"), ALTERED.format(r"manifest\.json")),
    ("labels", grow("1/labels.txt"), ALTERED.format(r"labels\.txt")),
    (
        "longer model",
        grow("1/model.onnx"),
        r"file model\.onnx is not the one that was signed: it has \d+ bytes, the signed manifest says \d+; put the",
    ),
    ("model", turned("1/model.onnx"), ALTERED.format(r"model\.onnx")),
    ("golden image", grow("1/golden.png"), ALTERED.format(r"golden\.png")),
    ("golden probabilities", grow("1/golden.bin"), ALTERED.format(r"golden\.bin")),
    ("a file more", grow("1/weights.bin"), ADDED.format(r"weights\.bin")),
    ("a file less", gone("1/golden.png"), MISSING.format(r"golden\.png")),
    ("no manifest", gone("1/manifest.json"), MISSING.format(r"manifest\.json")),
    ("config", grow("config.pbtxt"), ALTERED.format(r"config\.pbtxt")),
    ("no config", gone("config.pbtxt"), MISSING.format(r"config\.pbtxt")),
    ("warm-up data", grow("warmup/rows"), ALTERED.format(r"warmup/rows")),
    ("no warm-up data", gone("warmup/rows"), MISSING.format(r"warmup/rows")),
    ("labels of versions removed", gone("version_labels.json"), MISSING.format(r"version_labels\.json")),
    ("the signature of another folder", lambda m: shutil.copy(m / "model.sig", m / "1/model.sig"), "another folder"),
    (
        "the signature of the version beside it",
        lambda m: shutil.copy(m / "1/model.sig", m / "model.sig"),
        "another folder",
    ),
]


@pytest.mark.parametrize(("what", "change", "said"), SPOILED, ids=[what for what, *_ in SPOILED])
def test_a_spoiled_signed_version_is_not_served(
    tiny: Path, trust: Trust, what: str, change: Callable[[Path], object], said: str
) -> None:
    assert refusal(tiny / "1", trust) == ""
    change(tiny)
    text = refusal(tiny / "1", trust)
    assert_matches(said, text)
    assert verify([str(tiny), "--trusted-keys", str(tiny.parent.parent / "key.pub")]) == 1


def test_a_config_that_was_added(root: Path, signer: Signer, trust: Trust) -> None:
    write_version(root / "m" / "1")
    for folder in (root / "m" / "1", root / "m"):
        sign(folder, signer)
    assert refusal(root / "m" / "1", trust) == ""
    (root / "m" / "config.pbtxt").write_text("max_batch_size: 4")
    assert_matches(ADDED.format(r"config\.pbtxt"), refusal(root / "m" / "1", trust))


async def test_a_config_by_its_name_that_was_added(root: Path, tiny: Path, registry: Registry, signer: Signer) -> None:
    shutil.rmtree(tiny / "configs")
    sign(tiny, signer)
    (tiny / "configs").mkdir()
    (tiny / "configs" / "small.pbtxt").write_text("max_batch_size: 4")
    await registry.load_all()
    assert_matches(ADDED.format("configs"), registry.entry("tiny").versions[1].reason)


def test_the_signature_of_another_model(root: Path, tiny: Path, signer: Signer, trust: Trust) -> None:
    """Its config may suit, but nobody has signed it for this model."""
    write_version(root / "other" / "1")
    sign(root / "other" / "1", signer)
    for name in ("config.pbtxt", "model.sig", "version_labels.json"):
        shutil.copy(tiny / name, root / "other" / name)
    for name in ("configs", "warmup"):
        shutil.copytree(tiny / name, root / "other" / name)
    said = r"model\.sig in the model's folder is that of 'tiny', but the model is other; sign the folder again"
    assert_matches(said, refusal(root / "other" / "1", trust))


async def test_a_new_version_with_an_old_signature(tiny: Path, registry: Registry) -> None:
    another_version(tiny)
    await registry.load_all()
    entry = registry.entry("tiny").versions[2]
    assert entry.state is State.UNAVAILABLE
    assert_matches(ALTERED.format(r"manifest\.json"), entry.reason)


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_whatever_was_changed_after_signing_is_found(
    root: Path, row: Row, registry: Registry, signer: Signer
) -> None:
    def sign_all(model: Path) -> None:
        for folder in (model / "1", model):
            sign(folder, signer)

    prepare(root, row, sign_all)
    found = await outcome(row, registry)
    assert found.served == row.before_signing, found.reason
    # Nothing but the signature has been asked.
    assert row.before_signing or re.search(SAID, found.reason), found.reason


def test_contract_1(root: Path, trust: Trust, key: Path) -> None:
    version = write_version(root / "m" / "1")
    as_schema_1(version)
    for folder, ignored in ((version, []), (root / "m", ["--ignore-paths", version])):
        model_signing("sign", "key", folder, *ignored, "--private_key", key, "--signature", folder / "model.sig")
    said = r"it has contract 1, but a signature counts for contract 2 only; publish it again with cnnserve upgrade"
    assert_matches(said, refusal(version, trust))


def test_nothing_is_read_from_an_unsigned_version_but_its_signature(
    tiny: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    reading = SignedTree.open

    def note(tree: SignedTree, path: str) -> object:
        read.append(path)
        return reading(tree, path)

    monkeypatch.setattr(SignedTree, "open", note)
    other = keys.read(public_key(new_key(key.with_name("other.pem"))))
    assert "made with another key than the trusted ones (other.pub)" in refusal(tiny / "1", other)
    assert {*read} == {"model.sig"}
    sign(tiny, Signer(key.with_name("other.pem")))
    read.clear()
    assert "made with another key than the trusted ones (other.pub)" in refusal(tiny / "1", other)
    assert [path for path in read if path.startswith("1/")] == ["1/model.sig"]


async def test_labels_of_versions_follow_only_signed_changes(
    tiny: Path, registry: Registry, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    another = write_version(tiny / "2")
    sign(another, signer)
    await registry.load_all()
    assert registry.entry("tiny").labels.versions == {"stable": 1}
    for content in ('{"stable": 2}', None):
        path = tiny / "version_labels.json"
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        await registry.refresh_labels()
        await registry.refresh_labels()
        assert registry.entry("tiny").labels.versions == {"stable": 1}
    assert [record.levelname for record in caplog.records if "is ignored" in record.message] == ["ERROR", "ERROR"]
    path.write_text('{"canary": 2}')
    sign(tiny, signer)
    await registry.refresh_labels()
    assert registry.entry("tiny").labels.versions == {"canary": 2}


async def test_polls_load_a_version_once_it_is_signed(
    tiny: Path, root: Path, registry: Registry, trust: Trust, signer: Signer
) -> None:
    poller = Poller(registry, root, 1.0, "small")
    await registry.load_all()

    async def settled() -> None:
        for _ in range(4):
            await poller.poll()
            await poller.settle()

    write_version(tiny / "2")
    await settled()
    assert [ready.version for ready in registry.entry("tiny").ready] == [1]
    assert "version 2 has no model.sig" in registry.entry("tiny").versions[2].reason
    sign(tiny / "2", signer)
    await settled()
    # The label keeps version 1.
    assert [ready.version for ready in registry.entry("tiny").ready] == [1, 2]
    # What replaces it must be signed, too.
    (tiny / "2" / "labels.txt").write_text("a\nb\nc\n")
    rewrite_manifest(tiny / "2")
    await settled()
    assert [ready.version for ready in registry.entry("tiny").ready] == [1, 2]
    assert_matches(ALTERED.format(r"manifest\.json"), registry.entry("tiny").versions[2].reason)


async def test_a_load_cannot_have_a_config(tiny: Path, root: Path, registry: Registry) -> None:
    control = ModelControl(registry, root, mode="explicit", allowed=True)
    with pytest.raises(PermissionDenied, match=r"--trusted-keys.*write it into the model's config\.pbtxt, sign the"):
        await control.load("tiny", '{"max_batch_size": 1}')
    assert (await control.load("tiny")).ready


@pytest.fixture
def trusted(tmp_path: Path, key: Path) -> Path:
    (tmp_path / "trusted").mkdir()
    shutil.copy(public_key(key), tmp_path / "trusted" / "key.pub")
    return tmp_path / "trusted"


def test_a_server_process(tiny: Path, root: Path, trusted: Path, tmp_path: Path) -> None:
    write_version(root / "unsigned" / "1")
    (root / "plain" / "1").mkdir(parents=True)
    shutil.copy(tiny / "1" / "model.onnx", root / "plain" / "1")
    flags = [
        "--trusted-keys",
        trusted,
        "--model-control-mode",
        "explicit",
        "--load-model",
        "*",
        "--allow-model-control",
    ]
    with serving(tmp_path / "log", root, *flags) as server:
        assert "trusted are key.pub" in server.log
        assert "ready; models: tiny (1)" in server.log
        for model in ("unsigned", "plain"):
            assert f"model {model} version 1 did not load: the model's folder has no model.sig" in server.log
        with Client(server.address) as client:
            (result,) = client.classify([picture("left")], model="tiny", version="stable").results
            assert result.classes[0].label == "left"
        load = f"http://127.0.0.1:{server.http_port}/v2/repository/models/tiny/load"
        body = json.dumps({"parameters": {"config": '{"max_batch_size": 1}'}}).encode()
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(urllib.request.Request(load, body), timeout=60)
        assert "so a load cannot have a config" in json.loads(refused.value.read())["error"]
        refused.value.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "key.pub").unlink(), "the folder of trusted keys .* is empty"),
        (lambda folder: new_key(folder / "mine.pem"), "mine.pem is a private key, which only the signer may have"),
        (shutil.rmtree, "cannot be read: No such file or directory"),
    ],
)
def test_a_server_does_not_start_with_wrong_keys(
    tiny: Path, root: Path, trusted: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(trusted)
    command = ["-m", "cnnserve", "serve", "--model-repository", root, "--grpc-port", "0", "--http-port", "0"]
    ended = subprocess.run(
        [sys.executable, *command, "--trusted-keys", trusted], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert_matches(said, ended.stderr)


def test_nothing_of_it_is_imported_without_trusted_keys(tiny: Path) -> None:
    code = (
        "import sys, cnnserve.app, cnnserve.repository.show, cnnserve.transports.http.server, cnnserve_export.cli\n"
        "from cnnserve.cli import main\n"
        "main(['show', sys.argv[1]])\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('cryptography', 'model_signing', 'OpenSSL')"
        " or name.startswith('cnnserve.trust')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.endswith("\n[]\n")


def test_a_key_is_replaced_without_a_restart(root: Path, tmp_path: Path, key: Path, signer: Signer) -> None:
    trusted, new = tmp_path / "trusted", new_key(tmp_path / "new.pem")
    trusted.mkdir()
    shutil.copy(public_key(key), trusted / "old.pub")
    sign(write_version(root / "tiny" / "1"), signer)
    sign(root / "tiny", signer)
    flags = ["--trusted-keys", trusted, "--model-control-mode", "explicit", "--allow-model-control"]
    with (
        serving(tmp_path / "log", root, *flags, "--load-model", "tiny") as server,
        Client(server.address, retries=0) as client,
    ):
        (trusted / "new.pub").write_text("half")
        server.wait_for("trusted keys changed and cannot be used, so the old ones stay in force: .*new.pub is neither")
        shutil.copy(public_key(new), trusted / "new.pub")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("trusted keys read again")
        sign(write_version(root / "tiny" / "2"), Signer(new))
        client.load_model("tiny")
        assert client.classify(picture("left"), model="tiny").version == "2"
        assert "model tiny version 2 is signed by new.pub" in server.log
        (trusted / "old.pub").unlink()
        server.wait_for("(?s)trusted keys read again.*trusted keys read again")
        assert client.classify(picture("left"), model="tiny", version="2").version == "2"
        sign(write_version(root / "tiny" / "3"), signer)
        with pytest.raises(FailedPreconditionError, match=r"made with another key than the trusted ones \(new\.pub\)"):
            client.load_model("tiny")


def test_verify_says_what_is_signed_by_whom(
    tiny: Path, root: Path, trusted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify([str(root), "--trusted-keys", str(trusted)]) == 0
    assert capsys.readouterr().out == (f"{tiny}: 4 files signed by key.pub\n{tiny / '1'}: 5 files signed by key.pub\n")
    write_version(root / "tiny" / "2")
    assert verify([str(tiny), "--trusted-keys", str(trusted)]) == 1
    out, err = capsys.readouterr()
    assert out.count("signed by key.pub") == 2
    assert err.startswith(
        f"error: {tiny / '2'}: version 2 has no model.sig, which --trusted-keys demands; sign it with"
    )
    assert verify([str(tiny / "1"), "--trusted-keys", str(trusted / "key.pub")]) == 0
    assert capsys.readouterr().out == f"{tiny / '1'}: 5 files signed by key.pub\n"
    assert verify([str(trusted), "--trusted-keys", str(trusted)]) == 1
    assert "holds no versions, expected a version, a model or a model repository" in capsys.readouterr().err


def test_a_version_that_is_mounted_as_a_model(
    tiny: Path, root: Path, trusted: Path, trust: Trust, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are no files beside it, so its own signature is enough; it also covers a config in the folder."""
    mounted = root / "mounted"
    shutil.copytree(tiny / "1", mounted)
    folder = folders.find(root, "mounted", trust=trust)
    assert open_version(folder, 1).info.self_test is not None
    assert verify([str(mounted), "--trusted-keys", str(trusted)]) == 0
    assert capsys.readouterr().out == f"{mounted}: 5 files signed by key.pub\n"
    (mounted / "version_labels.json").write_text('{"stable": 1}')
    sign(mounted, Signer(trusted.parent / "key.pem"))
    assert read_labels(folder, VersionLabels()).versions == {"stable": 1}
    (mounted / "config.pbtxt").write_text("max_batch_size: 4")
    with pytest.raises(ModelLoadFailed, match=ADDED.format(r"config\.pbtxt")):
        open_version(folder, 1)
    (mounted / "config.pbtxt").unlink()
    (mounted / "model.sig").unlink()
    with pytest.raises(ModelLoadFailed, match=r"has no model\.sig, which --trusted-keys demands"):
        open_version(folders.find(root, "mounted", trust=trust), 1)


def test_verify_finds_a_manifest_that_contradicts_the_files(
    tiny: Path, key: Path, trusted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """cnnserve sign signs no such version, but other tools do."""
    raw = json.loads((tiny / "1" / "manifest.json").read_text())
    raw["files"]["labels.txt"]["sha256"] = "0" * 64
    (tiny / "1" / "manifest.json").write_text(json.dumps(raw))
    (tiny / "1" / "model.sig").unlink()
    model_signing("sign", "key", tiny / "1", "--private_key", key, "--signature", tiny / "1" / "model.sig")
    assert verify([str(tiny / "1"), "--trusted-keys", str(trusted)]) == 1
    assert "file labels.txt was altered" in capsys.readouterr().err
    assert "file labels.txt was altered" in refusal(tiny / "1", keys.read(trusted))


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text
