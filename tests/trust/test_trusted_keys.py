"""The trusted keys: what a folder of them may hold, and which signatures they accept. All keys are real."""

import base64
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnserve.config.settings import ConfigError
from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.signature import Signed, Trust
from cnnserve.trust import keys
from signing import Authority, model_signing, new_key, public_key

CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `thing` with two files to sign."""
    (tmp_path / "thing" / "inner").mkdir(parents=True)
    (tmp_path / "thing" / "a").write_bytes(b"a")
    (tmp_path / "thing" / "inner" / "b").write_bytes(b"b")
    return tmp_path / "thing"


def signed_with_key(folder: Path, key: Path) -> bytes:
    """A signature of OpenSSF's own tool."""
    file = folder.parent / "thing.sig"
    model_signing("sign", "key", folder, "--private_key", key, "--signature", file)
    return file.read_bytes()


def signed_with_certificate(folder: Path, key: Path, certificate: Path) -> bytes:
    file = folder.parent / "thing.sig"
    own = ["--private_key", key, "--signing_certificate", certificate, "--certificate_chain", certificate]
    model_signing("sign", "certificate", folder, *own, "--signature", file)
    return file.read_bytes()


def changed(bundle: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    raw = json.loads(bundle)
    change(raw)
    return json.dumps(raw).encode()


def restated(bundle: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The bundle with another statement in its payload, and the old signature."""

    def replace(raw: dict[str, Any]) -> None:
        payload = json.loads(base64.b64decode(raw["dsseEnvelope"]["payload"]))
        change(payload)
        raw["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()

    return changed(bundle, replace)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_a_signature_of_the_standard_tool_with_a_key(folder: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = new_key(tmp_path / "release.pem", curve)
    signed = keys.read(public_key(key)).verify(signed_with_key(folder, key))
    digests = {
        "a": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        "inner/b": "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
    }
    assert signed == Signed("thing", digests, "release.pub")


def test_a_signature_of_the_standard_tool_with_a_certificate(folder: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signed = keys.read(authority.file).verify(signed_with_certificate(folder, *authority.issue("release")))
    assert (signed.name, sorted(signed.files)) == ("thing", ["a", "inner/b"])
    assert signed.signer == "CN=release (Model-signing-CA.pem)"


def test_the_commands_of_the_documentation_make_such_keys(folder: Path, tmp_path: Path) -> None:
    key, public, ca = tmp_path / "key.pem", tmp_path / "key.pub", tmp_path / "ca.pem"
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    may_sign = ["-addext", "keyUsage=critical,digitalSignature", "-addext", "basicConstraints=critical,CA:FALSE"]
    issue = ["-CA", str(ca), "-CAkey", f"{ca}.key", "-keyout", f"{ca}.leaf.key", "-out", f"{ca}.leaf"]
    for command in (
        ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key)],
        ["pkey", "-in", str(key), "-pubout", "-out", str(public)],
        ["req", "-x509", *new, "-keyout", f"{ca}.key", "-out", str(ca), "-days", "30", "-subj", "/CN=Authority"],
        ["req", "-x509", *new, *issue, "-days", "10", "-subj", "/CN=release", *may_sign],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=60)
    assert keys.read(public).verify(signed_with_key(folder, key)).signer == "key.pub"
    certified = signed_with_certificate(folder, Path(f"{ca}.leaf.key"), Path(f"{ca}.leaf"))
    assert keys.read(ca).verify(certified).signer == "CN=release (ca.pem)"


def test_several_keys_and_certificates_count_at_once(folder: Path, tmp_path: Path) -> None:
    """As while one key replaces another."""
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    old, new = new_key(tmp_path / "2025.pem"), new_key(tmp_path / "2026.pem")
    authorities = [Authority(tmp_path, "old"), Authority(tmp_path, "new")]
    for file in (public_key(old), public_key(new)):
        file.rename(trusted / file.name)
    (trusted / "ca.pem").write_bytes(b"".join(authority.file.read_bytes() for authority in authorities))
    (trusted / ".hidden").write_bytes(b"as in a folder that Kubernetes mounts")
    read = keys.read(trusted)
    assert str(read) == "2025.pub, 2026.pub, ca.pem"
    assert not read.warnings
    assert [read.verify(signed_with_key(folder, key)).signer for key in (old, new)] == ["2025.pub", "2026.pub"]
    for authority in authorities:
        assert read.verify(signed_with_certificate(folder, *authority.issue("release"))).signer == "CN=release (ca.pem)"


def test_a_chain_with_an_authority_between(folder: Path, tmp_path: Path) -> None:
    root = Authority(tmp_path, "root")
    between = Authority(tmp_path, "between", issuer=root)
    key, certificate = between.issue("release")
    certificate.write_bytes(certificate.read_bytes() + between.file.read_bytes())
    bundle = signed_with_certificate(folder, key, certificate)
    assert keys.read(root.file).verify(bundle).signer == "CN=release (root.pem)"
    with pytest.raises(ModelLoadFailed, match=r"CN=release leads to no trusted certificate"):
        keys.read(Authority(tmp_path, "another").file).verify(bundle)


def test_a_certificate_that_is_no_authority_issues_none(folder: Path, tmp_path: Path) -> None:
    root = Authority(tmp_path, "root")
    forger = Authority(tmp_path, own=root.issue("release"))
    key, certificate = forger.issue("forged")
    certificate.write_bytes(certificate.read_bytes() + forger.file.read_bytes())
    with pytest.raises(ModelLoadFailed, match=r"CN=forged leads to no trusted certificate"):
        keys.read(root.file).verify(signed_with_certificate(folder, key, certificate))


@pytest.mark.parametrize(
    ("days", "authority_days", "may_sign", "said"),
    [
        (-1, 30, True, r"the certificate CN=release expired on \d{4}-\d\d-\d\d; sign the folder again with a cert"),
        (10, -1, True, r"the certificate CN=Model signing CA expired on"),
        (10, 30, False, r"the certificate CN=release is not meant for signatures; use one with the key usage"),
    ],
)
def test_certificates_that_do_not_count(
    folder: Path, tmp_path: Path, days: float, authority_days: float, may_sign: bool, said: str
) -> None:
    authority = Authority(tmp_path, days=authority_days)
    # The tool itself accepts an expired certificate, because it looks at the time of signing only.
    bundle = signed_with_certificate(folder, *authority.issue("release", days, may_sign=may_sign))
    with pytest.raises(ModelLoadFailed, match=said):
        keys.read(authority.file).verify(bundle)


def test_a_damaged_certificate(folder: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    raw = json.loads(signed_with_certificate(folder, *authority.issue("release")))
    raw["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = "AAAA"
    with pytest.raises(ModelLoadFailed, match=r"its certificate cannot be read: .*; sign the folder again"):
        keys.read(authority.file).verify(json.dumps(raw).encode())


def test_an_expired_authority_is_named_at_the_start(tmp_path: Path) -> None:
    (warning,) = keys.read(Authority(tmp_path, days=-1).file).warnings
    assert warning.startswith("Model-signing-CA.pem: the certificate CN=Model signing CA expired on ")


def test_another_key(folder: Path, tmp_path: Path) -> None:
    key, other = new_key(tmp_path / "key.pem"), new_key(tmp_path / "other.pem")
    with pytest.raises(ModelLoadFailed, match=r"made with another key than the trusted ones \(key\.pub\); sign the"):
        keys.read(public_key(key)).verify(signed_with_key(folder, other))


def test_the_kind_of_the_signature_is_none_of_the_trusted(folder: Path, tmp_path: Path) -> None:
    key, authority = new_key(tmp_path / "key.pem"), Authority(tmp_path)
    with pytest.raises(ModelLoadFailed, match=r"made with another key than the trusted ones \(Model-signing-CA\.pem\)"):
        keys.read(authority.file).verify(signed_with_key(folder, key))
    with pytest.raises(ModelLoadFailed, match=r"no certificate is among the trusted keys; add that of its authority"):
        keys.read(public_key(key)).verify(signed_with_certificate(folder, *authority.issue("release")))


DAMAGES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("half of it", lambda bundle: bundle[: len(bundle) // 2], r"model\.sig is damaged, .*sign the folder again"),
    ("nothing", lambda bundle: b"", r"model\.sig is damaged"),
    ("not text", lambda bundle: b"\xff" + bundle, r"model\.sig is damaged"),
    ("too much", lambda bundle: bundle + b" " * 2**23, r"at most 8388608 are read"),
    ("deeply nested", lambda bundle: b"[" * 100_000, r"nested too deeply"),
    ("a key twice", lambda bundle: bundle.replace(b'{"media', b'{"mediaType":"x","media', 1), r"more than once"),
    ("another type", lambda b: changed(b, lambda raw: raw.update(mediaType="x")), r"mediaType is 'x', expected"),
    ("no envelope", lambda b: changed(b, lambda raw: raw.pop("dsseEnvelope")), r"dsseEnvelope is missing"),
    (
        "another payload type",
        lambda b: changed(b, lambda raw: raw["dsseEnvelope"].update(payloadType="text/plain")),
        r"payloadType is 'text/plain'",
    ),
    (
        "no signature",
        lambda b: changed(b, lambda raw: raw["dsseEnvelope"].update(signatures=[])),
        r"it has 0 signatures, expected 1",
    ),
    (
        "two signatures",
        lambda b: changed(b, lambda raw: raw["dsseEnvelope"]["signatures"].append({"sig": ""})),
        r"it has 2 signatures, expected 1",
    ),
    (
        "an empty signature",
        lambda b: changed(b, lambda raw: raw["dsseEnvelope"]["signatures"][0].update(sig="")),
        r"was changed after signing: its signature is not valid for key\.pub",
    ),
    (
        "no base64",
        lambda b: changed(b, lambda raw: raw["dsseEnvelope"]["signatures"][0].update(sig="*")),
        r"model\.sig is damaged",
    ),
    (
        "keyless",
        lambda b: changed(b, lambda raw: raw.update(verificationMaterial={"certificate": {"rawBytes": ""}})),
        r"neither with a key nor with a certificate of your own",
    ),
    (
        "no certificate",
        lambda b: changed(
            b, lambda raw: raw.update(verificationMaterial={"x509CertificateChain": {"certificates": []}})
        ),
        r"it has no certificate",
    ),
    (
        "another kind of signature",
        lambda b: changed(
            b,
            lambda raw: raw.update(
                verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}
            ),
        ),
        r"no certificate is among the trusted keys",
    ),
    (
        "another digest",
        lambda b: restated(b, lambda s: s["predicate"]["resources"][0].update(digest="0" * 64)),
        r"was changed after signing: its signature is not valid for key\.pub, whose key made it",
    ),
    (
        "a file left out",
        lambda b: restated(b, lambda s: s["predicate"]["resources"].pop()),
        r"was changed after signing",
    ),
]


@pytest.mark.parametrize(("what", "damage", "said"), DAMAGES, ids=[what for what, *_ in DAMAGES])
def test_a_damaged_bundle(folder: Path, tmp_path: Path, what: str, damage: Callable[[bytes], bytes], said: str) -> None:
    key = new_key(tmp_path / "key.pem")
    bundle = damage(signed_with_key(folder, key))
    with pytest.raises(ModelLoadFailed, match=said):
        keys.read(public_key(key)).verify(bundle)


def a_private_key(file: Path) -> None:
    new_key(file)


def an_rsa_key(file: Path) -> None:
    rsa = subprocess.run(["openssl", "genrsa", "2048"], check=True, capture_output=True, timeout=60).stdout
    file.write_bytes(
        subprocess.run(["openssl", "rsa", "-pubout"], input=rsa, check=True, capture_output=True, timeout=60).stdout
    )


def two_keys(file: Path) -> None:
    keys = [public_key(new_key(file.parent.parent / name)).read_text() for name in ("a.pem", "b.pem")]
    file.write_text("".join(keys))


def a_key_and_a_certificate(file: Path) -> None:
    key = public_key(new_key(file.parent.parent / "a.pem")).read_text()
    file.write_text(key + Authority(file.parent.parent).file.read_text())


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (two_keys, r"/wrong holds a public key beside other keys or certificates; give each public key its own file"),
        (a_key_and_a_certificate, r"/wrong holds a public key beside other keys or certificates; give each public key"),
        (a_private_key, r"/wrong is a private key, which only the signer may have; put its public key there: openssl"),
        (an_rsa_key, r"/wrong is not a key of the curve P-256, P-384 or P-521; make one: openssl genpkey"),
        (lambda file: file.write_text("hello"), r"/wrong is neither a public key nor a certificate in PEM; remove it"),
        (lambda file: file.write_text("-----BEGIN CERTIFICATE-----\nAA"), r"/wrong has a damaged certificate: .*copy"),
        (lambda file: file.mkdir(), r"/wrong is not a file, expected a public key or certificates"),
        (lambda file: file.symlink_to("nothing"), r"/wrong cannot be read: No such file"),
    ],
)
def test_what_does_not_belong_among_trusted_keys_is_named(
    tmp_path: Path, write: Callable[[Path], object], said: str
) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    public_key(new_key(tmp_path / "key.pem")).rename(trusted / "key.pub")
    write(trusted / "wrong")
    public_key(trusted / "wrong").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=said):
        keys.read(trusted)


def test_no_trusted_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/none' cannot be read: No such file"):
        keys.read(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"is empty; put public keys \(openssl pkey -in KEY -pubout\) or cert"):
        keys.read(tmp_path)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("A" * 400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths(value: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*above, key)
        yield from paths(item, *above, key)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, Trust, Signed]]:
    """A signature with a key and one with a certificate, with the trust in them and what they say."""
    root = tmp_path_factory.mktemp("valid")
    (root / "thing").mkdir()
    (root / "thing" / "a").write_bytes(b"a")
    key, authority = new_key(root / "key.pem"), Authority(root)
    bundles = [
        (signed_with_key(root / "thing", key), keys.read(public_key(key))),
        (signed_with_certificate(root / "thing", *authority.issue("release")), keys.read(authority.file)),
    ]
    return [(bundle, trust, trust.verify(bundle)) for bundle, trust in bundles]


def held(data: bytes, trust: Trust, says: Signed) -> None:
    """A changed signature says the same, or is refused in one way."""
    with contextlib.suppress(ModelLoadFailed):
        assert trust.verify(data) == says


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_a_bundle_holds_it_is_read_or_refused(
    valid: list[tuple[bytes, Trust, Signed]], data: st.DataObject
) -> None:
    bundle, trust, says = data.draw(st.sampled_from(valid))
    raw = json.loads(bundle)
    *above, last = data.draw(st.sampled_from(list(paths(raw))))
    target = raw
    for name in above:
        target = target[name]
    target[last] = data.draw(ANY_JSON)
    held(json.dumps(raw).encode(), trust, says)


@settings(max_examples=300)
@given(data=st.data())
def test_no_bit_of_a_certificate_or_a_signature_can_change(
    valid: list[tuple[bytes, Trust, Signed]], data: st.DataObject
) -> None:
    bundle, trust, _ = valid[1]
    raw = json.loads(bundle)
    chain = raw["verificationMaterial"]["x509CertificateChain"]["certificates"]
    holder, name = data.draw(
        st.sampled_from([(chain[0], "rawBytes"), (raw["dsseEnvelope"], "payload")])
        | st.just((raw["dsseEnvelope"]["signatures"][0], "sig"))
    )
    content = bytearray(base64.b64decode(holder[name]))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    holder[name] = base64.b64encode(content).decode()
    with pytest.raises(ModelLoadFailed):
        trust.verify(json.dumps(raw).encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_what_is_no_bundle_is_refused(valid: list[tuple[bytes, Trust, Signed]], data: bytes) -> None:
    with pytest.raises(ModelLoadFailed):
        valid[0][1].verify(data)
