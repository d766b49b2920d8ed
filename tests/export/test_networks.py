import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cnnserve.repository import manifest as manifests
from cnnserve_export import checkpoints, networks
from cnnserve_export.cli import export
from cnnserve_export.errors import ExportError
from cnnserve_export.preparation import Given, of_network
from support import golden_rows

Module = Callable[[str], str]

SPEC = of_network(Given(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3))
FLAGS = ["--shape", "3,8,8", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--max-batch-size", "4"]
NETS = """
import warnings

import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.body = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))

class Soft(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)

class Outer:
    inner = Net

def make():
    return Net()

def sized(count):
    return Net(count)

def wide(depth, width):
    return Net()

def broken():
    raise OSError("no weights here")

def text():
    return "a network"

class NoEval(Net):
    def eval(self):
        raise ValueError("not like this")

class NoTrain(Net):
    def train(self, mode):
        raise SystemExit("never")

class NoParameters(Net):
    def parameters(self, recurse=True):
        return [1 / 0]

class NoSelf(Net):
    def eval(self):
        super().eval()

def lazy():
    return nn.LazyLinear(3)

ready = Net()

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    traced = torch.jit.trace(Net(), torch.zeros(1, 3, 8, 8))

def compiled():
    return traced

unready = NoEval()
number = 5
"""
_numbers = itertools.count()


@pytest.fixture(name="module")
def module_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes a module to the current folder, which is the test's own, and returns the name of the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(code: str) -> str:
        name = f"own_network_{next(_numbers)}"
        Path(f"{name}.py").write_text(code)
        return name

    return write


def build(reference: str, class_count: int | None = None) -> nn.Module:
    return checkpoints.build(networks.architecture(reference, SPEC, class_count), 0)


@pytest.mark.parametrize(
    ("attribute", "class_count", "classes"),
    [
        ("Net", None, 4),
        ("Net", 7, 7),
        ("make", None, 4),
        ("sized", 6, 6),
        ("ready", None, 4),
        ("NoSelf", None, 4),
        ("Outer.inner", None, 4),
    ],
)
def test_a_class_a_function_and_a_network(
    attribute: str, class_count: int | None, classes: int, module: Module
) -> None:
    network = build(f"{module(NETS)}:{attribute}", class_count)
    assert not network.training
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, classes)


def test_random_weights_are_the_same_each_time(module: Module) -> None:
    name = module(NETS)
    first, second = build(f"{name}:Net"), build(f"{name}:Net")
    assert torch.equal(first.get_parameter("head.weight"), second.get_parameter("head.weight"))


@pytest.mark.parametrize(
    ("attribute", "class_count", "message"),
    [
        (
            "Nothing",
            None,
            "has no 'Nothing'; name one of its own classes and functions: Net, NoEval, NoParameters, NoSelf, NoTrain",
        ),
        ("Outer.other", None, "has no 'Outer.other'"),
        ("number", None, "number is of type int, expected a torch.nn.Module"),
        ("ready", 4, "is a network already, so --num-classes 4 has no effect"),
        (
            "sized",
            None,
            r"sized\(count\) cannot be called with no arguments .* if count is the number of classes, pass --num",
        ),
        ("wide", None, "name a function that makes the network without arguments"),
        ("wide", 3, r"cannot be called with the number of classes alone \(missing"),
        ("make", 3, r"make\(\) cannot be called with the number of classes alone .* leave --num-classes out"),
        ("broken", None, r"broken\(\) failed: OSError: no weights here \(own_network_\d+.py line \d+\)"),
        ("text", None, "text returned an object of type str, expected a torch.nn.Module"),
        ("traced", None, r"traced is TorchScript, .* name the nn\.Module that it was made from"),
        ("compiled", None, "compiled is TorchScript"),
        ("NoEval", None, r"failed: ValueError: not like this \(own_network_\d+.py line \d+\)"),
        ("unready", None, r"failed: ValueError: not like this \(own_network_\d+.py line \d+\)"),
        ("NoTrain", None, r"failed: SystemExit: never \(own_network_\d+.py line \d+\)"),
        ("NoParameters", None, r"failed: ZeroDivisionError: division by zero \(own_network_\d+.py line \d+\)"),
        ("lazy", None, "lazy has lazy layers without a size"),
    ],
)
def test_what_makes_no_network(attribute: str, class_count: int | None, message: str, module: Module) -> None:
    with pytest.raises(ExportError, match=message):
        build(f"{module(NETS)}:{attribute}", class_count)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere.at.all", r"ModuleNotFoundError: No module named 'nowhere' \(own_network_\d+.py line 1\)"),
        ("x = 1\ndef f(:", r"SyntaxError: .* \(own_network_\d+.py line 2\)"),
        ("raise SystemExit(3)", r"SystemExit: 3 \(own_network_\d+.py line 1\)"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(code: str, message: str, module: Module) -> None:
    with pytest.raises(ExportError, match=f"cannot be imported: {message}"):
        build(f"{module(code)}:Net")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "nets/birds.py:Net",
            "not of the form .*; write the module, not its file: nets.birds:Net",
        ),
        ("nets:", "'nets:' is not of the form package.module:factory"),
        ("nets:a b", "is not of the form"),
        ("no_such_module_here:Net", "there is no module 'no_such_module_here', neither in .* nor installed"),
        ("torch.no_such_part:Net", "there is no module 'torch.no_such_part'"),
    ],
)
def test_a_name_that_leads_nowhere(reference: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        build(reference)


def test_an_own_network_is_published_with_its_weights_and_labels(
    module: Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(NETS)
    trained = build(f"{name}:sized", 5)
    with torch.no_grad():
        trained.get_parameter("head.bias")[3] = 9
    torch.save(trained.state_dict(), "trained.pth")
    Path("names.txt").write_text("a\nb\nc\nd\ne\n")
    flags = [*FLAGS, "--num-classes", "5", "--weights", "trained.pth", "--labels", "names.txt", "--resize", "10"]
    assert export([f"{name}:sized", *flags]) == 0
    assert "check" in capsys.readouterr().err
    manifest = manifests.read(tmp_path / "models" / "sized" / "1")
    assert manifest is not None
    assert (manifest.architecture, manifest.class_count, manifest.labels) == (f"{name}:sized", 5, "labels.txt")
    assert (manifest.activation, manifest.activation_by) == ("softmax", "export")
    assert manifest.weights["file"] == "trained.pth"
    assert golden_rows(tmp_path / "models" / "sized" / "1")[0, 3] > 0.9
    assert (manifest.preprocessing.resize, manifest.preprocessing.crop) == (manifests.Resize("shorter", (10,)), (8, 8))


def test_a_softmax_inside_is_noticed_and_said(
    module: Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(NETS)
    assert export([f"{name}:Soft", *FLAGS, "--name", "soft"]) == 0
    assert "4 classes, returns probabilities" in capsys.readouterr().err
    assert export([f"{name}:Net", *FLAGS, "--name", "plain"]) == 0
    assert "4 classes, returns logits; a softmax is added" in capsys.readouterr().err
    soft, plain = (manifests.read(tmp_path / "models" / model / "1") for model in ("soft", "plain"))
    assert soft is not None
    assert plain is not None
    assert (soft.activation, soft.activation_by) == ("softmax", "network")
    rows = [golden_rows(tmp_path / "models" / model / "1") for model in ("soft", "plain")]
    np.testing.assert_allclose(*rows, atol=1e-6)
    assert soft.weights == {"source": "network", "network": f"{name}:Soft"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--labels names.txt", r"names.txt has 2 labels, the network has 4 classes; correct the file\n"),
        ("--weights other.pth", "1 unexpected: other"),
        ("--transform-input", "is for googlenet only"),
        ("--shape 3,2,2", r"fails on one image of 3x2x2: RuntimeError: .* \(own_network_\d+.py line 14\)"),
    ],
)
def test_a_mistake_with_an_own_network_leaves_nothing(
    flags: str, message: str, module: Module, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(NETS)
    Path("names.txt").write_text("a\nb\n")
    torch.save({"other": torch.zeros(1)}, "other.pth")
    assert export([f"{name}:Net", *FLAGS, *flags.split()]) == 1
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert not Path("models").exists()


def test_what_a_network_prints_does_not_mix_with_the_published_folder(
    module: Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(
        "print('imported')\n" + NETS + "\nclass Talks(Net):\n    def __init__(self):\n        super().__init__()\n"
        "        print('loaded')\n    def forward(self, x):\n        print('run')\n        return super().forward(x)\n"
    )
    assert export([f"{name}:Talks", *FLAGS]) == 0
    out, err = capsys.readouterr()
    assert Path(out.removesuffix("\n")).resolve() == tmp_path / "models" / "Talks" / "1"
    assert {"imported", "loaded", "run"} <= set(err.splitlines())


def test_another_class_count_than_asked_for(module: Module, capsys: pytest.CaptureFixture[str]) -> None:
    name = module(NETS + "\ndef stubborn(count):\n    return Net()\n")
    assert export([f"{name}:stubborn", *FLAGS, "--num-classes", "5"]) == 1
    assert "error: the network returns 4 classes, but --num-classes is 5; let the factory" in capsys.readouterr().err


def test_a_network_that_looks_at_its_values_cannot_be_converted(
    module: Module, capfd: pytest.CaptureFixture[str]
) -> None:
    name = module(
        NETS + "\nclass Choice(Net):\n    def forward(self, x):\n        y = super().forward(x)\n"
        "        return y if y.sum() > -1e9 else -y\n"
    )
    assert export([f"{name}:Choice", *FLAGS]) == 1
    err = capfd.readouterr().err
    assert [line.split()[0] for line in err.splitlines()] == ["build", "weights", "check", "error:"]
    assert "torch.onnx.export cannot convert the network: GuardOnDataDependentSymNode" in err
    assert not Path("models").exists()


def test_a_built_in_architecture_with_another_input(tmp_path: Path) -> None:
    flags = f"--resize 32 --crop 28 --mean 0.5 --std 0.5 --max-batch-size 3 --repository {tmp_path}/models".split()
    assert export(["lenet5", *flags]) == 0
    manifest = manifests.read(tmp_path / "models" / "lenet5" / "1")
    assert manifest is not None
    spec = manifest.preprocessing
    assert (spec.resize, spec.crop, spec.mean) == (manifests.Resize("shorter", (32,)), (28, 28), (0.5,))
