"""A web application that says what is in an uploaded photograph. One asyncio client serves all requests.

Run this in the folder of the repository. The extra `cpu` has what it needs: starlette, uvicorn and python-multipart.

    cnnserve serve --repository model_repo
    MODEL=lenet5 uvicorn --app-dir examples web_backend:application --port 8080
    curl -s -F photograph=@model_repo/lenet5/1/golden.png http://127.0.0.1:8080/classify

The client retries for `TIMEOUT_S`, so the application notices nothing if one of several servers restarts.
"""

import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cnnserve_client import AsyncClient, CnnserveError, InvalidInputError, QueueFullError

SERVERS = os.environ.get("SERVERS", "127.0.0.1:8001")  # several with commas between them
MODEL = os.environ.get("MODEL", "efficientnet_lite0")
TIMEOUT_S = 3.0
LARGEST_BYTES = 10 * 2**20


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, AsyncClient]]:
    """Makes the client inside the event loop of the application, and closes it at the end."""
    async with AsyncClient(SERVERS, timeout_s=TIMEOUT_S) as client:
        yield {"client": client}


async def classify(request: Request) -> JSONResponse:
    """Returns the three most probable classes of the form's file `photograph`."""
    async with request.form(max_files=1) as form:
        photograph = form.get("photograph")
        if not isinstance(photograph, UploadFile):
            raise HTTPException(400, "the form has no file 'photograph'")
        if (photograph.size or 0) > LARGEST_BYTES:
            raise HTTPException(413, f"the photograph has more than {LARGEST_BYTES} bytes")
        image = await photograph.read()
    answer = await request.state.client.classify(image, model=MODEL, top_k=3)
    result = answer.results[0]
    if result.error is not None:
        raise result.error
    classes = [{"label": one.label, "probability": round(one.probability, 4)} for one in result.classes]
    return JSONResponse({"classes": classes})


async def failed(_: Request, error: Exception) -> JSONResponse:
    """Returns 400 if the image is the cause, else 503."""
    if isinstance(error, InvalidInputError):
        return JSONResponse({"error": str(error)}, 400)
    logging.getLogger(__name__).error("%s", error)
    wait_s = math.ceil(error.retry_after_s) if isinstance(error, QueueFullError) else 1
    return JSONResponse({"error": "try again later"}, 503, {"Retry-After": str(wait_s)})


application = Starlette(
    routes=[Route("/classify", classify, methods=["POST"])],
    lifespan=lifespan,
    exception_handlers={CnnserveError: failed},
)
