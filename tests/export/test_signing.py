"""`cnnserve sign` and `--sign-key`: what is signed, what OpenSSF's own tool says of it, and what is refused."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnserve.repository import signature
from cnnserve.repository.signature import Signed
from cnnserve.trust import keys
from cnnserve_export import cli
from signing import Authority, model_signing, new_key, public_key
from support import REPOSITORY, as_schema_1, rewrite_manifest, tiny_onnx, write_version


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "key.pem")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the trained LeNet-5."""
    shutil.copytree(REPOSITORY / "lenet5", tmp_path / "models" / "lenet5")
    return tmp_path / "models" / "lenet5"


def signed(folder: Path, key: Path) -> Signed:
    return keys.read(public_key(key)).verify((folder / signature.SIGNATURE_FILE).read_bytes())


def sign(*arguments: str | Path) -> int:
    return cli.sign([*map(str, arguments)])


def test_a_version(model: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sign(model / "1", "--key", key) == 0
    assert capsys.readouterr().out == f"{model / '1' / 'model.sig'}\n"
    found = signed(model / "1", key)
    assert (found.name, found.signer) == ("1", "key.pub")
    assert set(found.files) == {path.name for path in (model / "1").iterdir()} - {"model.sig"}


def test_the_files_beside_the_versions(model: Path, key: Path) -> None:
    for path in ("configs/gpu.pbtxt", "warmup/rows", "version_labels.json", ".hidden"):
        (model / path).parent.mkdir(exist_ok=True)
        (model / path).write_bytes(b"{}")
    # model-signing refuses links. The files of versions do not concern it here.
    (model / "2").mkdir()
    (model / "2" / "link").symlink_to("nothing")
    assert sign(model, "--key", key) == 0
    found = signed(model, key)
    assert found.name == "lenet5"
    assert sorted(found.files) == [
        "config.pbtxt",
        "configs/gpu.pbtxt",
        "labels.txt",
        "version_labels.json",
        "warmup/rows",
    ]


def test_the_standard_tool_accepts_them(model: Path, key: Path) -> None:
    for folder in (model / "1", model):
        assert sign(folder, "--key", key) == 0
        own = ["--public_key", public_key(key), "--signature", folder / "model.sig"]
        assert "Verification succeeded" in model_signing("verify", "key", folder, *own)
    (model / "1" / "labels.txt").write_text("others")
    with pytest.raises(AssertionError, match=r"Hash mismatch for .*labels\.txt"):
        model_signing("verify", "key", model / "1", *own[:2], "--signature", model / "1" / "model.sig")


def test_the_standard_tool_accepts_those_with_a_certificate(model: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    key, certificate = authority.issue("release")
    assert sign(model / "1", "--key", key, "--certificate", certificate) == 0
    own = ["--certificate_chain", authority.file, "--signature", model / "1" / "model.sig"]
    assert "Verification succeeded" in model_signing("verify", "certificate", model / "1", *own)


def test_signing_again_replaces_the_signature(model: Path, key: Path, tmp_path: Path) -> None:
    other = new_key(tmp_path / "other.pem")
    (model / "1" / ".model.sig.123").write_bytes(b"left by a process that was killed")
    assert [sign(model / "1", "--key", each) for each in (key, other)] == [0, 0]
    assert signed(model / "1", other).signer == "other.pub"
    assert ".model.sig.123" not in signed(model / "1", other).files


def test_an_import_is_published_with_its_signature(tmp_path: Path, key: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(tiny_onnx())
    flags = ["--repository", str(tmp_path / "models"), "--resize", "8,8", "--color", "L", "--sign-key", str(key)]
    for version in ("1", "2"):
        assert cli.import_onnx([str(tmp_path / "tiny.onnx"), *flags]) == 0
        found = signed(tmp_path / "models" / "tiny" / version, key)
        assert {"manifest.json", "model.onnx", "golden.bin"} <= set(found.files)
        if version == "1":
            at_first = (tmp_path / "models" / "tiny" / "model.sig").read_bytes()
    assert (signed(tmp_path / "models" / "tiny", key).name, at_first) == (
        "tiny",
        (tmp_path / "models" / "tiny" / "model.sig").read_bytes(),
    )
    assert not list((tmp_path / "models").rglob(".*"))


def test_a_copy_has_a_signature_of_its_own(model: Path, key: Path) -> None:
    assert sign(model / "1", "--key", key) == 0
    assert cli.copy([str(model), str(model.parent / "digits")]) == 0
    assert not list((model.parent / "digits").rglob("model.sig"))
    assert cli.copy([str(model), str(model.parent / "signed"), "--sign-key", str(key)]) == 0
    assert signed(model.parent / "signed", key).name == "signed"
    assert "manifest.json" in signed(model.parent / "signed" / "1", key).files


def test_an_upgrade_has_a_signature(tmp_path: Path, key: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    as_schema_1(tmp_path / "models" / "tiny" / "1")
    assert cli.upgrade([str(tmp_path / "models" / "tiny"), "--sign-key", str(key)]) == 0
    assert "manifest.json" in signed(tmp_path / "models" / "tiny" / "2", key).files


def encrypted(key: Path) -> None:
    command = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", f"{key}.new"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    Path(f"{key}.new").replace(key)


def rsa(key: Path) -> None:
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda key: key.unlink(), r"key\.pem cannot be read: No such file"),
        (
            encrypted,
            r"key\.pem is encrypted; decrypt it for this command only: --key <\(openssl pkey -in /.*/key\.pem\)",
        ),
        (rsa, r"key\.pem cannot be used: .*of the curve P-256, P-384 or P-521 in PEM is needed: openssl genpkey"),
        (lambda key: key.write_text("x"), r"key\.pem cannot be used: .* is needed: openssl genpkey"),
        (lambda key: public_key(key).replace(key), r"key\.pem cannot be used: .* is needed: openssl genpkey"),
    ],
)
def test_keys_that_cannot_sign(
    model: Path, key: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], said: str
) -> None:
    change(key)
    assert sign(model / "1", "--key", key) == 1
    assert_said(capsys, said)
    assert not (model / "1" / "model.sig").exists()


def contract_1(version: Path) -> None:
    as_schema_1(version)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda v: (v / "labels.txt").write_text("x"),
            r"1/labels\.txt is not the file that manifest\.json describes; copy",
        ),
        (lambda v: (v / "model.onnx").unlink(), r"1/model\.onnx is not the file that manifest\.json describes"),
        (lambda v: (v / "manifest.json").unlink(), r"1 is neither the folder of a version nor that of a model; give"),
        (lambda v: (v / "manifest.json").write_text("{}"), r"manifest\.json"),
        (contract_1, r"1 has contract 1, signatures need 2; publish it again with cnnserve upgrade, and sign the new"),
        (lambda v: (v / "link").symlink_to("model.onnx"), r"1 cannot be signed: .*link.*; put files there instead of"),
        (lambda v: shutil.rmtree(v.parent), r"1 is neither the folder"),
    ],
)
def test_folders_that_are_not_signed(
    model: Path, key: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], said: str
) -> None:
    change(model / "1")
    assert sign(model / "1", "--key", key) == 1
    assert_said(capsys, said)
    assert not (model / "1" / "model.sig").exists()


def test_certificates_with_which_nothing_is_signed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path)
    key, expired = authority.issue("old", days=-1)
    assert sign(model / "1", "--key", key, "--certificate", expired) == 1
    assert_said(capsys, r"the certificate CN=old expired on .*; sign the folder again with a certificate that is valid")
    _, other = authority.issue("other")
    assert sign(model / "1", "--key", key, "--certificate", other) == 1
    assert_said(capsys, r"old\.key or .*other\.crt cannot be used: The public key from the certificate does not match")
    assert cli.copy([str(model), str(model.parent / "copy"), "--sign-certificate", str(other)]) == 1
    assert_said(capsys, r"--sign-certificate needs the key of the certificate; add --sign-key KEY")
    assert not (model.parent / "copy").exists()


def test_the_version_is_what_the_manifest_says(tmp_path: Path, key: Path) -> None:
    """Also while it is changed: the digests that are signed are compared, not those of an earlier reading."""
    version = write_version(tmp_path / "models" / "tiny" / "1")
    (version / "model.onnx").write_bytes(tiny_onnx(softmax=False))
    assert sign(version, "--key", key) == 1
    rewrite_manifest(version)
    assert sign(version, "--key", key) == 0


def assert_said(capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    err = capsys.readouterr().err
    assert re.search(pattern, err), err
