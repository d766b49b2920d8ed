"""Pixels are equal to those of torchvision's PIL pipeline, bit for bit."""

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import cbook
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from cnnserve.errors import InvalidInput
from cnnserve.images.geometry import most_pixels, resized_size
from cnnserve.images.preprocessing import DEFAULT_PIXEL_LIMIT, Preprocessor, RawImage
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo
from torchvision_pixels import Oracle

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spec(
    resize: tuple[int, ...] | None = (256,),
    crop: tuple[int, int] | None = (224, 224),
    interpolation: str = "bilinear",
    color: str = "RGB",
    *,
    upright: bool = True,
) -> Preprocessing:
    how = resize and Resize("shorter" if len(resize) == 1 else "exact", resize, interpolation)
    channels = 1 if color == "L" else 3
    return Preprocessing(color, how, crop, MEAN[:channels], STD[:channels], "graph", exif_orientation=upright)


def pixels(data: bytes | RawImage, wanted: Preprocessing) -> np.ndarray:
    size = wanted.crop or (wanted.resize and wanted.resize.size) or (1, 1)
    tensor = TensorInfo("image", "UINT8", (*size[-2:], 1 if wanted.color == "L" else 3), "NHWC")
    return Preprocessor(wanted, tensor).row(data)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


def photographs() -> dict[str, Image.Image]:
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = Image.open(file).convert("RGB")
    return {
        "hopper": hopper,
        **{name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")},
    }


PHOTOGRAPHS = photographs()
# The preprocessing of ImageNet's checkpoints, and every branch of the geometry.
SPECS = {
    "resize 256": spec(),
    "resize 232": spec((232,)),
    "bicubic": spec((256,), interpolation="bicubic"),
    "bgr": spec(color="BGR"),
    "grey": spec(color="L"),
    "larger": spec((900,), (896, 896)),
    "odd crop": spec((256,), (223, 201)),
    "exact": spec((224, 224), None),
    "exact and crop": spec((300, 200), (224, 160)),
    "crop only": spec(None, (224, 224)),
    "crop padded": spec(None, (700, 800)),
    "lenet": spec((28, 28), None, color="L"),
}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def transparent(image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(image.convert("L"))
    return with_alpha


ENCODINGS: dict[str, Callable[[Image.Image], bytes]] = {
    **{f"jpeg {s}": lambda i, s=s: saved(i, "JPEG", subsampling=s, quality=87) for s in ("4:4:4", "4:2:2", "4:2:0")},
    "jpeg 4:4:0": lambda i: saved(i.transpose(Image.Transpose.ROTATE_90), "JPEG", subsampling="4:2:2", exif=turned(6)),
    "jpeg progressive": lambda i: saved(i, "JPEG", progressive=True),
    "jpeg low quality": lambda i: saved(i, "JPEG", quality=5),
    "jpeg restarts": lambda i: saved(i, "JPEG", restart_marker_blocks=3),
    "jpeg rgb": lambda i: saved(i, "JPEG", keep_rgb=True),
    "jpeg grey": lambda i: saved(i.convert("L"), "JPEG"),
    "jpeg cmyk": lambda i: saved(i.convert("CMYK"), "JPEG"),
    "mpo": lambda i: saved(i, "MPO", save_all=True, append_images=[i.rotate(180)]),
    "png": lambda i: saved(i, "PNG", compress_level=1),
    "png alpha": lambda i: saved(transparent(i), "PNG", compress_level=1),
    "png grey": lambda i: saved(i.convert("L"), "PNG"),
    "png grey alpha": lambda i: saved(transparent(i).convert("LA"), "PNG", compress_level=1),
    "png 1 bit": lambda i: saved(i.convert("1"), "PNG"),
    "png palette": lambda i: saved(i.quantize(200), "PNG"),
    "png palette, few": lambda i: saved(i.quantize(7), "PNG", bits=4),
    "png palette, one transparent": lambda i: saved(i.quantize(200), "PNG", transparency=3),
    "png palette, all transparent": lambda i: saved(i.quantize(256), "PNG", transparency=bytes(range(256))),
    "png grey, one transparent": lambda i: saved(i.convert("L"), "PNG", transparency=70),
    "png colour, one transparent": lambda i: saved(i, "PNG", transparency=(1, 2, 3), compress_level=1),
    "webp": lambda i: saved(i, "WEBP", method=0),
    "webp lossless": lambda i: saved(i.reduce(3), "WEBP", lossless=True, method=0),
    "webp alpha": lambda i: saved(transparent(i.reduce(3)), "WEBP", method=0),
    "webp animated": lambda i: saved(i.reduce(3), "WEBP", method=0, save_all=True, append_images=[i.reduce(3)]),
    "bmp": lambda i: saved(i, "BMP"),
    "bmp palette": lambda i: saved(i.quantize(100), "BMP"),
    "bmp grey": lambda i: saved(i.convert("L"), "BMP"),
    "bmp 1 bit": lambda i: saved(i.convert("1"), "BMP"),
    "bmp alpha": lambda i: saved(transparent(i), "BMP"),
    "gif": lambda i: saved(i.quantize(250), "GIF"),
    "gif grey": lambda i: saved(i.convert("L"), "GIF"),
    "gif animated": lambda i: saved(i.quantize(9), "GIF", save_all=True, append_images=[i.rotate(90).quantize(9)]),
    "gif transparent": lambda i: saved(i.quantize(99), "GIF", transparency=5),
}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_photographs_in_every_encoding(oracle: Oracle, encoding: str) -> None:
    for name, photograph in PHOTOGRAPHS.items():
        data = ENCODINGS[encoding](photograph)
        for wanted in (SPECS["resize 256"], SPECS["lenet"]):
            assert (pixels(data, wanted) == oracle.pixels(data, wanted)).all(), name


@pytest.mark.parametrize("name", SPECS)
def test_every_geometry(oracle: Oracle, name: str) -> None:
    for photograph in PHOTOGRAPHS.values():
        for data in (saved(photograph, "JPEG"), saved(photograph.rotate(90, expand=True), "PNG", compress_level=1)):
            assert (pixels(data, SPECS[name]) == oracle.pixels(data, SPECS[name])).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9, 65535])
def test_every_orientation(oracle: Oracle, kind: str, orientation: int) -> None:
    data = saved(PHOTOGRAPHS["china"].crop((0, 0, 333, 222)), kind, exif=turned(orientation))
    for wanted in (spec(), spec(upright=False), spec((300, 200), (224, 160))):
        assert (pixels(data, wanted) == oracle.pixels(data, wanted)).all()


def test_an_orientation_in_xmp_counts_too(oracle: Oracle) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    data = saved(PHOTOGRAPHS["china"], "JPEG", xmp=xmp)
    assert (pixels(data, spec()) == oracle.pixels(data, spec())).all()
    assert (pixels(data, spec()) != pixels(data, spec(upright=False))).any()


def test_inverted_cmyk_of_adobe(oracle: Oracle) -> None:
    """Pillow writes inverted CMYK with Adobe's marker. Without the marker, the same bytes mean the opposite."""
    data = saved(PHOTOGRAPHS["flower"].convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"Adobe")
    unmarked = data[:at] + b"Nobody"[:5] + data[at + 5 :]
    for file in (data, unmarked):
        assert (pixels(file, spec()) == oracle.pixels(file, spec())).all()


def test_16_bit_grey_keeps_its_high_byte_as_16_bit_colour_does(oracle: Oracle) -> None:
    """The only intended difference: in the pipeline, Pillow clips 16-bit grey, which makes every photograph white."""
    high = np.asarray(PHOTOGRAPHS["china"].convert("L")).astype(np.uint16) << 8
    data = saved(Image.fromarray(high | 0x7F), "PNG")
    eight = saved(PHOTOGRAPHS["china"].convert("L"), "PNG")
    for wanted in (SPECS["resize 256"], SPECS["lenet"]):
        assert (pixels(data, wanted) == oracle.pixels(eight, wanted)).all()
    assert (oracle.pixels(data, spec())[:, :, 0] >= 254).mean() > 0.9


# Small sizes are much more frequent than large ones.
def _sizes(largest: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, 40), st.integers(1, 600), st.integers(1, largest))


@settings(max_examples=120)
@given(
    _sizes(4000),
    _sizes(3000),
    st.sampled_from(["JPEG", "PNG", "BMP", "raw"]),
    st.sampled_from(list(SPECS)),
    st.randoms(),
)
@example(4000, 3000, "JPEG", "resize 256", random.Random(0))
@example(1, 1, "JPEG", "resize 256", random.Random(0))
@example(1, 3000, "PNG", "resize 256", random.Random(0))
def test_every_size(oracle: Oracle, width: int, height: int, kind: str, name: str, chance: random.Random) -> None:
    wanted = SPECS[name]
    image = _picture(width, height, chance.randrange(2**32))
    if kind == "raw":
        source: bytes | RawImage = RawImage(image.tobytes(), height, width, 3)
        data = saved(image, "BMP")
    else:
        options = {"JPEG": {"subsampling": chance.randrange(3), "quality": chance.randint(1, 95)}}
        source = data = saved(image, kind, **options.get(kind, {"compress_level": 1} if kind == "PNG" else {}))
    if wanted.resize and most_pixels(image.size, resized_size(image.size, wanted.resize)) > DEFAULT_PIXEL_LIMIT:
        with pytest.raises(InvalidInput, match=r"limit (is|of) 50,000,000"):
            pixels(source, wanted)
    else:
        assert (pixels(source, wanted) == oracle.pixels(data, wanted)).all()


def _picture(width: int, height: int, seed: int) -> Image.Image:
    """Returns a part of a photograph with noise; if the photograph is too small, it is mirrored."""
    generator = np.random.default_rng(seed)
    photograph = np.asarray(PHOTOGRAPHS[("hopper", "china", "flower")[seed % 3]])
    tall, wide = photograph.shape[:2]
    rows = np.abs((np.arange(height) + seed) % (2 * tall - 1) - tall + 1)
    columns = np.abs((np.arange(width) + seed) % (2 * wide - 1) - wide + 1)
    image = photograph[rows][:, columns]
    if height * width < 10**6:
        image = np.clip(image + generator.integers(-20, 20, image.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(image)


@pytest.mark.parametrize("index", range(0, 1797, 200))
def test_digits(oracle: Oracle, index: int) -> None:
    ink = np.rint(load_digits().images[index] * (255 / 16)).astype(np.uint8)
    for side in (8, 28, 32):
        digit = Image.fromarray(ink).resize((side, side))
        for data in (saved(digit, "PNG"), saved(digit, "BMP"), saved(digit, "JPEG"), saved(digit, "GIF")):
            assert (pixels(data, SPECS["lenet"]) == oracle.pixels(data, SPECS["lenet"])).all()


def test_the_trained_lenet5_is_shown_what_it_was_trained_on(oracle: Oracle) -> None:
    folder = Path(__file__).parents[3] / "model_repo" / "lenet5" / "1"
    manifest = manifests.read(folder)
    assert manifest
    data = (folder / manifest.golden.images[0]).read_bytes()
    row = Preprocessor(manifest.preprocessing, manifest.input).row(data)
    assert (row == oracle.pixels(data, manifest.preprocessing)).all()
