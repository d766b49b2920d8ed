"""What all parts share: how much to measure, the models, and the server or worker that runs now."""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import harness
from harness import Server
from steps import Result

from cnnserve.model_config.pbtxt import CONFIG_FILE

_T = TypeVar("_T")

Kind = Literal["cuda", "cpu"]
# Begins the names of the shared memory that clients of this benchmark register.
SHARED_MEMORY = "cnnserve-bench-gpu"
FREE = "free"


@dataclass(frozen=True)
class Layout:
    """How the served models run: instances of each model, CUDA graphs and pinned input."""

    instances: int = 1
    graphs: bool = False
    pinned: bool = False

    def __str__(self) -> str:
        more = [name for name in ("graphs", "pinned") if getattr(self, name)]
        return " ".join([f"{self.instances} instance{'s' * (self.instances > 1)}", *more])

    def config(self, kind: Kind) -> str:
        """Returns the lines of config.pbtxt. CPUs have no graphs and no pinned input."""
        lines = [f"instance_group {{ kind: {'KIND_GPU' if kind == 'cuda' else 'KIND_CPU'} count: {self.instances} }}"]
        if kind == "cuda" and self.graphs:
            lines.append("optimization { cuda { graphs: true } }")
        if kind == "cuda" and self.pinned:
            lines.append("optimization { input_pinned_memory { enable: true } }")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Size:
    """How much to measure.

    `seconds`: of a closed loop; `tail_seconds`: of an open loop; `plain_seconds`: of each cell of plain ONNX Runtime.
    `images`: sizes of the requests; `under_way`: images that closed loops keep under way, but at least 2 requests.
    `layout_images`: size of the requests with which layouts are compared. `test_batch`: largest batch of the GPU tests,
    whose references are computed on the CPU.
    """

    seconds: float
    tail_seconds: float
    plain_seconds: float
    plain_batches: tuple[int, ...]
    plain_loops: tuple[int, ...]
    transports: tuple[str, ...]
    images: tuple[int, ...]
    under_way: int
    layout_images: int
    layouts: tuple[Layout, ...]
    tune_s: int
    test_batch: int


_TRANSPORTS = ("grpc", "shared memory", "stream", "http")
SIZES = {
    "full": Size(
        seconds=2.5,
        tail_seconds=6.0,
        plain_seconds=1.0,
        plain_batches=(1, 8, 32, 64, 128),
        plain_loops=(1, 2),
        transports=_TRANSPORTS,
        images=(1, 8, 32),
        under_way=512,
        layout_images=8,
        layouts=(
            Layout(),
            Layout(graphs=True),
            Layout(2, graphs=True),
            Layout(2, graphs=True, pinned=True),
            Layout(3, graphs=True, pinned=True),
            Layout(4, graphs=True, pinned=True),
        ),
        tune_s=20,
        test_batch=8,
    ),
    "small": Size(
        seconds=1.0,
        tail_seconds=2.0,
        plain_seconds=0.2,
        plain_batches=(1, 4),
        plain_loops=(1, 2),
        transports=_TRANSPORTS,
        images=(1, 4),
        under_way=8,
        layout_images=4,
        layouts=(Layout(), Layout(2, graphs=True, pinned=True)),
        tune_s=5,
        test_batch=2,
    ),
    "least": Size(
        seconds=0.1,
        tail_seconds=0.2,
        plain_seconds=0.05,
        plain_batches=(1,),
        plain_loops=(1,),
        transports=("grpc", "shared memory"),
        images=(1,),
        under_way=4,
        layout_images=1,
        layouts=(Layout(),),
        tune_s=2,
        test_batch=2,
    ),
}


class Held:
    """One open thing, such as a server. It stays open for the steps after this one that ask for the same thing."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._key = ""
        self._thing: Any = None

    def get(self, key: str, opened: Callable[[], AbstractContextManager[_T]]) -> _T:
        """Returns the thing that is held, or closes it and opens another one."""
        if key != self._key:
            self.drop()
            self._thing = self._stack.enter_context(opened())
            self._key = key
        thing: _T = self._thing
        return thing

    def drop(self) -> None:
        """Closes the thing that is held."""
        self._key = ""
        self._stack.close()


@dataclass(frozen=True)
class Setting:
    """One run: where the models are, which of them is measured, on what, and where the results go."""

    kind: Kind
    size: Size
    models: Path
    network: str
    output: Path
    held: Held = field(default_factory=Held)
    # Results of the parts that have been run so far.
    results: dict[str, dict[str, Result]] = field(default_factory=dict)

    @property
    def precisions(self) -> dict[str, str]:
        """The measured models by precision."""
        names = {"fp16": f"{self.network}-fp16", "fp32": self.network}
        return {precision: name for precision, name in names.items() if (self.models / name).is_dir()}

    def onnx_file(self, model: str) -> Path:
        """Returns the ONNX file of a model."""
        folder = self.models / model / "1"
        return folder / harness.manifest_in(folder).onnx.file

    def repository(self, layout: Layout) -> Path:
        """Returns a model repository with the measured models in a layout, and with the free model on the CPU."""
        root = self.output / "served" / str(layout).replace(" ", "-")
        for model in self.precisions.values():
            copy(self.models / model, root / model, layout.config(self.kind))
        copy(self.output / FREE, root / FREE, Layout().config("cpu"))
        return root

    def server(self, layout: Layout) -> Server:
        """Returns a server of that repository, which runs until another thing is needed."""
        flags = ["--device", self.kind, "--shared-memory-prefix", SHARED_MEMORY]
        return self.held.get(f"served {layout}", lambda: harness.serving(self.repository(layout), *flags))

    @property
    def best_layout(self) -> Layout:
        """The layout with the largest rate; the default if none has been measured."""
        rates = {key: result.get("images_per_s", 0.0) for key, result in self.results.get("instances", {}).items()}
        known = {str(layout): layout for layout in self.size.layouts if rates.get(str(layout))}
        return known[max(known, key=lambda key: float(rates[key]))] if known else self.size.layouts[0]


def copy(model: Path, to: Path, config: str, max_batch_size: int = 0) -> None:
    """Makes another folder of the same model, with more lines in its config.pbtxt. Files are linked if possible."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(model, to, copy_function=_link)
    path = to / CONFIG_FILE
    text = path.read_text() if path.exists() else ""
    if max_batch_size:
        text = re.sub(r"(?m)^max_batch_size:.*$", "", text) + f"max_batch_size: {max_batch_size}\n"
    # The file may be linked, too.
    path.unlink(missing_ok=True)
    if text + config:
        path.write_text(text + config)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
