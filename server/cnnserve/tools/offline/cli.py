"""`cnnserve classify --ray`: classifies stored images on a Ray cluster, without a server."""

import argparse
import contextlib
import importlib
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cnnserve.config.settings import ConfigError
from cnnserve.config.spelling import Parser
from cnnserve.errors import InvalidInput, ServingError
from cnnserve.repository import folders
from cnnserve.tools.offline import runs
from cnnserve_client.commands import sources

_TABLE = ".parquet"
_CONNECT_S = 10.0


def classify(arguments: Sequence[str]) -> int:
    """Classifies images into a folder of parquet files. Returns the exit status: 1 for an error or a failed image."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except (ServingError, ConfigError) as error:
        print(f"cnnserve classify --ray: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve classify --ray`."""
    made = Parser(
        prog="cnnserve classify --ray",
        description="Classify stored images on a Ray cluster, without a server. A second start goes on where the first "
        "ended.",
    )
    made.add_argument("inputs", nargs="+", metavar="IMAGES|PARQUET", help="image files and folders, or parquet files")
    made.add_argument("--ray", action="store_true", required=True, help="classify on a Ray cluster")
    made.add_argument("--repository", required=True, type=Path, metavar="DIR", help="model repository, on every node")
    made.add_argument("--model", required=True, help="name of the model")
    made.add_argument("--version", type=int, default=0, help="number of the version (default: the newest)")
    made.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the parquet files")
    made.add_argument("--column", default="image", help="column of encoded images in parquet files (default: image)")
    made.add_argument("--top-k", type=int, default=0, metavar="K", help="number of classes per image (default: 5)")
    made.add_argument("--part-images", type=int, default=1024, metavar="N", help="images per part (default: 1024)")
    made.add_argument("--cpus", type=float, default=1.0, help="CPUs of each worker (default: 1)")
    made.add_argument("--gpus", type=float, default=0.0, help="GPUs of each worker (default: 0, run on CPUs)")
    made.add_argument(
        "--workers", type=int, default=0, help="number of workers (default: as many as there is room for)"
    )
    made.add_argument("--ray-address", default="auto", help="Ray cluster, or local to start one (default: auto)")
    return made


def _run(options: argparse.Namespace) -> int:
    for name, least in (("top_k", 0), ("part_images", 1), ("workers", 0), ("cpus", 0), ("gpus", 0), ("version", 0)):
        if getattr(options, name) < least:
            raise InvalidInput(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least {least}")
    data = importlib.import_module("cnnserve.tools.offline.data")
    repository = options.repository.absolute()
    options.version = options.version or _newest(repository, options.model)
    work = data.task(
        str(repository), options.model, options.version, top_k=options.top_k, cpus=options.cpus, gpus=options.gpus
    )
    parts = _parts(data, options)
    what = {name: getattr(options, name) for name in ("model", "version", "top_k", "column")}
    output = options.output.absolute()
    with runs.claimed(output):
        left = runs.open_run(output, parts, what)
        waiting = {part.number for part in left}
        done = [output / part.file for part in parts if part.number not in waiting]
        if done:
            print(f"{output} has {len(done)} of {len(parts)} parts already", file=sys.stderr)
        found = _Found(*data.counts(done))
        if left:
            with _ray(options.ray_address) as ray:
                _work(options, found, ray, partial(data.run_parts, left, work, output), len(left))
            runs.remove_halves(output)
    found.show(end="\n")
    return 1 if found.errors else 0


@contextlib.contextmanager
def _ray(address: str) -> Iterator[Any]:
    """Yields the module ray, connected to a cluster."""
    ray = importlib.import_module("ray")
    _check_reachable(address)
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    except ConnectionError as error:
        raise InvalidInput(f"no Ray cluster at {address}: {error}; use --ray-address local") from error
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise InvalidInput(f"the run has ended early; start it again to go on: {_reason(error)}") from error
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises `InvalidInput` if nothing listens there: ray would try for minutes without a word."""
    match = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"no Ray cluster at {address}: {error}; correct --ray-address") from error


def _work(options: argparse.Namespace, found: "_Found", ray: Any, run: Callable[..., Any], parts: int) -> None:
    """Runs the parts that are left, and adds to what was found."""
    most = options.workers or _room(ray.cluster_resources(), options)
    shares = {"cpus": options.cpus, "gpus": options.gpus, "actors": (1, min(most, parts))}
    for row in run(column=options.column, **shares):
        found.images += row["images"]
        found.errors += row["errors"]
        found.show()


@dataclass
class _Found:
    """What came of the images until now."""

    images: int
    errors: int

    def show(self, end: str = "") -> None:
        print(f"\r{self.images:,} images, {self.errors:,} failed", end=end, file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    """Returns the last line of Ray's traceback: the text of the error that a worker has raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^cnnserve[.\w]*: ", "", lines[-1]) if lines else type(error).__name__


def _newest(repository: Path, model: str) -> int:
    versions = folders.find(repository, model).versions
    if not versions:
        raise InvalidInput(f"model {model!r} has no version in {repository}")
    return max(versions)


def _room(resources: dict[str, float], options: argparse.Namespace) -> int:
    """Returns how many workers the cluster has room for."""
    rooms = [resources.get(kind, 0) // share for kind, share in (("CPU", options.cpus), ("GPU", options.gpus)) if share]
    most = int(min(rooms, default=1))
    if most < 1:
        raise InvalidInput(
            f"the cluster has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs, too few for one "
            f"worker with --cpus {options.cpus:g} --gpus {options.gpus:g}"
        )
    return most


def _parts(data: Any, options: argparse.Namespace) -> list[runs.Part]:
    tables = [name for name in options.inputs if name.endswith(_TABLE)]
    if not tables:
        entries = list(sources.find(options.inputs))
        if wrong := next((entry for entry in entries if entry.error is not None), None):
            raise InvalidInput(f"{wrong.name}: {wrong.error}")
        if any(entry.name == sources.STANDARD_INPUT for entry in entries):
            raise InvalidInput("standard input (-) cannot be classified with --ray; name files or folders")
        paths = (str(Path(entry.name).absolute()) for entry in entries)
        return list(runs.image_parts(paths, options.part_images))
    if len(tables) < len(options.inputs):
        raise InvalidInput("the inputs are images and parquet files; classify them in two runs")
    found = [str(Path(table).absolute()) for table in tables]
    return runs.table_parts([(table, data.row_groups(table, options.column)) for table in found])
