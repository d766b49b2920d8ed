"""Images as base64 in JSON: `{"b64": TEXT}`, as the clients of TensorFlow Serving and KServe send them."""

import binascii
from typing import Any

from cnnserve.errors import InvalidInput
from cnnserve.transports.http.body import MAX_JSON_BYTES, read_object

KEY = "b64"
# What to do with a body that is too large: base64 adds a third.
AS_FILES = (
    "send images as files of a form (multipart/form-data) or as the body itself, or start the server with a larger "
    "--max-message-mib"
)
# In bodies larger than other JSON may be, which only images need.
_MAX_VALUES = 100_000
# Decoded in about 0.3 ms, so that other threads have their turns. A multiple of four.
_PIECE = 2**18


def read(data: bytes) -> dict[str, Any]:
    """Returns the JSON object in a body that may consist of images, so it may be as large as any body.

    Raises `InvalidInput`, also if a body that is larger than other JSON consists of other values than images.
    """
    values = sum(data.count(mark) for mark in (b",", b"[", b"{")) if len(data) > MAX_JSON_BYTES else 0
    if values > _MAX_VALUES:
        raise InvalidInput(
            f"the JSON body has {len(data)} bytes with more than {_MAX_VALUES} values; beyond {MAX_JSON_BYTES} bytes, "
            "only base64 images may be in it; send tensors as binary data to /v2/models/MODEL/infer"
        )
    return read_object(data, max_bytes=len(data))


def is_image(value: object) -> bool:
    """Returns whether a value of JSON is an object with the key `b64`."""
    return isinstance(value, dict) and KEY in value


def take(value: dict[str, Any], where: str) -> bytes:
    """Returns the bytes of `{"b64": TEXT}`, and removes the text from it to free its memory. Raises `InvalidInput`."""
    text = value.pop(KEY, None)
    if value:
        raise InvalidInput(f"{where} has the unknown key {next(iter(value))!r:.100} beside {KEY}; remove it")
    if not isinstance(text, str):
        raise InvalidInput(f"{KEY} of {where} is {text!r:.100}, expected a string")
    if text.startswith("data:"):
        # As browsers give it: data:image/png;base64,TEXT.
        text = text[text.find(",") + 1 :]
    if any(space in text for space in "\r\n \t"):
        text = "".join(text.split())
    try:
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        return b"".join([binascii.a2b_base64(piece, strict_mode=True) for piece in pieces])
    except ValueError as error:
        raise InvalidInput(f"{KEY} of {where} is no base64: {error}") from error
