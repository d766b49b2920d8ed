"""torchvision: the fields of the transforms that belong to its weights (`weights.transforms()`)."""

from cnnserve.repository.manifest import INTERPOLATIONS, Preprocessing, Resize
from cnnserve_export.configs.fields import Fields

_INTERPOLATIONS = {str(name): name for name in INTERPOLATIONS["pillow"]}


def read(fields: Fields) -> Preprocessing:
    """Returns the preprocessing of `torchvision.transforms._presets.ImageClassification`. Raises `ExportError`."""
    size = fields.sizes("resize_size", fields.needed("resize_size"), (1, 2))
    crop = fields.sizes("crop_size", fields.needed("crop_size"), (1, 2))
    # As text of the enumeration, too: InterpolationMode.BILINEAR.
    named = str(fields.value("interpolation", "bilinear")).rpartition(".")[2].lower()
    interpolation = fields.choice("interpolation", named, _INTERPOLATIONS)
    mean, std = fields.numbers("mean"), fields.numbers("std")
    if len(mean) not in (1, 3) or len(std) != len(mean):
        raise fields.wrong("mean and std", [list(mean), list(std)], "1 or 3 values each")
    # On images of Pillow it has no effect.
    fields.finish(("antialias",))
    return Preprocessing(
        "RGB" if len(mean) == 3 else "L",
        Resize("shorter" if len(size) == 1 else "exact", size, interpolation),
        (crop[0], crop[-1]),
        mean,
        std,
        "graph",
    )
