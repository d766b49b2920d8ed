"""Existing ONNX classifiers: imported with the command, served by a real server, called with the real client."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import foreign_networks
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.classification import softmax
from cnnserve.repository import manifest as manifests
from cnnserve_client import Client
from cnnserve_export import golden
from cnnserve_export.cli import import_onnx
from foreign_networks import onnx_file
from support import CLASSES, picture, serving, tiny_onnx

pytestmark = pytest.mark.usefixtures("one_cpu")

FLAGS = "--mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --resize 18 --max-batch-size 8"


class OneAtATime(nn.Module):
    """Adds a token. The exporter fixes the batch size of the token to that of its example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = foreign_networks.network("densenet")

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([torch.zeros(1, 1, 5).expand(x.shape[0], -1, -1), self.inner(x)[:, None]], dim=1)
        return tokens.sum(dim=1)


def test_imported_models_answer_through_the_client(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    labels = f"--labels {tmp_path}/names.txt"
    files = {
        "mobile": onnx_file(tmp_path / "mobile.onnx", foreign_networks.network("mobilenet"), dynamic=False),
        "single": onnx_file(tmp_path / "single.onnx", OneAtATime().eval(), dynamic=False),
    }
    (tmp_path / "tiny.onnx").write_bytes(tiny_onnx())
    for path in files.values():
        assert import_onnx(f"{path} {FLAGS} {labels} --repository {repository}".split()) == 0
    assert import_onnx(f"{tmp_path}/tiny.onnx --repository {repository}".split()) == 0

    images = [golden.encode_png(golden.picture(seed, 30, 24 + seed)) for seed in range(5)]
    with serving(tmp_path / "server.log", repository) as server, Client(server.address) as client:
        for name, path in files.items():
            manifest = manifests.read(repository / name / "1")
            assert manifest is not None
            assert manifest.max_batch_size == (8 if name == "mobile" else 1)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
            results = [
                result
                for first in range(0, 5, manifest.max_batch_size)
                for result in client.classify(
                    images[first : first + manifest.max_batch_size], model=name, top_k=5
                ).results
            ]
            for image, result in zip(images, results, strict=True):
                expected = softmax(session.run(None, {"pixels": preprocessor.encoded(image)[None]})[0][0])
                best = int(np.argmax(expected))
                assert (result.top.index, result.top.label) == (best, ["ant", "bee", "cat", "dog", "eel"][best])
                got = {item.index: item.probability for item in result.classes}
                assert [got[index] for index in range(5)] == pytest.approx(list(expected), abs=1e-4)
        for kind in CLASSES:
            [result] = client.classify(picture(kind), model="tiny").results
            assert result.top.index == CLASSES.index(kind)
    assert onnx.load(repository / "mobile/1/model.onnx").graph.input[0].name == "pixels"
