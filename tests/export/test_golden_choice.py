"""Golden images of the user: one file, or a folder of several."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import folders
from cnnserve.repository import manifest as manifests
from cnnserve_export import cli, contract, golden, golden_choice, importing, pipeline, precision
from cnnserve_export.errors import ExportError
from cnnserve_export.golden import GoldenImages
from cnnserve_export.pipeline import Export
from cnnserve_export.preparation import Given
from cnnserve_export.progress import Progress
from support import golden_rows, open_tested, open_version, tiny_onnx

TinyExport = Callable[..., Export]


def pictures(count: int) -> GoldenImages:
    return golden.numbered([golden.encode_png(golden.picture(seed, 20 + seed, 30)) for seed in range(count)])


def test_a_file_is_one_image(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(golden.digit())
    assert golden_choice.from_path(tmp_path / "mine.png") == {"golden.png": golden.digit()}


def test_a_folder_is_its_images_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name, seed in (("b/1.png", 1), ("a/2.png", 2), ("10.png", 3), (".hidden.png", 4), ("notes.txt", 5)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(golden.encode_png(golden.picture(seed, 20, 30)))
    images = golden_choice.from_path(tmp_path)
    assert list(images) == ["golden-1.png", "golden-2.png", "golden-3.png"]
    assert list(images.values()) == [golden.encode_png(golden.picture(seed, 20, 30)) for seed in (3, 2, 1)]


def test_a_photograph_in_a_folder_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(golden.picture(1, 20, 30)).save(tmp_path / "mine.jpg", exif=exif)
    ((name, data),) = golden_choice.from_path(tmp_path).items()
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        assert (name, image.size) == ("golden-1.png", (20, 30))


def test_too_many_or_too_large_images_are_refused(tmp_path: Path) -> None:
    for number in range(33):
        (tmp_path / f"{number}.png").write_bytes(golden.digit())
    with pytest.raises(ExportError, match="holds 33 images, at most 32 are used; remove some"):
        golden_choice.from_path(tmp_path)
    (tmp_path / "0.png").unlink()
    assert len(golden_choice.from_path(tmp_path)) == 32
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "1.png")
    with pytest.raises(ExportError, match=r"1\.png has 1\.5 MB as PNG, at most 1\.0 MB are allowed in a folder"):
        golden_choice.from_path(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(ExportError, match=r"golden image .*1\.png cannot be read"):
        golden_choice.from_path(tmp_path)


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_no_image_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"none cannot be read|empty holds no image"):
        golden_choice.from_path(tmp_path / folder)


def run(job: Export) -> Path:
    return pipeline.run(job, Progress(io.StringIO()))


@pytest.mark.parametrize("maximum", [2, 8])
def test_an_export_of_several_images_has_the_probabilities_of_each(
    tiny_export: TinyExport, tmp_path: Path, maximum: int
) -> None:
    """With more images than the largest batch, and with fewer."""
    images = pictures(5)
    job = tiny_export(tmp_path / "models", golden_images=images, max_batch_size=maximum)
    folder = run(job)
    manifest = manifests.read(folder)
    assert manifest is not None
    assert manifest.golden == golden.record(images, "fp32")
    assert {name: (folder / name).read_bytes() for name in manifest.golden.images} == images
    assert list(manifest.parity.batches) == ["1", "2", *(["3", "8"] if maximum == 8 else [])]
    reference = contract.contract(job.preprocessing, "float32", 4)
    preprocessor = Preprocessor(reference.preprocessing, reference.input)
    with torch.inference_mode():
        rows = torch.from_numpy(np.stack([preprocessor.encoded(image) for image in images.values()]))
        expected = job.network.eval()(rows).softmax(dim=1).numpy()
    np.testing.assert_allclose(golden_rows(folder), expected, atol=1e-6)
    assert len({row.tobytes() for row in golden_rows(folder)}) == 5
    test = open_version(folders.find(tmp_path / "models", "tiny"), 1).info.self_test
    assert test is not None
    assert test.golden_difference < 1e-6


def test_fp16_has_its_own_probabilities_of_each(tiny_export: TinyExport, tmp_path: Path) -> None:
    images = pictures(5)
    lowering = precision.request("fp16", None, None, None)
    job = tiny_export(tmp_path / "models", golden_images=images, max_batch_size=2, lowering=lowering)
    folder = run(job)
    manifest = manifests.read(folder)
    assert manifest is not None
    assert manifest.golden == golden.record(images, "fp16")
    assert golden_rows(folder).shape == (5, 4)
    assert open_version(folders.find(tmp_path / "models", "tiny"), 1).info.self_test is not None


@pytest.mark.parametrize("batch", ["n", 2])
def test_an_import_of_several_images(tmp_path: Path, batch: str | int) -> None:
    """Also of a file that fixes its batch at fewer images."""
    (tmp_path / "theirs.onnx").write_bytes(tiny_onnx(batch=batch))
    images = pictures(5)
    job = importing.Import(
        file=tmp_path / "theirs.onnx",
        given=Given(color="L"),
        golden_images=images,
        repository=tmp_path / "models",
        name="m",
        max_batch_size=2,
    )
    folder = importing.run(job, Progress(io.StringIO()))
    assert golden_rows(folder).shape == (5, 3)
    assert len({row.tobytes() for row in golden_rows(folder)}) == 5
    assert open_version(folders.find(tmp_path / "models", "m"), 1).info.self_test is not None


def opened(images: GoldenImages, name: str) -> Image.Image:
    return Image.open(io.BytesIO(images[name]))


def test_the_built_in_set_is_small_and_of_every_kind() -> None:
    images = golden_choice.photographs()
    assert next(iter(images.items())) == ("golden.png", golden.photograph())
    assert len(images) == 8
    assert sum(map(len, images.values())) < 200_000
    assert opened(images, "golden-turned.jpg").format == "JPEG"
    assert opened(images, "golden-turned.jpg").getexif()[0x0112] == 6
    assert min(opened(images, "golden-large.jpg").size) > 256
    assert opened(images, "golden-grey.png").mode == "L"
    assert opened(images, "golden-alpha.png").mode == "RGBA"
    digits = golden_choice.digits()
    assert digits["golden.png"] == golden.digit()
    assert digits.keys() - images.keys() == {f"golden-{name}.png" for name in ("zero", "one", "three", "four", "six")}


@pytest.mark.parametrize("images", [golden_choice.photographs(), golden_choice.digits()])
def test_the_built_in_set_has_images_of_every_shape(images: GoldenImages) -> None:
    """Some resize modes differ only for images that are upright, others only for wide ones."""
    turned = [ImageOps.exif_transpose(opened(images, name)) for name in images]
    assert {np.sign(image.width - image.height) for image in turned} == {-1, 0, 1}


def test_the_jpegs_have_no_subsampled_colours() -> None:
    """Decoders enlarge subsampled colours in different ways; all else of a JPEG they decode alike."""
    for name, data in golden_choice.photographs().items():
        if name.endswith(".jpg"):
            with Image.open(io.BytesIO(data)) as image:
                assert {layer[1:3] for layer in image.layer} == {(1, 1)}, name  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["export", "import"])
def test_the_built_in_set_is_the_default(tmp_path: Path, command: str) -> None:
    (tmp_path / "theirs.onnx").write_bytes(tiny_onnx())
    run_command, *flags = {
        "export": (cli.export, "lenet5", "--name", "m", "--max-batch-size", "2"),
        "import": (cli.import_onnx, str(tmp_path / "theirs.onnx"), "--name", "m"),
    }[command]
    assert run_command([*flags, "--repository", str(tmp_path)]) == 0
    manifest = manifests.read(tmp_path / "m" / "1")
    assert manifest is not None
    expected = golden_choice.digits() if command == "export" else golden_choice.photographs()
    assert list(manifest.golden.images) == list(expected)
    open_tested(folders.find(tmp_path, "m"), 1)
