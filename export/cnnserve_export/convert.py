"""Converts an nn.Module to ONNX: normalisation and softmax in the graph, any batch size, the same bytes every time."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from cnnserve.repository.manifest import OnnxInfo
from cnnserve_export.contract import DEFAULT_OPSET, INPUT_NAME, OUTPUT_NAME, Contract
from cnnserve_export.errors import ExportError
from cnnserve_export.outputs import Output
from cnnserve_export.user_code import told

MODEL_FILE = "model.onnx"

# The newest version that all runtimes with these operator sets can read; torch's own choice changes with its version.
IR_VERSION = 10

# If the example has a batch size of 1, torch's exporter makes the batch size a constant (pytorch#157621).
_EXAMPLE_BATCH = 2


def to_onnx(network: nn.Module, contract: Contract, path: Path, opset: int = DEFAULT_OPSET) -> OnnxInfo:
    """Writes `network` as one ONNX file without external data; returns the manifest's entry for the file.

    `network` takes normalised images (N, C, H, W) and returns what `contract.returned` says. Input and
    output of the file are those of `contract`, for any N.
    Raises `ExportError` if torch cannot convert the network, or if the file has another shape.
    """
    served = _Served(network, contract).eval()
    dtype = torch.uint8 if contract.input.datatype == "UINT8" else torch.float32
    model = _trace(served, torch.zeros((_EXAMPLE_BATCH, *contract.input.shape), dtype=dtype), opset)
    _check_shapes(model, contract.class_count)
    write(model, path)
    return OnnxInfo(path.name, _opset(model), model.ir_version, "fp32")


def write(model: onnx.ModelProto, path: Path) -> None:
    """Writes `model` with the same bytes every time, and without paths of this machine."""
    model.ir_version = IR_VERSION
    _strip(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def probabilities(answers: Tensor, returned: Output) -> Tensor:
    """Returns the probabilities (N, classes) for what a network returned; `activation.probabilities` for torch."""
    if returned.two_classes:
        answers = answers.reshape(-1, 1)
    if returned.adds is not None:
        answers = torch.softmax(answers, dim=1) if returned.adds == "softmax" else torch.sigmoid(answers)
    return torch.cat([1 - answers, answers], dim=1) if returned.two_classes else answers


class _Served(nn.Module):
    """The network as the server runs it: rows (N, *contract.input.shape) to probabilities (N, classes)."""

    def __init__(self, network: nn.Module, contract: Contract) -> None:
        super().__init__()
        self.network = network
        spec = contract.preprocessing
        self._returned = contract.returned
        self._channels_last = contract.input.layout == "NHWC"
        self._normalises = spec.normalize == "graph"
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        # (image * scale - mean) / std, as one multiplication and one addition
        self.register_buffer("scale", (spec.scale / std).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2) if self._channels_last else image  # N, C, H, W
        # The usual order in memory, on which networks rely that call x.view().
        x = x.to(torch.float32, memory_format=torch.contiguous_format)
        if self._normalises:
            x = x * self.get_buffer("scale") + self.get_buffer("shift")
        return probabilities(self.network(x), self._returned)


def _trace(network: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        # Each part of torch's exporter raises errors of its own. Users can act on the cause, which is in their network.
        raise ExportError(
            f"torch.onnx.export cannot convert the network: {told(error.__cause__ or error)}; "
            "write its forward so that it takes the same path for every image and uses operators that ONNX has"
        ) from error
    if program is None:
        raise ExportError(
            "torch.onnx.export returned no program; install the version of torch that constraints.txt names"
        )
    model: onnx.ModelProto = program.model_proto
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hides messages of torch's exporter about its own parts, and the graphs that it prints if it fails."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        # "torchvision is not installed. Skipping torchvision::nms"
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _strip(model: onnx.ModelProto) -> None:
    # torch's exporter writes source paths and stack traces to every node. They would show paths of this machine and
    # change the digest.
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    # Shapes of intermediate tensors, which every runtime infers.
    graph.ClearField("value_info")


def _check_shapes(model: onnx.ModelProto, class_count: int) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        batch = value.type.tensor_type.shape.dim[0]
        if not batch.dim_param:
            raise ExportError(
                f"torch.onnx.export fixed the batch of {value.name!r} at {batch.dim_value}, because the network uses "
                "a constant as batch size; use x.flatten(1) or x.shape[0]"
            )
    output = [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim[1:]]
    if output != [class_count]:
        raise ExportError(f"the network returns {output} values for an image, expected {[class_count]} classes")


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))
