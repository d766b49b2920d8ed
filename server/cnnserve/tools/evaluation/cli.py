"""The command `cnnserve evaluate`.

Exit status: 0 every image was judged; 1 an error, or some images were not judged; 2 wrong usage; 130 interrupted with
Ctrl-C; 141 the reader of standard output has closed it. With 1 and 130, what was judged until then is reported.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cnnserve_client.commands import terminal
from cnnserve_client.commands.console import complain, guard, say
from cnnserve_client.commands.flags import client_parser, connect
from cnnserve_client.errors import InvalidInputError

if TYPE_CHECKING:
    from .dataset import Dataset
    from .findings import Findings
    from .runner import Runner

_STATUS = """exit status:
  0 every image was judged
  1 an error, or some images were not judged (unreadable, of unknown classes, or the server went away)
  2 wrong usage
  130 interrupted with Ctrl-C
With 1 and 130, the summary, --json and --report still have what was judged until then."""


def evaluate(argv: Sequence[str]) -> int:
    """Runs `cnnserve evaluate` and returns its exit status."""
    parser = evaluate_parser()
    args = parser.parse_args(argv)
    if args.folder is None and args.csv is None:
        parser.error("no images are given: name a folder with a sub-folder for each class, or use --csv")
    if args.device != "cpu" and args.local is None:
        parser.error("--device has no effect without --local: the server chooses the device")
    return guard(lambda: _run(args))


def evaluate_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve evaluate`."""
    about = "Judge a model on labelled images: accuracy, classes, calibration and latency; or compare two models."
    parser = client_parser("evaluate", about, timeout_s=30.0)
    parser.epilog, parser.formatter_class = _STATUS, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "model", metavar="MODEL[:VERSION]", help="name of the model, and number or label of a version (default: newest)"
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        help="folder with a sub-folder for each class, named like its label; with --csv: the folder of relative paths",
    )
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="CSV file with the columns path and label, in place of class folders"
    )
    parser.add_argument(
        "--by-index",
        action="store_true",
        help="class folders and labels of --csv are numbers of classes (default: only if the model has no labels)",
    )
    parser.add_argument(
        "--against", metavar="MODEL[:VERSION]", help="another model, or another version, to compare with MODEL"
    )
    parser.add_argument(
        "--local",
        metavar="REPOSITORY",
        type=Path,
        help="model repository from which to load the model into this process (default: ask the server at --address)",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device for --local (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a summary")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="HTML file to write, with diagrams and pictures (default: none)"
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    from cnnserve.tools import outputs

    from . import dataset

    outputs.check(args.report, "--report")
    if args.report:
        # Without Pillow there are no thumbnails.
        importlib.import_module("cnnserve.images.thumbnail")
    data = dataset.from_csv(args.csv, args.folder) if args.csv else dataset.from_folder(args.folder)
    found = _findings(args, data)
    if found is None:
        return 1
    _tell(args, found)
    if found.collected.stopped:
        complain(f"stopped after {found.collected.done:,} of {found.asked:,} images: {found.collected.stopped}")
    if found.collected.interrupted:
        return 130
    return 0 if found.complete else 1


def _findings(args: argparse.Namespace, data: "Dataset") -> "Findings | None":
    """Returns what was found, or None, with a line on standard error, if no image was judged."""
    from cnnserve_client.commands.output import Interrupts

    from . import findings
    from .collection import Collection

    with _runners(args) as runners:
        work = Collection(data.samples, runners, by_index=args.by_index)
        latencies = [runner.latency(work.entries) for runner in runners]
        progress = terminal.Progress(sys.stderr)
        progress.total = len(work.entries)
        with Interrupts() as interrupts:
            collected = work.run(interrupts, progress.update)
        progress.clear()
        judged = list(zip([runner.subject for runner in runners], latencies, collected.outcomes, strict=True))
    if not len(collected.outcomes[0]):
        if collected.interrupted:
            raise KeyboardInterrupt
        first = f"; the first one: {collected.failed[0][1]}" if collected.failed else ""
        complain(f"no image was judged: {collected.stopped or f'all {collected.done:,} images have errors'}{first}")
        return None
    models = tuple(findings.of_model(*one, data.samples) for one in judged)
    return findings.Findings(
        str(args.csv or args.folder), data.samples, models, collected, len(work.entries), data.remarks
    )


def _tell(args: argparse.Namespace, found: "Findings") -> None:
    """Writes the report, and prints the summary or JSON."""
    from . import document, summary

    # First, because the reader of standard output may have closed it.
    problem = "" if args.report is None else _write(args.report, found)
    say(document.as_json(found) if args.json else summary.as_text(found))
    if problem:
        raise InvalidInputError(problem)
    if args.report:
        say(f"report: {args.report}", sys.stderr)


def _write(report: Path, found: "Findings") -> str:
    """Writes the report and returns what is wrong, empty if nothing is."""
    from .page.document import as_html

    try:
        report.write_text(as_html(found), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return f"--report {report}: cannot write the file: {error.strerror}"
    return ""


@contextmanager
def _runners(args: argparse.Namespace) -> "Iterator[list[Runner]]":
    """Yields what answers for the model, and for the one of `--against`."""
    wanted = [text.partition(":") for text in (args.model, args.against) if text is not None]
    with ExitStack() as stack:
        if args.local is not None:
            from .local import LocalRunner

            names = [(name, version) for name, _, version in wanted]
            yield [stack.enter_context(LocalRunner(args.local, *one, device=args.device)) for one in names]
            return
        from .remote import RemoteRunner

        client = stack.enter_context(connect(args))
        yield [RemoteRunner(client, name, version) for name, _, version in wanted]
