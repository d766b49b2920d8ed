import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnserve_export import checkpoints
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.architectures.googlenet import GoogLeNet
from cnnserve_export.errors import ExportError


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    return checkpoints.build(ARCHITECTURES["resnet18"], classes, seed)


def test_a_fitting_state_dict_is_loaded_and_accounted_for(tmp_path: Path) -> None:
    source, loaded = network(seed=1), network()
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    origin = checkpoints.load(loaded, path)
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert origin == {"source": "file", "file": "weights.pth", "sha256": digest}


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    for key in ("conv1.weight", *(key for key in state if key.startswith("layer4.1."))):
        if not key.endswith("num_batches_tracked"):
            del state[key]
    state["head.weight"] = torch.zeros(1)
    state["fc.weight"] = torch.zeros(7, 512)
    path = tmp_path / "other.pth"
    torch.save(state, path)
    untouched = network()
    with pytest.raises(ExportError) as caught:
        checkpoints.load(untouched, path)
    text = str(caught.value)
    assert "11 missing: conv1.weight, layer4.1.conv1.weight" in text
    assert "and 1 more" in text
    assert "1 unexpected: head.weight" in text
    assert "1 misshapen: fc.weight (7x512 in the file, 10x512 in the network)" in text
    assert torch.equal(untouched.get_parameter("fc.weight"), network().get_parameter("fc.weight"))


def test_old_files_without_batch_counters_load(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    state = {key: value for key, value in network().state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, path)
    checkpoints.load(network(seed=1), path)


def test_googlenet_with_auxiliary_heads_loads_without_them(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["googlenet"]
    path = tmp_path / "googlenet.pth"
    source = GoogLeNet(6, aux_logits=True)
    torch.save(source.state_dict(), path)
    loaded = checkpoints.build(architecture, 6)
    checkpoints.load(loaded, path, architecture.training_only)
    assert torch.equal(loaded.get_parameter("fc.weight"), source.fc.weight)
    with pytest.raises(ExportError, match=r"unexpected: aux1\.conv"):
        checkpoints.load(loaded, path)


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("sprung"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Trap(), "not a plain PyTorch state dict"),
        (nn.Linear(1, 1), "not a plain PyTorch state dict"),
        ([torch.zeros(1)], "holds a list"),
        ({"state_dict": {"fc.bias": torch.zeros(1)}, "epoch": 3}, "state_dict, epoch hold no tensors"),
    ],
)
def test_anything_but_a_flat_state_dict_is_refused(
    content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ExportError, match=message):
        checkpoints.load(network(), tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", pickle.dumps(Path("x"))])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(ExportError, match="not a plain PyTorch state dict"):
        checkpoints.load(network(), tmp_path / "weights.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nowhere\.pth cannot be read: No such file"):
        checkpoints.load(network(), tmp_path / "nowhere.pth")
