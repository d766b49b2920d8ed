"""Turns a row of a model's input back into a picture, so that people see what the network sees."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnserve.repository.manifest import Preprocessing, TensorInfo


def png(row: NDArray[np.generic], spec: Preprocessing, tensor: TensorInfo) -> bytes:
    """Returns a PNG of the pixels in a row: grey, or RGB also if the network takes BGR."""
    pixels = _pixels(row, spec, tensor)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(row: NDArray[np.generic], spec: Preprocessing, tensor: TensorInfo) -> NDArray[np.uint8]:
    image = row.transpose(1, 2, 0) if tensor.layout == "NCHW" else row
    if tensor.datatype == "UINT8":
        pixels = image.astype(np.uint8)
    else:
        values = image.astype(np.float32)
        if spec.normalize == "host":
            values = values * np.asarray(spec.std, np.float32) + np.asarray(spec.mean, np.float32)
        pixels = np.clip(np.rint(values / spec.scale), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[:, :, ::-1] if spec.color == "BGR" else pixels)
