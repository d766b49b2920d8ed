"""The flags that say how an image becomes the input of a network."""

import argparse

from cnnserve_export import flag_types
from cnnserve_export.preparation import COLORS, CROP_ROUNDINGS
from cnnserve_export.resizing_flags import INTERPOLATIONS, LIBRARIES, RESIZE_MODES


def add(parser: argparse.ArgumentParser, description: str) -> None:
    """Adds the flags to `parser`, in a group of their own."""
    group = parser.add_argument_group("preprocessing", description)
    group.add_argument(
        "--preprocessing",
        type=flag_types.path,
        metavar="FILE",
        help="JSON file with the preprocessing of training, which the other flags change: a timm config, a "
        "preprocessor_config.json of Hugging Face, or the metadata of torchvision's weights (default: none)",
    )
    group.add_argument(
        "--shape", type=flag_types.shape, metavar="C,H,W", help="input of the network for one image, in pixels"
    )
    group.add_argument(
        "--scale",
        type=flag_types.scale,
        metavar="F",
        help="factor by which training multiplied pixels of 0 to 255, before --mean and --std; 1 for a network that "
        "takes 0 to 255 (default: 1/255)",
    )
    group.add_argument(
        "--mean",
        type=flag_types.numbers,
        metavar="M,M,M",
        help="mean of each channel, which training subtracted from the scaled pixels, in the order of --color",
    )
    group.add_argument(
        "--std",
        type=flag_types.numbers,
        metavar="S,S,S",
        help="standard deviation of each channel, by which training divided, in the order of --color",
    )
    group.add_argument(
        "--resize",
        type=flag_types.sizes,
        metavar="N|H,W",
        help="size of the resized image in pixels; N: the shorter side, the centre is kept; H,W: height and width "
        "(default: H,W of the input)",
    )
    group.add_argument(
        "--resize-mode",
        choices=RESIZE_MODES,
        help="shorter: keep the ratio, N for the shorter side, or cover H,W; exact: stretch to H,W; letterbox: keep "
        "the ratio, fit into H,W and pad; fit: height H, width by the ratio, at most W, padded on the right "
        "(default: shorter for N, exact for H,W)",
    )
    group.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        help="interpolation of the resize; box and hamming: pillow only, area: opencv only (default: bilinear)",
    )
    group.add_argument(
        "--resize-library",
        choices=LIBRARIES,
        help="library whose pixels the resized image has; pillow is also that of torchvision and timm; opencv needs "
        "the extra opencv (default: pillow)",
    )
    group.add_argument(
        "--crop",
        type=flag_types.sizes,
        metavar="N|H,W",
        help="centre of the resized image to keep, in pixels (default: H,W of the input)",
    )
    group.add_argument(
        "--crop-pct",
        type=flag_types.crop_share,
        metavar="P",
        help="share of the resized image that the crop keeps, instead of --resize: images are resized to H,W divided "
        "by P, rounded down, as timm does (above 0, default: none)",
    )
    group.add_argument(
        "--crop-rounding",
        choices=CROP_ROUNDINGS,
        help="rounding of the crop's left and upper edge; even: half a pixel to the even number, as torchvision and "
        "timm do; down: half a pixel down, as Hugging Face does (default: even)",
    )
    group.add_argument(
        "--pad",
        type=flag_types.padding,
        metavar="COLOR[,ALIGN]",
        help="colour of the border around an image that is smaller than the input: one pixel value of 0 to 255, or one "
        "for each channel in the order of --color; ALIGN: center, or start for an image at the upper left (default: "
        "0,center)",
    )
    group.add_argument(
        "--color", choices=COLORS, help="order of the channels; L is grey (default: RGB, or L for one channel)"
    )
