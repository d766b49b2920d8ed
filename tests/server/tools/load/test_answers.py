"""Errors in messages of responses whose status is OK."""

from cnnserve.tools.load.answers import classify, classify_stream, infer_stream
from cnnserve.wire import classifier_pb2 as pb
from cnnserve.wire import open_inference_pb2 as oip

GOOD = pb.ImageResult(classes=[pb.Class(index=300, label="cat", probability=0.5)])
FULL = pb.ImageResult(error=pb.Error(code=8, message="the queue is full"))


def response(*results: pb.ImageResult) -> pb.ClassifyResponse:
    return pb.ClassifyResponse(model="m", version="1", results=results, timings=pb.Timings(total_us=1 << 40))


def test_images() -> None:
    assert classify(response(GOOD, GOOD).SerializeToString()) == "OK"
    assert classify(response(GOOD, FULL).SerializeToString()) == "RESOURCE_EXHAUSTED"
    assert classify(response(pb.ImageResult(error=pb.Error(code=99))).SerializeToString()) == "UNKNOWN"


def test_streams_of_images() -> None:
    good = pb.ClassifyStreamResponse(id="a", response=response(GOOD))
    image = pb.ClassifyStreamResponse(id="a", response=response(FULL))
    whole = pb.ClassifyStreamResponse(id="a", error=pb.Error(code=4, message="late"))
    statuses = [classify_stream(message.SerializeToString()) for message in (good, image, whole)]
    assert statuses == ["OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"]


def test_streams_of_tensors() -> None:
    good = oip.ModelStreamInferResponse(infer_response=oip.ModelInferResponse(model_name="m"))
    assert infer_stream(good.SerializeToString()) == "OK"
    assert infer_stream(oip.ModelStreamInferResponse(error_message="no").SerializeToString()) == "error in the stream"
