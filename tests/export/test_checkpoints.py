import argparse
import hashlib
import io
import pickle
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from cnnserve_export import checkpoints
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.architectures.googlenet import GoogLeNet
from cnnserve_export.cli import export
from cnnserve_export.errors import ExportError


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    return checkpoints.build(ARCHITECTURES["resnet18"], classes, seed)


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3))


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
    assert "1 of another shape: fc.weight (7x512 in the file, 10x512 in the network)" in text
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
    account = checkpoints.load(loaded, path, architecture.training_only)
    assert account["dropped"] == "aux1, aux2"
    assert torch.equal(loaded.get_parameter("fc.weight"), source.fc.weight)
    with pytest.raises(ExportError, match=r"unexpected: aux1\.conv"):
        checkpoints.load(loaded, path)


WRAPPED: list[tuple[Callable[[dict[str, Any]], Any], dict[str, str]]] = [
    (lambda state: {"state_dict": state}, {"taken_from": "state_dict"}),
    (
        lambda state: {"epoch": 3, "model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}},
        {"taken_from": "model", "left_out": "epoch, optimizer"},
    ),
    # The value of `model` is often the name of the architecture.
    (
        lambda state: {"model": "tiny", "model_state_dict": state},
        {"taken_from": "model_state_dict", "left_out": "model"},
    ),
    (
        lambda state: {"model": {"state_dict": state}, "best": 0.5},
        {"taken_from": "model.state_dict", "left_out": "best"},
    ),
    (lambda state: {f"module.{key}": value for key, value in state.items()}, {"removed_prefix": "module."}),
    (
        lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        {"taken_from": "model", "removed_prefix": "module._orig_mod."},
    ),
    # timm's and torchvision's own training scripts.
    (
        lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1), "state_dict_ema": state},
        {"taken_from": "state_dict", "left_out": "args, state_dict_ema"},
    ),
    # Lightning.
    (
        lambda state: {"state_dict": prefixed(state, "net."), "hyper_parameters": {"lr": 0.1}},
        {"taken_from": "state_dict", "left_out": "hyper_parameters", "removed_prefix": "net."},
    ),
    (
        lambda state: {"state_dict": {**prefixed(state, "classifier.inner."), "loss.weight": torch.ones(3)}},
        {"taken_from": "state_dict", "left_out": "loss", "removed_prefix": "classifier.inner."},
    ),
    # torch.optim.swa_utils.AveragedModel
    (
        lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(3)},
        {"left_out": "n_averaged", "removed_prefix": "module."},
    ),
    (lambda state: {"ema": state, "accuracy": 90.1}, {"taken_from": "ema", "left_out": "accuracy"}),
]


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda state, other: {"model": other, "model_ema": state}, "model_ema"),
        (lambda state, other: {"state_dict": other, "state_dict_ema": prefixed(state, "module.")}, "state_dict_ema"),
        (lambda state, other: {**prefixed(other, "model."), **prefixed(state, "model_ema.")}, "model_ema"),
        (lambda state, other: {"state_dict": {**prefixed(other, "a."), **prefixed(state, "b.")}}, "b."),
    ],
)
def test_a_key_chooses_among_several_weights(wrap: Callable[[Any, Any], Any], key: str, tmp_path: Path) -> None:
    source, loaded = tiny(1), tiny()
    torch.save(wrap(source.state_dict(), tiny(2).state_dict()), tmp_path / "w.pt")
    origin = checkpoints.load(loaded, tmp_path / "w.pt", key=key)
    assert torch.equal(loaded.get_parameter("0.weight"), source.get_parameter("0.weight"))
    assert origin["taken_from"].endswith(key)
    with pytest.raises(ExportError, match=r"w\.pt has nothing under 'none', which --weights-key names; it has "):
        checkpoints.load(loaded, tmp_path / "w.pt", key="none")


def test_a_key_without_a_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert export(["lenet5", "--weights-key", "x", "--repository", str(tmp_path)]) == 1
    assert "--weights-key has no effect without a file" in capsys.readouterr().err


def test_the_tar_format_of_early_versions_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        for member in ("sys_info", "pickle", "tensors"):
            data = pickle.dumps({}, 2)
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(ExportError, match=r"old\.pth is a checkpoint in the \.tar format of PyTorch before 0\.2"):
        checkpoints.load(tiny(), tmp_path / "old.pth")


@pytest.mark.parametrize(("wrap", "account"), WRAPPED)
def test_a_state_dict_is_taken_out_of_what_training_wrapped_it_in(
    wrap: Callable[[dict[str, Any]], Any], account: dict[str, str], tmp_path: Path
) -> None:
    source, loaded = tiny(1), tiny()
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    origin = checkpoints.load(loaded, tmp_path / "w.pt")
    assert torch.equal(loaded.get_parameter("0.weight"), source.get_parameter("0.weight"))
    assert {key: value for key, value in origin.items() if key not in ("source", "file", "sha256")} == account
    assert all(value in checkpoints.describe(origin) for value in account.values())


def test_a_part_of_the_network_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    source, loaded = (nn.Sequential() for _ in range(2))
    for network in (source, loaded):
        network.add_module("module", nn.Linear(2, 3))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    assert "removed_prefix" not in checkpoints.load(loaded, tmp_path / "w.pth")
    torch.save(nn.DataParallel(source).state_dict(), tmp_path / "w.pth")
    assert checkpoints.load(loaded, tmp_path / "w.pth")["removed_prefix"] == "module."


def test_safetensors_load(tmp_path: Path) -> None:
    source, loaded = tiny(1), tiny()
    path = tmp_path / "model.SafeTensors"
    safetensors.torch.save_file({f"module.{key}": value for key, value in source.state_dict().items()}, path)
    assert checkpoints.load(loaded, path)["removed_prefix"] == "module."
    assert torch.equal(loaded.get_parameter("0.weight"), source.get_parameter("0.weight"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"model\.SafeTensors is not a safetensors file, or is damaged"):
        checkpoints.load(loaded, path)


def test_half_precision_and_the_oldest_format_load(tmp_path: Path) -> None:
    source, loaded = tiny(1).half(), tiny()
    torch.save(source.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    checkpoints.load(loaded, tmp_path / "w.pth")
    assert torch.equal(loaded.get_parameter("0.weight"), source.get_parameter("0.weight").float())


def test_another_class_count_is_named(tmp_path: Path) -> None:
    torch.save(network(classes=7).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ExportError, match="the file has 7 classes, the network has 10; pass --num-classes 7"):
        checkpoints.load(network(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int8), r"1 without floating-point values: 0\.weight \(int8\)"),
        (torch.zeros(3, 2, device="meta"), r"0\.weight \(no values\)"),
        (torch.zeros(3, 2).to_sparse(), r"0\.weight \(sparse_coo\)"),
    ],
)
def test_values_that_are_no_weights_are_refused(values: torch.Tensor, message: str, tmp_path: Path) -> None:
    torch.save({"0.weight": values, "0.bias": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ExportError, match=message):
        checkpoints.load(tiny(), tmp_path / "w.pth")


def test_a_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ExportError, match=r"w\.pth is not the published file: .* not with 00000000; delete the file"):
        checkpoints.load(tiny(), tmp_path / "w.pth", sha256_prefix="00000000")


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("sprung"),)  # type: ignore[return-value]


ONE = {"x": torch.zeros(1)}
NAMES = [*checkpoints.build(ARCHITECTURES["resnet18"], 10).state_dict()]
NESTED: dict[str, Any] = {}
NESTED["model"] = NESTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Trap(), r"more than tensors \(.*pathlib\.Path.*could run code"),
        (nn.Linear(1, 1), r"more than tensors \(torch\.nn\.modules\.linear\.Linear\)"),
        ({"model": {}, "args": argparse.Namespace(path=Path("x"))}, r"more than tensors \(pathlib\.\S*Path\)"),
        ({"model": {}, "best": np.float64(1)}, r"more than tensors \(numpy\._core\.multiarray\.scalar"),
        ([torch.zeros(1)], "holds a list"),
        ({"net": {"a": 3}, "epoch": 3}, "net, epoch are no tensors; .* one of state_dict.* with --weights-key"),
        ({"a": ONE, "b": ONE}, r"holds several state dicts \(a, b\); choose one with --weights-key"),
        (
            {f"{one}.{key}": ONE["x"] for one in "ab" for key in NAMES},
            r"several times, under a\., b\.; choose one with",
        ),
        ({"model": {}, "state_dict": {}}, r"several state dicts \(state_dict, model\)"),
        (NESTED, "not a state dict: model are no tensors"),
    ],
)
def test_anything_but_a_state_dict_is_refused(
    content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ExportError, match=message):
        checkpoints.load(network(), tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", pickle.dumps(Path("x")), b"\x80\x04."])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    said = "is not a PyTorch file, or damaged; save a state dict" if data else r"is empty \(0 bytes\)"
    with pytest.raises(ExportError, match=rf"weights\.pth {said}"):
        checkpoints.load(network(), tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"), (b"<!DOCTYPE html>", "an HTML page")],
)
def test_what_stands_in_place_of_weights_is_named(name: str, data: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ExportError, match=f"{name} is {kind}"):
        checkpoints.load(network(), tmp_path / name)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"weights\.pth is not a PyTorch file, or damaged"):
        checkpoints.load(network(), path)


def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        # torch warns that this way of saving is deprecated.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(tiny()), tmp_path / "weights.pt")
    with pytest.raises(ExportError, match=r"weights\.pt is a TorchScript archive; save a state dict"):
        checkpoints.load(network(), tmp_path / "weights.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nowhere\.pth cannot be read: No such file"):
        checkpoints.load(network(), tmp_path / "nowhere.pth")
