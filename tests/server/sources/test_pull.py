"""Pulls from packs on this machine: what is published, and that nothing is if anything is wrong."""

import io
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnserve.repository import staging
from cnnserve.sources import packing
from cnnserve.sources.errors import SourceError
from cnnserve.sources.pull import pull
from cnnserve.sources.room import Room
from cnnserve.trust import keys
from cnnserve_export.signing import Signer
from disks import mounted
from pulls import blob, layer, manifest, names, pulled, same
from signing import new_key, public_key
from support import HANG_S, REPOSITORY

VERSION = REPOSITORY / "lenet5" / "1"


@pytest.mark.parametrize("name", ["layout", "pack.tar", "modelcar"])
def test_a_pack_is_published_as_it_was(name: str, made: Path, tmp_path: Path) -> None:
    pulled(made / name, tmp_path / "models")


@pytest.mark.parametrize("name", ["lenet5", "."])
def test_a_folder_of_versions_is_published_as_it_is(name: str, tmp_path: Path) -> None:
    pulled(REPOSITORY / name, tmp_path / "models")


def test_a_version_alone_comes_without_the_files_beside_it(tmp_path: Path) -> None:
    (arrived,) = pull(str(VERSION), tmp_path, Room())
    same(VERSION, arrived.folder)
    assert names(tmp_path / "lenet5") == ["1"]


def test_what_belongs_to_no_model_stays_out(tmp_path: Path) -> None:
    source = shutil.copytree(REPOSITORY, tmp_path / "source")
    (source / "README.md").write_text("x")
    (source / ".gitattributes").write_text("x")
    pulled(source, tmp_path / "models")


def test_the_same_version_again_is_no_error(made: Path, tmp_path: Path) -> None:
    pulled(made / "layout", tmp_path)
    (arrived,) = pull(str(made / "modelcar"), tmp_path, Room())
    assert not arrived.new
    assert names(tmp_path) == ["lenet5"]


def test_a_version_with_other_content_stays(made: Path, tmp_path: Path) -> None:
    folder = pulled(made / "layout", tmp_path)
    (folder / "labels.txt").write_text("other")
    with pytest.raises(SourceError, match="lenet5/1 exists with other content, and a published version never changes"):
        pull(str(made / "layout"), tmp_path, Room())
    assert (folder / "labels.txt").read_text() == "other"
    assert names(tmp_path) == ["lenet5"]


def test_files_beside_the_versions_stay(made: Path, tmp_path: Path) -> None:
    model = tmp_path / "lenet5"
    model.mkdir()
    (model / "config.pbtxt").write_text("# mine")
    (arrived,) = pull(str(made / "layout"), tmp_path, Room())
    assert arrived.new
    assert "stay as they are" in arrived.kept
    assert (model / "config.pbtxt").read_text() == "# mine"
    same(VERSION, model / "1")


def test_a_place_that_is_no_folder(made: Path, tmp_path: Path) -> None:
    (tmp_path / "lenet5").write_text("x")
    with pytest.raises(SourceError, match="lenet5 is no folder; remove it, or choose another --repository"):
        pull(str(made / "layout"), tmp_path, Room())


def test_two_pulls_at_once_publish_one_version(made: Path, tmp_path: Path) -> None:
    ready, found = threading.Barrier(4, timeout=HANG_S), []

    def work(source: Path) -> None:
        ready.wait()
        found.extend(pull(str(source), tmp_path, Room()))

    threads = [threading.Thread(target=work, args=(made / name,)) for name in ("layout", "pack.tar") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert sorted(arrived.new for arrived in found) == [False, False, False, True]
    same(REPOSITORY / "lenet5", tmp_path / "lenet5")
    assert names(tmp_path) == ["lenet5"]


def test_what_a_killed_pull_has_left_is_removed(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom cnnserve.repository import staging\n"
        "with staging.hidden_folder(Path(sys.argv[1]), staging.PULLS, OSError) as work:\n"
        "    (work / 'files').mkdir()\n    print('at work', flush=True)\n    time.sleep(600)\n"
    )
    repository = tmp_path / "models"
    with subprocess.Popen([sys.executable, "-c", code, str(repository)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        pull(str(made / "layout"), repository, Room())
        # It is still at work.
        assert len(names(repository)) == 2
        process.send_signal(signal.SIGKILL)
    pull(str(made / "layout"), repository, Room())
    assert names(repository) == ["lenet5"]


def refused(source: Path, repository: Path, problem: str, limits: Room | None = None) -> None:
    with pytest.raises(SourceError, match=problem):
        pull(str(source), repository, limits or Room())
    assert names(repository) == []


def remade(layout: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Changes the manifest, and the index with it: somebody who made a bad pack on purpose."""
    document = manifest(layout)
    change(document)
    packed = json.dumps(document).encode()
    path = packing._blob(layout, io.BytesIO(packed), "").digest
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": path, "size": len(packed)}
    (layout / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"model\.onnx ended after \d+ of \d+ bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), r"has more than the \d+ bytes that were announced"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), r"is damaged or was changed: SHA-256 \w+…, exp"),
        (Path.unlink, r"blobs/sha256/\w+ does not exist; get the pack again"),
    ],
)
def test_a_blob_that_is_not_the_one_that_was_packed(
    change: Callable[[Path], object], problem: str, layout: Path, tmp_path: Path
) -> None:
    change(blob(layout, layer(layout, "lenet5/1/model.onnx")["digest"]))
    refused(layout, tmp_path / "models", problem)


def test_a_manifest_that_is_not_the_one_that_was_packed(layout: Path, tmp_path: Path) -> None:
    (top,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    path = blob(layout, top["digest"])
    path.write_bytes(path.read_bytes().replace(b"lenet5/1/model.onnx", b"lenet5/1/other.onnx"))
    refused(layout, tmp_path / "models", "the manifest sha256:.*is damaged or was changed")
    path.unlink()
    refused(layout, tmp_path / "models", "does not exist")


def test_a_config_that_is_not_the_one_that_was_packed(layout: Path, tmp_path: Path) -> None:
    blob(layout, manifest(layout)["config"]["digest"]).write_bytes(b"{}")
    refused(layout, tmp_path / "models", "the config sha256:.*is damaged or was changed")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "imageLayoutVersion '2.0.0', expected '1.0.0'"),
        ("oci-layout", b"\xff", "oci-layout is not JSON"),
        ("index.json", b'{"manifests":[]}', "names 0 manifests; expected one"),
        ("index.json", b"[]", "holds a list, expected a JSON object"),
        ("index.json", b"{}", "has no list 'manifests'"),
        ("index.json", b'{"manifests":[1]}', "has '1' in place of a descriptor"),
        ("index.json", b'{"manifests":[{"digest":"sha256:../../etc"}]}', r"has the digest 'sha256:\.\./\.\./etc'"),
        ("index.json", b'{"manifests":[{"digest":"sha256:%s","size":true}]}' % (b"0" * 64), "has no size or no mediaT"),
        ("index.json", b" " * (5 << 20), "has more than 4194304 bytes"),
    ],
)
def test_a_damaged_layout(name: str, content: bytes, problem: str, layout: Path, tmp_path: Path) -> None:
    (layout / name).write_bytes(content)
    refused(layout, tmp_path / "models", problem)


def test_a_layout_without_a_manifest(layout: Path, tmp_path: Path) -> None:
    (layout / "index.json").unlink()
    refused(layout, tmp_path / "models", r"index\.json does not exist")


def _path(text: str) -> Callable[[dict[str, object]], object]:
    return lambda document: document["layers"][0]["annotations"].update({"org.cncf.model.filepath": text})  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_path("../evil"), "a file with the path '../evil', expected a relative path"),
        (_path("/etc/evil"), "a file with the path '/etc/evil'"),
        (_path("lenet5/1/../../../evil"), "expected a relative path"),
        (_path("lenet5/.hidden"), "none of which begins with a dot"),
        (_path("a/b/c/d/e"), "of at most 4 names"),
        (_path("lenet5\\1"), "expected a relative path"),
        (_path("lenet5/1/\ud800"), "expected a relative path"),
        (_path(f"lenet5/{'x' * 256}"), "of at most 255 bytes"),
        (lambda d: d["layers"][0].update(size=1 << 60), "announces 115292150460[0-9]+ bytes, the limit is 17179869184"),
        (_path("lenet5/1/model.onnx"), r"the source has 'model\.onnx' twice"),
        (_path("lenet5/1/model.onnx/more"), "twice"),
        (_path("other"), "'other', which is no folder of a model"),
        (_path("other/file"), "no version of model other"),
        (lambda d: d.update(layers=[]), "names no layers"),
        (lambda d: d.update(schemaVersion=1), "has schemaVersion 1, expected 2"),
        (lambda d: d["layers"][0].pop("annotations"), "has no annotation org.cncf.model.filepath"),
        (lambda d: d["layers"][0].update(annotations={"a": 1}), "that are no texts"),
        (lambda d: d["layers"][0].update(mediaType="text/plain"), "a layer of media type 'text/plain'"),
        (lambda d: d["layers"].pop(0), r"golden-alpha\.png is missing from the version folder"),
        (lambda d: d.pop("config"), "'None' in place of a descriptor"),
    ],
)
def test_a_pack_that_was_made_badly_on_purpose(
    change: Callable[[dict[str, object]], object], problem: str, layout: Path, tmp_path: Path
) -> None:
    remade(layout, change)
    refused(layout, tmp_path / "models", problem)


def test_a_file_that_is_not_what_the_versions_manifest_says(layout: Path, tmp_path: Path) -> None:
    labels, other = layer(layout, "lenet5/1/labels.txt"), layer(layout, "lenet5/config.pbtxt")

    def exchange(document: dict[str, object]) -> None:
        for one in document["layers"]:  # type: ignore[attr-defined]
            if one["annotations"] == labels["annotations"]:
                one.update(digest=other["digest"], size=other["size"])

    remade(layout, exchange)
    refused(
        layout, tmp_path / "models", r"model lenet5 version 1: file labels\.txt has \d+ bytes, the manifest says 20"
    )


def test_too_much(made: Path, tmp_path: Path) -> None:
    limit = (VERSION / "model.onnx").stat().st_size
    for name, problem in (
        ("layout", "announces [0-9]+"),
        ("pack.tar", f"more than {limit}"),
        ("modelcar", "announces"),
    ):
        refused(made / name, tmp_path / "models", f"{problem}.* bytes, the limit .*raise --max-size", Room(limit))
        refused(made / name, tmp_path / "models", "more than 10 files, the limit", Room(files=10))


def test_a_full_disk(made: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not mounted(disk, 200):
        pytest.skip("mounting a small file system needs root")
    try:
        refused(made / "layout", disk / "models", "cannot be written: No space left on device; free space on the disk")
        refused(made / "pack.tar", disk / "models", "cannot be written: No space left on device")
        assert names(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nowhere", "nowhere does not exist, expected a layout, a tar, or an address"),
        ("/dev/null", "/dev/null is no file or folder"),
        ("s3::https://x", "chains addresses with '::', which is not supported"),
        ("simplecache::s3://bucket/x", "chains addresses"),
        ("ftp://host/x.tar", "has the scheme ftp://, expected oci://, s3://, gs://, az://, hf://, https:// or a path"),
        ("http://host/x.tar", "has the scheme http://"),
        ("oci://host/name", r"is no pack in a registry; write oci://HOST/NAME:TAG or oci://HOST/NAME@sha256:"),
        ("oci://host/../x:1", "is no pack in a registry"),
        ("https://user:secret@host/x.tar", r"the address of host has a user name or a password in it.*~/\.netrc"),
        ("https://host/x?y=1", "must be that of a tar"),
        ("https://host:x/x.tar", "is no address"),
    ],
)
def test_what_is_no_source(source: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=problem) as caught:
        pull(source, tmp_path / "models", Room())
    assert "secret" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_folder_without_versions_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    refused(tmp_path / "source", tmp_path / "models", r"no manifest\.json in 1 files: it is no pack")


def test_a_model_with_a_version_that_nothing_verifies(tmp_path: Path) -> None:
    source = shutil.copytree(REPOSITORY, tmp_path / "source")
    (source / "lenet5" / "2").mkdir()
    shutil.copyfile(VERSION / "model.onnx", source / "lenet5" / "2" / "model.onnx")
    refused(source, tmp_path / "models", r"model lenet5 version 2: it has no manifest\.json")


def test_a_link_that_leads_out_of_a_folder(tmp_path: Path) -> None:
    source = shutil.copytree(REPOSITORY / "lenet5", tmp_path / "source")
    (source / "labels.txt").unlink()
    (source / "labels.txt").symlink_to("/etc/passwd")
    refused(source, tmp_path / "models", r"leads out of the model's folder")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, keys.TrustedKeys, keys.TrustedKeys]:
    """The pack of a signed version, its key, and another key."""
    folder = tmp_path_factory.mktemp("signed")
    model = shutil.copytree(REPOSITORY / "lenet5", folder / "lenet5")
    signer = Signer(new_key(folder / "mine.key"), None)
    signer.sign_version(model / "1")
    signer.sign_model(model, "lenet5")
    packing.pack(model / "1", folder / "layout")
    other = new_key(folder / "other.key")
    return folder, keys.read(public_key(folder / "mine.key")), keys.read(public_key(other))


def test_a_signed_pack(signed: tuple[Path, keys.TrustedKeys, keys.TrustedKeys], tmp_path: Path) -> None:
    folder, mine, other = signed
    with pytest.raises(SourceError, match=r"model lenet5 version 1: model\.sig was made with another key"):
        pull(str(folder / "layout"), tmp_path, Room(), other)
    assert names(tmp_path) == []
    pull(str(folder / "layout"), tmp_path, Room(), mine)
    same(folder / "lenet5", tmp_path / "lenet5")


def test_a_pack_without_a_signature(
    signed: tuple[Path, keys.TrustedKeys, keys.TrustedKeys], made: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"has no model\.sig, which --trusted-keys demands"):
        pull(str(made / "layout"), tmp_path, Room(), signed[1])
    assert names(tmp_path) == []


def test_a_signed_pack_with_another_file(
    signed: tuple[Path, keys.TrustedKeys, keys.TrustedKeys], tmp_path: Path
) -> None:
    layout = shutil.copytree(signed[0] / "layout", tmp_path / "layout")
    remade(
        layout, lambda d: d["layers"].append(d["layers"][0] | {"annotations": {"org.cncf.model.filepath": "lenet5/a"}})
    )  # type: ignore[attr-defined,index]
    with pytest.raises(SourceError, match=r"model\.sig does not cover a: it was added after signing"):
        pull(str(layout), tmp_path / "models", Room(), signed[1])
    assert names(tmp_path / "models") == []


def test_hidden_folders_of_exports_are_left_alone(made: Path, tmp_path: Path) -> None:
    with staging.hidden_folder(tmp_path, staging.EXPORTS, SourceError) as theirs:
        pull(str(made / "layout"), tmp_path, Room())
        assert theirs.is_dir()
