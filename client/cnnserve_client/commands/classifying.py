"""The command `cnnserve classify`: its flags, the choice of the model, and the loop over the results."""

import argparse
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from cnnserve_client.errors import CnnserveError, InvalidInputError, UnavailableError
from cnnserve_client.results import ImageResult

from . import output, report, sources, terminal
from .console import complain, say
from .flags import connect
from .formats import Csv, Format, JsonLines, Table

if TYPE_CHECKING:
    from cnnserve_client.client import Client

_BY_SUFFIX = {".csv": "csv", ".jsonl": "json", ".ndjson": "json"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that only `classify` has."""
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image file (JPEG, PNG, WebP, BMP or GIF), folder, pattern such as 'photos/**/*.jpg', or - for an image "
        "on standard input",
    )
    parser.add_argument("--files-from", metavar="FILE", help="file with one path on each line, or - for standard input")
    parser.add_argument("--model", default="", help="name of the model (default: the only READY model of the server)")
    parser.add_argument(
        "--version", default="", help="number or label of the model's version (default: the newest READY version)"
    )
    parser.add_argument(
        "--top-k",
        type=_count,
        default=0,
        metavar="K",
        help="number of classes per image (default: 5, or all of at least 50 %% if the classes are independent)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--json", dest="format", action="store_const", const="json", help="write one JSON object for each image"
    )
    kind.add_argument(
        "--csv", dest="format", action="store_const", const="csv", help="write CSV with one row for each class"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write (default: standard output); without --json and --csv, a name ending in .jsonl or .ndjson "
        "means JSON, and a name ending in .csv means CSV",
    )


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exits with status 2 if flags are missing or contradict each other. Sets `args.format` from `--output`."""
    if not args.images and args.files_from is None:
        parser.error("no images are given: name files, folders or patterns, or use --files-from")
    if [*args.images, args.files_from].count(sources.STANDARD_INPUT) > 1:
        parser.error("standard input (-) is given more than once: it can be read only once")
    if args.output is not None and args.format is None:
        args.format = _BY_SUFFIX.get(PurePath(args.output).suffix.lower())
        if args.format is None:
            parser.error(f"--output {args.output} has no known format: add --json or --csv, or name it .jsonl or .csv")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Classifies all images and writes each result as soon as it is known. Returns the exit status."""
    from .files import classify_files  # noqa: PLC0415 - imports grpc, which --help does not need

    with connect(args) as client, output.Interrupts() as interrupts:
        model = args.model or _only_model(client, args, parser)
        results = classify_files(client, _entries(args), model=model, version=args.version, top_k=args.top_k)
        with closing(results):
            # Get the first result before opening --output, so that a failing server does not empty an existing file.
            first = next(results, None)
            if first is None:
                raise InvalidInputError(f"{args.files_from} contains no paths: write one path on each line")
            return _write(args, model, chain([first], results), interrupts)


def _write(
    args: argparse.Namespace, model: str, results: Iterable[tuple[str, ImageResult]], interrupts: output.Interrupts
) -> int:
    progress = terminal.Progress(sys.stderr)
    _count_aside(args, progress)
    with closing(_sink(args, progress)) as sink:
        records = output.Records(_format(args, model), sink, interrupts)
        tally = _Tally(records, progress)
        try:
            for name, result in results:
                tally.add(name, result)
        except (KeyboardInterrupt, CnnserveError) as stop:
            tally.finish()
            if isinstance(stop, CnnserveError):
                complain(f"stopped after {tally.done:,} images: {stop}")
                return 1
            complain(f"interrupted after {tally.done:,} images")
            return 130
        tally.finish()
    if progress.was_shown:
        say(progress.summary(tally.done, tally.failed), sys.stderr)
    return 1 if tally.failed else 0


class _Tally:
    """Writes results and counts them, with messages and progress on standard error."""

    def __init__(self, records: output.Records, progress: terminal.Progress) -> None:
        self._records = records
        self._progress = progress
        self.done = self.failed = 0

    def add(self, name: str, result: ImageResult) -> None:
        """Adds the result of one image."""
        self._records.add(name, result)
        self.done += 1
        if result.error is not None:
            self.failed += 1
            self._progress.clear()
            complain(f"{name}: {result.error}")
        self._progress.update(self.done, self.failed)

    def finish(self) -> None:
        """Writes the results that are held back."""
        self._progress.clear()
        self._records.finish()


def _only_model(client: "Client", args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    ready = [model.name for model in client.list_models() if model.ready]
    if not ready:
        raise UnavailableError(f"{args.address} has no READY model: run `cnnserve models` to see why")
    if len(ready) > 1:
        parser.error(report.printable(f"--model is missing: {args.address} serves {', '.join(ready)}; choose one"))
    return ready[0]


def _entries(args: argparse.Namespace) -> Iterator[sources.Entry]:
    yield from sources.find(args.images)
    if args.files_from is not None:
        yield from sources.listed(args.files_from)


def _count_aside(args: argparse.Namespace, progress: terminal.Progress) -> None:
    """Counts the images for the progress bar. Uses a thread, so that a slow disk does not delay the first image."""

    def count() -> None:
        with suppress(InvalidInputError):  # the loop over the images reports a list that cannot be read
            progress.total = sum(1 for _ in _entries(args))

    if progress.is_wanted and _is_list_kept(args):
        threading.Thread(target=count, daemon=True).start()


def _is_list_kept(args: argparse.Namespace) -> bool:
    """Returns whether `--files-from` can be read twice. A pipe gives each line to one reader only."""
    return args.files_from is None or (args.files_from != sources.STANDARD_INPUT and Path(args.files_from).is_file())


def _sink(args: argparse.Namespace, progress: terminal.Progress) -> output.Stream | output.File:
    if args.output is None:
        return output.Stream(sys.stdout, progress.clear if terminal.is_terminal(sys.stdout) else None)
    _refuse_input(args)
    try:
        return output.File(args.output)
    except OSError as error:
        raise InvalidInputError(f"cannot write {args.output}: {error.strerror}") from error


def _refuse_input(args: argparse.Namespace) -> None:
    """Raises `InvalidInputError` if `--output` is one of the inputs."""
    # Looking through all inputs takes time, and there is nothing to lose if the output does not exist.
    if not Path(args.output).is_file():
        return
    lost = Path(args.output).stat()
    entries = _entries(args) if _is_list_kept(args) else sources.find(args.images)
    names = chain([args.files_from] if args.files_from else [], (entry.name for entry in entries))
    if any(name != sources.STANDARD_INPUT and _is_same(name, lost) for name in names):
        raise InvalidInputError(f"--output {args.output} is also an input: name another file")


def _is_same(path: str, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), file)  # noqa: PTH116 - takes half the time of Path.stat
    except (OSError, ValueError):  # the loop over the images reports this
        return False


def _format(args: argparse.Namespace, model: str) -> Format:
    match args.format:
        case "json":
            return JsonLines(model)
        case "csv":
            return Csv()
    is_shown = terminal.is_terminal(sys.stdout)
    return Table(
        terminal.columns() if is_shown else None,
        colours=terminal.has_colours(sys.stdout),
        # If standard error goes to the same terminal, it shows the failures already.
        with_failures=not (is_shown and terminal.is_terminal(sys.stderr)),
    )


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of classes: use a whole number from 0 to {2**32 - 1}")
    return int(text)
