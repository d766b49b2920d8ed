"""What a library says of the server's insides does not reach clients."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.process.redaction import redacted


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot identify image file <_io.BytesIO object at 0x7f3a5c0d1e90>", "cannot identify image file the data"),
        ("broken <PIL.PngImagePlugin.PngStream at 0x7f3a5c0d1e90>", "broken the data"),
        ("double free at 0x7f3a5c0d1e90", "double free at an address"),
        ("Load model from /srv/models/m/1/model.onnx failed", "Load model from model.onnx failed"),
        ("[Errno 2] No such file: '/srv/models/m/weights.bin'", "[Errno 2] No such file: 'weights.bin'"),
        ("~/models/m/model.onnx is damaged", "model.onnx is damaged"),
        (
            "graph.cc:4479 InjectExternalInitializersFromFilesInMemory External initializer: FB is out of bounds",
            "External initializer: FB is out of bounds",
        ),
        (
            "/onnxruntime_src/onnxruntime/core/graph/model.cc:182 onnxruntime::Model::Model(onnx::ModelProto&&, "
            "const onnxruntime::PathString&, const std::vector<int>*) ModelProto does not have a graph.",
            "ModelProto does not have a graph.",
        ),
        (
            "tensorprotoutils.cc:410 virtual common::Status onnxruntime::utils::Load(std::function<void (int)>) const "
            "The size is wrong",
            "The size is wrong",
        ),
        ("model.cc:31: no graph", "no graph"),
    ],
)
def test_what_concerns_the_server_only_is_taken_out(text: str, told: str) -> None:
    assert redacted(text) == told


@pytest.mark.parametrize(
    "text",
    [
        "image 0 of 1: the 168 bytes, which begin with b'iVBORw0K', are not an image",
        "see https://github.com/onnx/onnx/issues/1",
        "config.pbtxt line 3: expected a number, got 'x'",
        "input 'a/b/c' has shape [1,3], expected 3/4 of it",
        "the operator Conv(11) in domain ai.onnx is not implemented (node /layer1)",
        "opset 0x11",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text


@given(st.text(max_size=200))
def test_any_text_stays_a_text_and_is_taken_out_once(text: str) -> None:
    assert "0x" + "7" * 12 + ">" not in redacted(f"{text} <a.B object at 0x{'7' * 12}>")


def test_half_characters_are_escaped() -> None:
    assert redacted("\ud800x and é and \udcff.bin") == r"\ud800x and é and \udcff.bin"
