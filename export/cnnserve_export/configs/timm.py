"""timm: `pretrained_cfg` of a model, its data config, or the config.json that timm publishes with weights."""

import math

from cnnserve.repository.manifest import INTERPOLATIONS, Interpolation, Pad, Preprocessing, Resize, ResizeMode
from cnnserve_export.configs.fields import Fields

# timm's own defaults, for what a config leaves out.
_CROP_PCT = 0.875
_INTERPOLATION = "bicubic"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_INTERPOLATIONS = {str(name): name for name in INTERPOLATIONS["pillow"]}
_CROP_MODES: dict[str, ResizeMode] = {"center": "shorter", "squash": "exact", "border": "letterbox"}
# Where weights come from, what the network looks like, and sizes for other ways to run it.
_HARMLESS = (
    *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "custom_load"),
    *("test_input_size", "test_crop_pct", "min_input_size", "fixed_input_size"),
    *("num_classes", "label_offset", "label_names", "label_descriptions"),
    *("pool_size", "test_pool_size", "first_conv", "classifier"),
    *("license", "description", "origin_url", "paper_name", "paper_ids", "notes"),
)


def read(fields: Fields) -> Preprocessing:
    """Returns the preprocessing of `timm.data.create_transform` with this config. Raises `ExportError`."""
    # In a config.json everything else is about the network.
    fields = fields.inner("pretrained_cfg") or fields
    channels, *size = fields.sizes("input_size", fields.needed("input_size"), (3,))
    height, width = size
    mode = fields.choice("crop_mode", fields.value("crop_mode", "center"), _CROP_MODES)
    share = fields.number("crop_pct", _CROP_PCT)
    interpolation = fields.choice("interpolation", fields.value("interpolation", _INTERPOLATION), _INTERPOLATIONS)
    mean, std = fields.numbers("mean", _MEAN), fields.numbers("std", _STD)
    if channels not in (1, 3):
        raise fields.wrong("input_size", [channels, *size], "1 or 3 channels")
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise fields.wrong(name, list(values), f"{channels} value(s)")
    fields.finish(_HARMLESS)
    return Preprocessing(
        "RGB" if channels == 3 else "L",
        _resize(mode, (math.floor(height / share), math.floor(width / share)), interpolation),
        (height, width),
        mean,
        std,
        "graph",
        pad=Pad(tuple(float(round(255 * value)) for value in mean)) if mode == "letterbox" else None,
    )


def _resize(mode: ResizeMode, size: tuple[int, int], interpolation: Interpolation) -> Resize:
    if mode == "shorter" and size[0] == size[1]:
        return Resize(mode, size[:1], interpolation)
    return Resize(mode, size, interpolation)
