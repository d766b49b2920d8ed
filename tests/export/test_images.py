import hashlib
from pathlib import Path

import numpy as np
import pytest

from cnnserve.images.preprocessing import Preprocessor
from cnnserve_export import contract, golden, images
from cnnserve_export.architectures import DIGITS
from cnnserve_export.errors import ExportError


@pytest.fixture
def preprocessor() -> Preprocessor:
    made = contract.contract(DIGITS, "uint8", 10)
    return Preprocessor(made.preprocessing, made.input)


def png(seed: int) -> bytes:
    return golden.encode_png(golden.picture(seed, 20, 24))


def write(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def test_images_are_found_by_suffix_at_any_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", "b/deep/2.PNG", "a/1.jpeg", "0.webp", ".hidden/3.png", "a/._1.jpeg", "notes.txt")
    found = images.folder(root)
    assert (found.name, [item.name for item in found.items]) == ("photos", ["0.webp", "a/1.jpeg", "b/deep/2.PNG"])
    assert [item.folder for item in found.items] == ["", "a", "b"]


@pytest.mark.parametrize("count", [1, 8, 19])
def test_every_image_is_given_once_as_the_server_sees_it(
    tmp_path: Path, preprocessor: Preprocessor, count: int
) -> None:
    names = [f"{number % 2}/{number:02}.png" for number in range(count)]
    found = images.folder(write(tmp_path, *names))
    batches = list(found.batches(preprocessor))
    rows = np.concatenate([batch.rows for batch in batches])
    expected = [preprocessor.encoded((tmp_path / name).read_bytes()) for name in sorted(names)]
    np.testing.assert_array_equal(rows, np.stack(expected))
    assert [folder for batch in batches for folder in batch.folders] == [name[0] for name in sorted(names)]
    assert max(len(batch.rows) for batch in batches) <= 8


def test_each_unreadable_image_is_named_and_no_later_one_is_used(tmp_path: Path, preprocessor: Preprocessor) -> None:
    root = write(tmp_path / "set", *(f"{number:02}.png" for number in range(20)))
    (root / "09.png").write_bytes(png(9)[:60])
    (root / "11.jpg").write_text("not an image")
    (root / "19.png").write_bytes(b"")
    given = []
    with pytest.raises(ExportError, match=r"3 of 21 images in set cannot be read; repair or remove them:") as caught:
        given.extend(images.folder(root).batches(preprocessor))
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == ["09.png", "11.jpg", "19.png"]
    assert len(given) == 1


def test_a_long_list_of_unreadable_images_is_cut(tmp_path: Path, preprocessor: Preprocessor) -> None:
    for number in range(14):
        (tmp_path / f"{number:02}.png").touch()
    with pytest.raises(ExportError, match=r"14 of 14 images(.|\n)*09.png(.|\n)*and 4 more$"):
        list(images.folder(tmp_path).batches(preprocessor))


def test_a_folder_without_images_and_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ExportError, match=r"holds no image; give a folder with files that end in .jpg, "):
        images.folder(tmp_path)
    for path in (tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(ExportError, match="is not a folder"):
            images.folder(path)


def test_the_digest_of_a_set_is_of_its_files_not_of_their_names(tmp_path: Path) -> None:
    one = images.folder(write(tmp_path / "one", "a.png", "b.png"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.png").write_bytes(png(1))
    (tmp_path / "other" / "y.png").write_bytes(png(0))
    other = images.folder(tmp_path / "other")
    assert one.digests() == [hashlib.sha256(png(seed)).hexdigest() for seed in (0, 1)]
    assert images.digest(one.digests()) == images.digest(other.digests())
    assert images.digest(one.digests()) != images.digest(one.digests()[:1])


def test_the_built_in_pictures_differ(preprocessor: Preprocessor) -> None:
    drawn = images.built_in()
    rows = np.concatenate([batch.rows for batch in drawn.batches(preprocessor)])
    assert len({row.tobytes() for row in rows}) == len(drawn) == 100
