"""Preprocessing from the files of timm, Hugging Face and torchvision."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository.manifest import Pad, Preprocessing, Resize, TensorInfo
from cnnserve_export import configs
from cnnserve_export.errors import ExportError
from torchvision_pixels import Oracle

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


def written(folder: Path, content: Any) -> Path:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(folder: Path, content: Any) -> Preprocessing:
    return configs.read(written(folder, content))


def photograph() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).resize((501, 333)).save(buffer, "PNG")
    return buffer.getvalue()


# timm: what `model.pretrained_cfg` holds, with the file it is published in around it, and plain data configs.
PRETRAINED = {
    "url": "somewhere",
    "hf_hub_id": "timm/",
    "architecture": "convnext_atto",
    "tag": "d2_in1k",
    "custom_load": False,
    "input_size": [3, 224, 224],
    "test_input_size": [3, 288, 288],
    "fixed_input_size": False,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "test_crop_pct": 0.95,
    "crop_mode": "center",
    "mean": list(MEAN),
    "std": list(STD),
    "num_classes": 1000,
    "pool_size": [7, 7],
    "first_conv": "stem.0",
    "classifier": "head.fc",
}
TIMM: dict[str, Any] = {
    "pretrained_cfg": PRETRAINED,
    "config.json": {"architecture": "convnext_atto", "num_classes": 1000, "pretrained_cfg": PRETRAINED},
    "defaults": {"input_size": [3, 240, 240]},
    "bilinear, 95 %": {"input_size": [3, 256, 256], "crop_pct": 0.95, "interpolation": "bilinear", "mean": [0, 0, 0]},
    "squash": {"input_size": [3, 192, 192], "crop_pct": 0.9, "crop_mode": "squash", "mean": HALF, "std": HALF},
    "border": {"input_size": [3, 200, 224], "crop_pct": 1.0, "crop_mode": "border", "mean": MEAN, "std": STD},
    "larger than the image": {"input_size": [3, 224, 224], "crop_pct": 1.125},
    "not square": {"input_size": [3, 160, 256], "crop_pct": 0.9, "interpolation": "lanczos"},
}
DEFAULTS = {"interpolation": "bicubic", "mean": MEAN, "std": STD, "crop_pct": 0.875, "crop_mode": "center"}


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_config_gives_timms_own_pixels(oracle: Oracle, name: str, tmp_path: Path) -> None:
    spec = read(tmp_path, TIMM[name])
    stated = TIMM[name].get("pretrained_cfg", TIMM[name])
    # What `timm.data.resolve_data_config` makes of it.
    used = {**DEFAULTS, **{key: stated[key] for key in (*DEFAULTS, "input_size") if key in stated}}
    height, width = stated["input_size"][1:]
    tensor = TensorInfo("x", "FP32", (3, height, width), "NCHW")
    row = Preprocessor(dataclasses.replace(spec, normalize="host"), tensor).encoded(photograph())
    assert (row == oracle.timm(photograph(), used, normalize=True)).all()


def test_timms_grey_networks(tmp_path: Path) -> None:
    spec = read(tmp_path, {"input_size": [1, 28, 28], "mean": [0.13], "std": [0.3], "crop_pct": 1})
    assert (spec.color, spec.mean, spec.resize) == ("L", (0.13,), Resize("shorter", (28,), "bicubic"))


TORCHVISION = {"crop_size": [224], "resize_size": [232], "mean": list(MEAN), "std": list(STD)}


@pytest.mark.parametrize("more", [{}, {"interpolation": "InterpolationMode.BICUBIC", "antialias": True}])
def test_torchvisions_metadata(oracle: Oracle, more: dict[str, Any], tmp_path: Path) -> None:
    spec = read(tmp_path, {**TORCHVISION, **more})
    name = "bicubic" if more else "bilinear"
    assert spec == Preprocessing("RGB", Resize("shorter", (232,), name), (224, 224), MEAN, STD, "graph")
    pixels = Preprocessor(spec, TensorInfo("x", "UINT8", (224, 224, 3), "NHWC")).encoded(photograph())
    assert (pixels == oracle.pixels(photograph(), spec)).all()


# Hugging Face. The preprocessing that each processor's own code gives was compared with these by hand.
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(HALF),
    "image_std": list(HALF),
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
OLD = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": list(HALF),
    "image_std": list(HALF),
    "resample": 3,
    "size": 224,
}
CONVNEXT = {**OLD, "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875}
BIT = {
    **VIT,
    "image_processor_type": "BitImageProcessor",
    "crop_size": {"height": 448, "width": 448},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "resample": 3,
    "size": {"shortest_edge": 448},
}
EFFICIENTNET = {
    **VIT,
    "image_processor_type": "EfficientNetImageProcessor",
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "crop_size": {"height": 289, "width": 289},
    "do_center_crop": False,
    "include_top": True,
    "rescale_offset": False,
    "resample": 0,
}


def spec_of(resize: Resize | None, crop: tuple[int, int] | None = None, **more: Any) -> Preprocessing:
    fields: dict[str, Any] = {"color": "RGB", "mean": HALF, "std": HALF, "crop_rounding": "down", **more}
    return Preprocessing(resize=resize, crop=crop, normalize="graph", **fields)


SQUARE = Resize("exact", (224, 224))
BICUBIC = Resize("exact", (224, 224), "bicubic")
HUGGING_FACE: dict[str, tuple[dict[str, Any], Preprocessing]] = {
    "vit": (VIT, spec_of(SQUARE)),
    "vit fast": ({**VIT, "image_processor_type": "ViTImageProcessorFast", "default_to_square": None}, spec_of(SQUARE)),
    "vit old": ({**OLD, "feature_extractor_type": "ViTFeatureExtractor"}, spec_of(BICUBIC)),
    "vit not scaled": (
        {**VIT, "do_rescale": False, "do_normalize": False},
        spec_of(SQUARE, mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0),
    ),
    "deit old": (
        {
            **OLD,
            "feature_extractor_type": "DeiTFeatureExtractor",
            "size": 256,
            "crop_size": 224,
            "do_center_crop": True,
        },
        spec_of(Resize("exact", (256, 256), "bicubic"), (224, 224)),
    ),
    "convnext": (CONVNEXT, spec_of(Resize("shorter", (256,), "bicubic"), (224, 224))),
    "convnext, share by default": (
        {**CONVNEXT, "crop_pct": None, "size": {"shortest_edge": 288}},
        spec_of(Resize("shorter", (329,), "bicubic"), (288, 288)),
    ),
    "convnext, large": (
        {**CONVNEXT, "size": {"shortest_edge": 384}},
        spec_of(Resize("exact", (384, 384), "bicubic")),
    ),
    "bit": (BIT, spec_of(Resize("shorter", (448,), "bicubic"), (448, 448))),
    "bit, no resize": ({**BIT, "do_resize": False}, spec_of(None, (448, 448))),
    "bit, no crop": (
        {**BIT, "do_center_crop": False, "size": {"height": 384, "width": 320}},
        spec_of(Resize("exact", (384, 320), "bicubic")),
    ),
    "efficientnet": (
        EFFICIENTNET,
        spec_of(Resize("exact", (224, 224), "nearest"), mean=MEAN, std=tuple(value * value for value in STD)),
    ),
    "efficientnet, -1 to 1": (
        {**EFFICIENTNET, "rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False},
        spec_of(
            Resize("exact", (224, 224), "nearest"), mean=tuple(1 + value for value in MEAN), std=STD, scale=1 / 127.5
        ),
    ),
    "efficientnet, cropped": (
        {**EFFICIENTNET, "do_center_crop": True, "do_normalize": False, "size": {"height": 346, "width": 346}},
        spec_of(Resize("exact", (346, 346), "nearest"), (289, 289), mean=(0.0,) * 3, std=STD),
    ),
    "mobilevit": (
        {
            "image_processor_type": "MobileViTImageProcessor",
            "size": {"shortest_edge": 288},
            "crop_size": {"height": 256, "width": 256},
            "resample": 2,
        },
        spec_of(Resize("shorter", (288,)), (256, 256), color="BGR", mean=(0.0,) * 3, std=(1.0,) * 3),
    ),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_faces_processors(name: str, tmp_path: Path) -> None:
    content, expected = HUGGING_FACE[name]
    made = read(tmp_path, content)
    assert dataclasses.replace(made, mean=(), std=(), scale=1) == dataclasses.replace(
        expected, mean=(), std=(), scale=1
    )
    np.testing.assert_allclose((*made.mean, *made.std, made.scale), (*expected.mean, *expected.std, expected.scale))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds a list, expected a JSON object"),
        ("{", "is not JSON"),
        ({}, r"is no preprocessing that is known \(it has no fields\)"),
        ({"model_type": "vit"}, r"is no preprocessing that is known \(it has 'model_type'\)"),
        ({**VIT, "image_processor_type": "DonutImageProcessor"}, "image_processor_type is 'DonutImageProcessor', exp"),
        ({**VIT, "do_pad": True}, "do_pad is 'True', an effect that cnnserve does not know"),
        ({**VIT, "auto_map": {"AutoImageProcessor": "x.Y"}}, "auto_map is .*, an effect that"),
        ({**VIT, "size": {"shortest_edge": 224, "longest_edge": 300}}, "size is .*, expected height and width, or"),
        ({**VIT, "resample": 9}, "resample is '9', expected one of 0, 1, 2, 3, 4, 5"),
        ({**VIT, "resample": None}, "has no resample; add it"),
        ({**VIT, "image_mean": None}, "has no image_mean"),
        ({**VIT, "image_mean": [0.5, 0.5]}, "image_mean is .*, expected 3 values"),
        ({**VIT, "do_resize": "yes"}, "do_resize is 'yes', expected true or false"),
        ({**VIT, "rescale_factor": 0}, "rescale_factor is '0', expected a number above 0"),
        ({**BIT, "crop_size": {"height": 0, "width": 3}}, "crop_size is .* expected 1 or 2 size"),
        ({"crop_pct": 0.9}, "has no input_size"),
        ({**PRETRAINED, "crop_mode": "random"}, "crop_mode is 'random', expected one of center, squash, border"),
        ({**PRETRAINED, "interpolation": "random"}, "interpolation is 'random', expected one of"),
        ({**PRETRAINED, "crop_border_pixels": 4}, "crop_border_pixels is '4', an effect that"),
        ({**PRETRAINED, "mean": [float("nan")] * 3}, "mean is .*, expected a list of numbers"),
        ({**PRETRAINED, "input_size": [4, 8, 8]}, "input_size is .*, expected 1 or 3 channels"),
        ({**PRETRAINED, "std": [1, 1]}, "std is .*, expected 3 value"),
        ({**TORCHVISION, "max_size": 400}, "max_size is '400', an effect that"),
        ({**TORCHVISION, "interpolation": "cubic"}, "interpolation is 'cubic', expected one of"),
        ({**TORCHVISION, "crop_size": [True]}, "crop_size is .*, expected 1 or 2 size"),
    ],
)
def test_what_has_an_unknown_effect_is_named(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        read(tmp_path, content)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be read"):
        configs.read(tmp_path / "nothing.json")
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(TORCHVISION).encode())
    assert configs.read(tmp_path / "marked.json").size == (224, 224)


def test_a_border_has_the_colour_of_the_mean(tmp_path: Path) -> None:
    assert read(tmp_path, TIMM["border"]).pad == Pad((124.0, 116.0, 104.0))
