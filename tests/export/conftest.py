import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from cnnserve.repository.manifest import Preprocessing, Resize
from cnnserve_export import convert, golden, pipeline
from exporting import Exports, exports

TINY_IMAGES = Preprocessing(
    color="RGB",
    resize=Resize("shorter", (10,)),
    crop=(8, 8),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    normalize="graph",
)
_CONVERTED: dict[bytes, bytes] = {}


class TinyNet(nn.Module):
    """From 8 x 8 colour images to 4 classes. Dropout and batch normalisation make training differ from serving."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(5 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


@pytest.fixture(scope="module", autouse=True)
def one_thread(one_cpu: None) -> None:
    """No test of the exporter depends on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", name="exports")
def exports_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    """Starts exports of LeNet-5 in processes of their own."""
    with exports(tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture
def converts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks torch's exporter once for each network, which takes most of a second. For tests of what comes after it."""
    trace = convert._trace

    def once(network: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
        key = io.BytesIO()
        _ByValue(key).dump((network, example, opset))
        if key.getvalue() not in _CONVERTED:
            _CONVERTED[key.getvalue()] = trace(network, example, opset).SerializeToString()
        return onnx.ModelProto.FromString(_CONVERTED[key.getvalue()])

    monkeypatch.setattr(convert, "_trace", once)


class _ByValue(pickle.Pickler):
    """Pickles networks with the same classes and values to the same bytes. torch's own pickles contain addresses."""

    def persistent_id(self, item: object) -> object:
        return item.detach().numpy() if isinstance(item, Tensor) else None


@pytest.fixture(name="tiny_export")
def tiny_export_fixture() -> Callable[..., pipeline.Export]:
    """Makes an export that takes about a second."""
    return tiny_export


def tiny_export(repository: Path, **changes: Any) -> pipeline.Export:
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "network": TinyNet(),
        "architecture": "tiny",
        "class_count": 4,
        "preprocessing": TINY_IMAGES,
        "weights": {"source": "random", "seed": "0"},
        "golden_images": golden.single(golden.encode_png(golden.picture(0, 30, 40))),
        "repository": repository,
        "name": "tiny",
        "max_batch_size": 8,
    }
    return pipeline.Export(**{**fields, **changes})
