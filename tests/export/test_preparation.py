from dataclasses import replace
from typing import Any

import pytest

from cnnserve.images import opencv, resampling
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Pad, Preprocessing, Resize, TensorInfo
from cnnserve_export import contract
from cnnserve_export.architectures import DIGITS, IMAGENET
from cnnserve_export.errors import ExportError
from cnnserve_export.preparation import Given, changed, of_network, of_tensor
from cnnserve_export.resizing_flags import INTERPOLATIONS

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
FULL: dict[str, Any] = {"shape": (3, 32, 48), **HALF}


CV = {"resize_library": "opencv"}
GREY = Pad((114.0,) * 3)


def given(**changes: Any) -> Given:
    return Given(**{**FULL, **changes})


@pytest.mark.parametrize(
    ("changes", "resize", "crop"),
    [
        ({}, Resize("exact", (32, 48)), None),
        ({"resize": (40,)}, Resize("shorter", (40,)), (32, 48)),
        ({"resize": (40,), "crop": (32, 48)}, Resize("shorter", (40,)), (32, 48)),
        ({"resize": (32, 48)}, Resize("exact", (32, 48)), None),
        ({"resize": (40, 60), "crop": (32, 48)}, Resize("exact", (40, 60)), (32, 48)),
        ({"interpolation": "bicubic"}, Resize("exact", (32, 48), "bicubic"), None),
    ],
)
def test_an_own_networks_preparation(changes: dict[str, Any], resize: Resize, crop: tuple[int, int] | None) -> None:
    assert of_network(given(**changes)) == Preprocessing("RGB", resize, crop, HALF["mean"], HALF["std"], "graph")


@pytest.mark.parametrize(
    ("changes", "resize", "crop"),
    [
        ({"resize_mode": "letterbox"}, Resize("letterbox", (32, 48)), None),
        ({"resize_mode": "letterbox", "resize": (40,), "crop": (32, 48)}, Resize("letterbox", (40, 40)), (32, 48)),
        ({"resize_mode": "fit"}, Resize("fit", (32, 48)), None),
        ({"resize_mode": "fit", "resize": (32,)}, Resize("fit", (32,)), (32, 48)),
        ({"resize_mode": "fit", "resize": (32, 40)}, Resize("fit", (32, 40)), (32, 48)),
        ({"resize_mode": "shorter", "resize": (36, 54)}, Resize("shorter", (36, 54)), (32, 48)),
        ({"resize": (30,), "pad": GREY}, Resize("shorter", (30,)), (32, 48)),
        ({"crop_pct": 0.875}, Resize("shorter", (36, 54)), (32, 48)),
        ({"crop_pct": 0.9, "shape": (3, 224, 224)}, Resize("shorter", (248,)), (224, 224)),
        ({"crop_pct": 0.9, "shape": (3, 224, 224), "crop": (224,)}, Resize("shorter", (248,)), (224, 224)),
        ({"crop_pct": 1.0, "resize_mode": "exact"}, Resize("exact", (32, 48)), None),
        ({"crop_pct": 0.5, "resize_mode": "letterbox"}, Resize("letterbox", (64, 96)), (32, 48)),
        ({"interpolation": "area", **CV}, Resize("exact", (32, 48), "area", antialias=False, library="opencv"), None),
        ({"interpolation": "lanczos"}, Resize("exact", (32, 48), "lanczos"), None),
    ],
)
def test_every_mode_of_the_resize(changes: dict[str, Any], resize: Resize, crop: tuple[int, int] | None) -> None:
    spec = of_network(given(**changes))
    assert (spec.resize, spec.crop) == (resize, crop)
    # The flags on top of what they gave change nothing.
    assert changed(given(**changes), spec) == spec


def test_scale_padding_and_rounding() -> None:
    caffe = {"scale": 1.0, "mean": (104.0, 117.0, 123.0), "std": (1.0, 1.0, 1.0), "color": "BGR"}
    spec = of_network(given(**caffe, pad=Pad((1.0, 2.0, 3.0), "start"), crop_rounding="down"))
    assert (spec.scale, spec.mean, spec.color) == (1.0, (104.0, 117.0, 123.0), "BGR")
    assert (spec.pad, spec.crop_rounding) == (Pad((1.0, 2.0, 3.0), "start"), "down")
    assert of_network(given(pad=Pad((114.0,)))).pad == GREY
    half = of_network(given(scale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3))
    assert (half.scale, half.mean) == (1 / 127.5, (1.0,) * 3)


def test_the_filters_are_those_of_the_libraries() -> None:
    assert set(manifests.INTERPOLATIONS["pillow"]) == set(resampling.PILLOW)
    assert set(manifests.INTERPOLATIONS["opencv"]) == set(opencv.FLAGS)
    assert set(INTERPOLATIONS) == {*resampling.PILLOW, *opencv.FLAGS}


def test_colours_follow_the_channels() -> None:
    assert of_network(given(color="BGR")).color == "BGR"
    assert of_network(Given(shape=(1, 8, 8), mean=(0.0,), std=(1.0,))).color == "L"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": None}, "--shape is missing"),
        ({"mean": None}, "--mean missing: give the mean and the standard deviation"),
        (
            {"mean": None, "std": None},
            "--mean and --std missing: .*; if training did not normalise, use --mean 0,0,0 --std 1,1,1",
        ),
        ({"mean": (0.5,)}, r"--mean has 1 value\(s\), but the input has 3 channel"),
        ({"mean": (123.7, 116.0, 103.0)}, "--mean has 123.7, but pixels are on the scale from 0 to 1; divide"),
        ({"std": (0.2, 0.0, 0.2)}, "--std 0.2,0,0.2 is too small"),
        ({"std": (1e-300, 1.0, 1.0)}, r"--std 1e-300,1,1 is too small to divide by; give values of at least 1.2e-38"),
        ({"mean": (-0.1, 0.0, 0.0)}, "--mean -0.1,0,0 is not within 0 and 1"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "--mean nan,0,0 is not within 0 and 1"),
        ({"color": "L"}, "--color L gives 1 channels, but the input takes 3"),
        ({"shape": (4, 8, 8)}, "the input has 4 channels; only 3"),
        ({"crop": (32, 48)}, "--crop 32,48 needs --resize, too"),
        ({"crop": (32,), "resize": (40,)}, "a crop of 32 does not give the input's size 32,48"),
        (
            {"resize": (40, 48)},
            "--resize 40,48 does not give the input's size 32,48; if the centre is to be kept, add --crop 32,48",
        ),
        ({"resize": (30,)}, "--resize 30 is smaller than the input's 32,48, so every image would be padded"),
        ({"resize": (40, 40), "crop": (32, 48)}, "--resize 40,40 is smaller"),
        ({"resize_mode": "shorter", "resize": (40, 40)}, "--resize 40,40 is smaller"),
        ({"resize_mode": "shorter"}, "--resize-mode shorter needs --resize"),
        ({"resize_mode": "exact", "resize": (40,)}, "is one size, but --resize-mode exact needs H,W"),
        ({"resize_mode": "letterbox", "resize": (40,)}, "--resize 40 does not give the input's size 32,48"),
        ({"crop_pct": 0.9, "resize": (40,)}, "leave out --resize"),
        ({"crop_pct": 0.9, "resize_mode": "fit"}, "no meaning with --resize-mode fit"),
        ({"crop_pct": 0.9, "crop": (30,)}, "a crop of 30 does not give the input's size 32,48"),
        ({"crop_pct": 1.1}, "is smaller than the input's 32,48, so every image would be padded"),
        ({"interpolation": "area"}, "pillow has no interpolation 'area'; choose .*, or --resize-library opencv"),
        ({"interpolation": "box", **CV}, "opencv has no interpolation 'box'"),
        ({"pad": Pad((1.0, 2.0))}, "--pad has 2 values, but the input has 3"),
        ({"scale": 1.0, "mean": (300.0,) * 3}, "--mean has 300, but pixels are on the scale from 0 to 255"),
        ({"scale": 0.5, "mean": None, "std": None}, "normalised pixels of 0 to 127.5"),
    ],
)
def test_what_is_missing_or_contradictory_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        of_network(given(**changes))


def test_a_built_in_architecture_keeps_what_is_not_said() -> None:
    assert changed(Given(), IMAGENET) is IMAGENET
    half = changed(Given(mean=(0.5,) * 3, std=(0.5,) * 3), IMAGENET)
    assert (half.mean, half.resize, half.crop) == ((0.5,) * 3, IMAGENET.resize, (224, 224))
    larger = changed(Given(shape=(3, 288, 288), resize=(320,)), IMAGENET)
    assert (larger.resize, larger.crop, larger.mean) == (Resize("shorter", (320,)), (288, 288), IMAGENET.mean)
    assert changed(Given(resize=(292,), crop=(288,)), IMAGENET).crop == (288, 288)
    assert changed(Given(color="BGR"), IMAGENET).color == "BGR"
    assert changed(Given(interpolation="bicubic"), DIGITS).resize == Resize("exact", (28, 28), "bicubic")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"shape": (3, 288, 288)}, "288x288 pixels needs --resize, too"),
        ({"shape": (1, 224, 224)}, "--shape has 1 channels, but the preprocessing is for 3"),
        ({"mean": (0.5,) * 3}, "--std missing"),
        ({"resize": (200,)}, "is smaller than the input's 224,224"),
    ],
)
def test_a_built_in_architecture_with_contradictions(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        changed(Given(**flags), IMAGENET)


def test_padding_of_half_a_pixel_needs_floats() -> None:
    spec = of_network(given(resize_mode="letterbox", pad=Pad((127.5,))))
    assert contract.image_input(spec, "float32")[0].pad == Pad((127.5,) * 3)
    with pytest.raises(ExportError, match=r"pad.color is \[127.5, 127.5, 127.5\], expected whole numbers"):
        contract.image_input(spec, "uint8")
    with pytest.raises(ExportError, match="expected whole numbers"):
        of_tensor(Given(pad=Pad((0.5,))), TensorInfo("x", "UINT8", (8, 8, 3), "NHWC"))


def test_an_onnx_file_with_the_preprocessing_of_training() -> None:
    base = of_network(given(shape=(3, 32, 32), resize=(40,), interpolation="bicubic", crop_rounding="down"))
    fixed = TensorInfo("x", "FP32", (3, 32, 32), "NCHW")
    spec, known = of_tensor(Given(), fixed, base)
    assert (spec, known) == (replace(base, normalize="host"), fixed)
    # Its size is used if the file leaves it open; flags change it.
    assert of_tensor(Given(), TensorInfo("x", "FP32", (3, -1, -1), "NCHW"), base)[1] == fixed
    assert of_tensor(Given(interpolation="box"), fixed, base)[0].resize == Resize("shorter", (40,), "box")
    pixels = of_tensor(Given(), TensorInfo("x", "UINT8", (32, 32, 3), "NHWC"), base)[0]
    assert (pixels.mean, pixels.std, pixels.normalize, pixels.resize) == ((0.0,) * 3, (1.0,) * 3, "none", base.resize)
    with pytest.raises(ExportError, match="an input of 48x48 pixels needs --resize, too"):
        of_tensor(Given(), TensorInfo("x", "FP32", (3, 48, 48), "NCHW"), base)


def test_an_onnx_files_input() -> None:
    tensor = TensorInfo("x", "FP32", (3, 32, 48), "NCHW")
    spec, known = of_tensor(Given(**HALF, resize=(40,)), tensor)
    assert known == tensor
    assert (spec.normalize, spec.crop, spec.mean) == ("host", (32, 48), HALF["mean"])
    last = TensorInfo("x", "FP32", (32, 48, 3), "NHWC")
    assert of_tensor(Given(**HALF), last)[1] == last
    spec, known = of_tensor(Given(), TensorInfo("x", "UINT8", (32, 48, 3), "NHWC"))
    assert (spec.normalize, spec.resize) == ("none", Resize("exact", (32, 48)))


@pytest.mark.parametrize("flags", [{"shape": (3, 24, 20)}, {"resize": (24, 20)}, {"resize": (30,), "crop": (24, 20)}])
def test_open_sizes_come_from_the_flags(flags: dict[str, Any]) -> None:
    spec, known = of_tensor(Given(**HALF, **flags), TensorInfo("x", "FP32", (3, -1, -1), "NCHW"))
    assert known.shape == (3, 24, 20)
    assert spec.crop or spec.resize == Resize("exact", (24, 20))


@pytest.mark.parametrize(
    ("flags", "tensor", "message"),
    [
        (HALF, TensorInfo("x", "FP32", (3, -1, -1), "NCHW"), "'x' leaves its size open; give a size"),
        ({**HALF, "shape": (3, 8, 8)}, TensorInfo("x", "FP32", (3, 9, 9), "NCHW"), "is 3,8,8, but the file's .* 3,9,9"),
        ({**HALF, "shape": (1, 9, 9)}, TensorInfo("x", "FP32", (3, 9, 9), "NCHW"), "is 1,9,9, but the file's .* 3,9,9"),
        ({}, TensorInfo("x", "FP32", (3, 9, 9), "NCHW"), "--mean and --std missing"),
        (HALF, TensorInfo("x", "UINT8", (9, 9, 3), "NHWC"), "takes uint8 pixels and normalises them itself"),
    ],
)
def test_an_onnx_files_contradictions(flags: dict[str, Any], tensor: TensorInfo, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        of_tensor(Given(**flags), tensor)
