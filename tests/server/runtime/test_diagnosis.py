"""Errors of ONNX Runtime and the server's errors for them. The texts are those of versions 1.31.1 and 1.32."""

import pytest

from cnnserve.repository.onnx_header import OnnxHeader
from cnnserve.runtime import diagnosis

SOURCE = "/onnxruntime_src/onnxruntime/core"
IR = (
    f"[ONNXRuntimeError] : 1 : FAIL : {SOURCE}/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, "
    "const onnxruntime::ModelOptions&) Unsupported model IR version: 99, max supported IR version: 14\n"
)
OPSET = (
    f"[ONNXRuntimeError] : 1 : FAIL : {SOURCE}/graph/model_load_utils.h:46 void "
    "onnxruntime::model_load_utils::ValidateOpsetForDomain(const std::string&, int) ONNX Runtime only *guarantees* "
    "support for models stamped with official released onnx opset versions. Opset 99 is under development and support "
    "for this is limited. Current official support for domain ai.onnx is till opset 28."
)
DRIVER = (
    f"{SOURCE}/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, common::Status> onnxruntime::CudaCall("
    "ERRTYPE, int) [with ERRTYPE = cudaError; bool THRW = true] CUDA failure 35: CUDA driver version is insufficient "
    "for CUDA runtime version ; GPU=-1 ; hostname=vm ; file=cuda_execution_provider.cc ; line=355 ; "
)
OPERATOR = "[ONNXRuntimeError] : 1 : FAIL : Fatal error: my:Foo(-1) is not a registered function/op"
INDICES = (
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the following indices\n"
    " index: 0 Got: 2 Expected: 1\n Please fix either the inputs/outputs or the model."
)
LIBRARY = "Failed to load libcudnn: libcudnn.so.9: cannot open shared object file: No such file or directory"


OLD_DRIVER = (
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version; "
    "install NVIDIA driver 580 or newer on the host, which CUDA 13 needs"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            DRIVER,
            OLD_DRIVER,
        ),
        (OPERATOR, "Fatal error: my:Foo(-1) is not a registered function/op"),
        (INDICES, "Got invalid dimensions for input: x for the following indices: index: 0 Got: 2 Expected: 1"),
        ("", "no reason given"),
    ],
)
def test_the_reason_without_its_origin(text: str, said: str) -> None:
    assert diagnosis.reason(text) == said


@pytest.mark.parametrize(
    ("text", "limit"), [(IR, "IR version 14"), (OPSET, "opset 28")], ids=["IR version", "operator set"]
)
def test_a_file_that_is_too_new_is_told_with_the_fix(text: str, limit: str) -> None:
    header = OnnxHeader(14, {"ai.onnx": 27, "my": 1})
    assert diagnosis.too_new(text, header, "onnxruntime-gpu", "1.31.1") == (
        "the file has IR version 14 and opset 27 of ai.onnx, opset 1 of my, but onnxruntime-gpu 1.31.1 reads up to "
        f"{limit}; pip install -U onnxruntime-gpu, or create the file again with cnnserve export … --opset 18 or "
        "torch.onnx.export(…, opset_version=18)"
    )


def test_a_file_whose_header_cannot_be_read_is_told_by_what_the_runtime_says() -> None:
    assert str(diagnosis.too_new(IR, None, "onnxruntime", "1")).startswith("the file has IR version 99, but onnx")
    assert str(diagnosis.too_new(OPSET, None, "onnxruntime", "1")).startswith("the file has opset 99 of ai.onnx, but")
    assert diagnosis.too_new(OPERATOR, None, "onnxruntime", "1") is None


def test_the_machine_is_told_from_the_model() -> None:
    assert diagnosis.is_device_failure(DRIVER)
    assert not diagnosis.is_device_failure(OPERATOR)
    assert diagnosis.library_in(LIBRARY) == "libcudnn.so.9"


@pytest.mark.parametrize(
    ("library", "fix"),
    [
        ("libcublasLt.so.13", 'pip install "cnnserve[gpu]"'),
        ("libcuda.so.1", "NVIDIA driver"),
        ("libnvinfer.so.10", "TensorRT"),
    ],
)
def test_a_missing_library_is_named_with_what_brings_it(library: str, fix: str) -> None:
    told = diagnosis.missing_library(library, "X")
    assert told.startswith(f"X cannot be used, because {library} is missing; ")
    assert fix in told


def test_the_cpu_wheel_has_to_go_first() -> None:
    both = diagnosis.not_built_in("X", ["onnxruntime", "onnxruntime-gpu"])
    assert both.count('run pip uninstall -y onnxruntime onnxruntime-gpu && pip install "cnnserve[gpu]"') == 1
    assert "uninstall" not in diagnosis.not_built_in("X", ["onnxruntime-gpu"])
