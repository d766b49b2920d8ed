"""`:classify`: images in, classes out. The body is an image, a form with files, or JSON with base64."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

from cnnserve.api.status import Code
from cnnserve.errors import InvalidInput
from cnnserve.model.version import INLINE_CLASSES
from cnnserve.process.threads import on_thread
from cnnserve.transports.http import base64_json
from cnnserve.transports.http.answers import HTTP_STATUS, answer
from cnnserve.transports.http.body import BodyReader
from cnnserve.transports.http.exchange import Exchange
from cnnserve.transports.http.message_json import as_json, float32_as_json
from cnnserve.transports.http.query import check_query
from cnnserve.wire import classifier_pb2 as pb

MAX_FILES = 1024
_FORM, _JSON = "multipart/form-data", "application/json"
_TOP_K, _IMAGES = "top_k", "images"
# Content types that do not tell what the body is. curl sends the second one for --data-binary.
_ANY = ("application/octet-stream", "application/x-www-form-urlencoded", "")
_UINT32 = re.compile(r"\d{1,9}", re.ASCII)


async def classify(exchange: Exchange) -> Response:
    """Returns the most probable classes of each image.

    If one of several images cannot be read, it has `{"error": ...}` in place of its result. If the only image cannot be
    read, the response has the status of its error, such as 400.
    """
    check_query(exchange.request, (_TOP_K,))
    path, top_k = exchange.path, _top_k(exchange.request.query_params.get(_TOP_K))
    request = pb.ClassifyRequest(model=path["model"], version=path.get("version", ""), top_k=top_k)
    kind = exchange.request.headers.get("content-type", "").split(";")[0].strip().lower()
    with exchange.body() as reader:
        if kind == _FORM:
            for file in await _files(exchange, reader):
                request.images.add(encoded=file)
        elif kind.startswith("image/") or kind in (*_ANY, _JSON):
            body = await reader.whole(fix=base64_json.AS_FILES if kind == _JSON else "")
            # No image begins with a brace, and many clients send JSON without its content type.
            if kind == _JSON or (kind in _ANY and body[:1] == b"{"):
                await exchange.limits.aside.run(len(body), _add_base64, body, request)
            else:
                request.images.add(encoded=body)
        else:
            raise HTTPException(
                415,
                f"content-type {kind[:100]!r} is not supported; send image/*, application/octet-stream, {_FORM} or "
                f"{_JSON} with base64",
            )
    response = await exchange.ask(request)
    if sum(len(result.classes) for result in response.results) > INLINE_CLASSES:
        return await on_thread(partial(_answer, response), "response")
    return _answer(response)


def _add_base64(body: bytes, request: pb.ClassifyRequest) -> None:
    value = base64_json.read(body)
    if base64_json.is_image(value):
        request.images.add(encoded=base64_json.take(value, "the body"))
        return
    images = value.pop(_IMAGES, None)
    if value:
        raise InvalidInput(f"the body has the unknown key {next(iter(value))!r:.100}, expected {_IMAGES}")
    if not isinstance(images, list) or not all(base64_json.is_image(item) for item in images):
        raise InvalidInput(
            f'the JSON has no images, expected {{"{base64_json.KEY}": TEXT}} or '
            f'{{"{_IMAGES}": [{{"{base64_json.KEY}": TEXT}}, ...]}}'
        )
    for index, item in enumerate(images):
        request.images.add(encoded=base64_json.take(item, f"image {index}"))


def _answer(response: pb.ClassifyResponse) -> Response:
    results = [_result(result) for result in response.results]
    if len(results) == 1 and "error" in results[0]:
        return answer(results[0], HTTP_STATUS.get(Code(response.results[0].error.code), 500))
    return answer(
        {
            "model": response.model,
            "version": response.version,
            "results": results,
            "timings": as_json(response.timings),
        }
    )


def _top_k(text: str | None) -> int:
    if text is None:
        return 0
    if not _UINT32.fullmatch(text):
        raise InvalidInput(f"top_k is {text[:100]!r}, expected a whole number from 0 to 999999999")
    return int(text)


def _result(result: pb.ImageResult) -> dict[str, Any]:
    if result.HasField("error"):
        return {"error": result.error.message}
    # `as_json` takes 5 us for each class, and a response may have 100,000 classes.
    return {
        "classes": [
            {"index": item.index, "label": item.label, "probability": float32_as_json(item.probability)}
            for item in result.classes
        ]
    }


class _Form(MultiPartParser):
    """Keeps files in memory: the limit of the body bounds their size, and a container may have no writable disk."""

    spool_max_size = 2**62

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is None:
            raise InvalidInput(
                f"the field {part.field_name!r:.100} of the form is no file; send each image as a file, such as -F "
                f"image=@FILE of curl, and {_TOP_K} in the query (?{_TOP_K}=3)"
            )

    def on_end(self) -> None:
        self.complete = True


async def _files(exchange: Exchange, reader: BodyReader) -> list[bytes]:
    form = _Form(exchange.request.headers, _stream(reader.pieces()), max_files=MAX_FILES, max_fields=1)
    try:
        items = (await form.parse()).multi_items()
    except (MultiPartException, FormParserError) as error:
        raise InvalidInput(f"the form cannot be read: {error}; send each image as a file: -F image=@FILE") from error
    if not getattr(form, "complete", False):
        raise InvalidInput("the form ends before its last boundary; send all of it")
    return [file.file.read() for _, file in items if isinstance(file, UploadFile)]


async def _stream(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    async for piece in pieces:
        yield piece
