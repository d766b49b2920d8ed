"""`cnnserve classify`: which images, with which model, written where."""

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
    """What `classify` has beyond the address."""
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="an image file (JPEG, PNG, WebP, BMP or GIF), a folder, a pattern such as 'photos/**/*.jpg', "
        "or - for an image on standard input",
    )
    parser.add_argument("--files-from", metavar="FILE", help="a file with one path a line, or - for standard input")
    parser.add_argument("--model", default="", help="the model's name (default: the server's only ready model)")
    parser.add_argument("--version", default="", help="a version of the model (default: the server chooses)")
    parser.add_argument("--top-k", type=_count, default=0, metavar="K", help="classes per image (default: 5)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", dest="format", action="store_const", const="json", help="print a JSON object a line")
    kind.add_argument("--csv", dest="format", action="store_const", const="csv", help="print CSV, a row for each class")
    parser.add_argument("--output", metavar="FILE", help="write to a file: .jsonl or .csv, or as --json or --csv says")


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with wrong usage where flags contradict each other."""
    if not args.images and args.files_from is None:
        parser.error("which images? name files, folders or patterns, or use --files-from")
    if [*args.images, args.files_from].count(sources.STANDARD_INPUT) > 1:
        parser.error("standard input (-) can be read once only")
    if args.output is not None and args.format is None:
        args.format = _BY_SUFFIX.get(PurePath(args.output).suffix.lower())
        if args.format is None:
            parser.error(f"--output {args.output}: say --json or --csv, or let the name end with .jsonl or .csv")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Classifies everything there is, and writes it down as it comes."""
    from .files import classify_files  # noqa: PLC0415 - brings grpc along, which --help does without

    with connect(args) as client, output.Interrupts() as interrupts:
        model = args.model or _only_model(client, args, parser)
        results = classify_files(client, _entries(args), model=model, version=args.version, top_k=args.top_k)
        with closing(results):
            # Before a file is opened: a server that is not there must not empty what is in it.
            first = next(results, None)
            if first is None:
                raise InvalidInputError(f"{args.files_from} names no images")
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
    """What is done so far, told as it is done."""

    def __init__(self, records: output.Records, progress: terminal.Progress) -> None:
        self._records = records
        self._progress = progress
        self.done = self.failed = 0

    def add(self, name: str, result: ImageResult) -> None:
        """One image's result."""
        self._records.add(name, result)
        self.done += 1
        if result.error is not None:
            self.failed += 1
            self._progress.clear()
            complain(f"{name}: {result.error}")
        self._progress.update(self.done, self.failed)

    def finish(self) -> None:
        """Everything is written."""
        self._progress.clear()
        self._records.finish()


def _only_model(client: "Client", args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    ready = [model.name for model in client.list_models() if model.ready]
    if not ready:
        raise UnavailableError(f"{args.address} has no ready model; `cnnserve models` says why")
    if len(ready) > 1:
        parser.error(report.printable(f"--model is needed: {args.address} serves {', '.join(ready)}"))
    return ready[0]


def _entries(args: argparse.Namespace) -> Iterator[sources.Entry]:
    yield from sources.find(args.images)
    if args.files_from is not None:
        yield from sources.listed(args.files_from)


def _count_aside(args: argparse.Namespace, progress: terminal.Progress) -> None:
    """Counts the images for the progress bar on a thread: a folder on a slow disk is no reason to wait."""

    def count() -> None:
        with suppress(InvalidInputError):  # a list that cannot be read is told where it is used
            progress.total = sum(1 for _ in _entries(args))

    if progress.is_wanted and _is_list_kept(args):
        threading.Thread(target=count, daemon=True).start()


def _is_list_kept(args: argparse.Namespace) -> bool:
    """Whether --files-from can be read once more: a pipe under any name gives each line to one reader only."""
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
    """Looks through all inputs, but only where there is a file to lose."""
    if not Path(args.output).is_file():
        return
    lost = Path(args.output).stat()
    entries = _entries(args) if _is_list_kept(args) else sources.find(args.images)
    names = chain([args.files_from] if args.files_from else [], (entry.name for entry in entries))
    if any(name != sources.STANDARD_INPUT and _is_same(name, lost) for name in names):
        raise InvalidInputError(f"--output {args.output} is an input, too: name another file")


def _is_same(path: str, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), file)  # noqa: PTH116 - half the price of Path's
    except (OSError, ValueError):  # told where it is read
        return False


def _format(args: argparse.Namespace, model: str) -> Format:
    match args.format:
        case "json":
            return JsonLines(model)
        case "csv":
            return Csv()
    watched = terminal.is_terminal(sys.stdout)
    return Table(
        terminal.columns() if watched else None,
        colours=terminal.has_colours(sys.stdout),
        # Where errors go to the same terminal, once is enough.
        with_failures=not (watched and terminal.is_terminal(sys.stderr)),
    )


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of classes")
    return int(text)
