"""The command `cnnserve doctor`."""

import argparse
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cnnserve.config import sources, spelling
from cnnserve.config.settings import DEFAULT, ConfigError
from cnnserve.doctor import devices, machine, report, security, software, versions
from cnnserve.doctor.findings import Check, Context, Finding, Status

# Each section is checked on its own, in this order.
SECTIONS: Mapping[str, Check] = {
    "software": software.check,
    "execution providers": devices.providers,
    "driver": devices.driver,
    "cpu": machine.cpus,
    "memory": machine.memory,
    "ports": machine.ports,
    "security": security.check,
    "model repository": versions.check,
}


def doctor(arguments: Sequence[str]) -> int:
    """Runs `cnnserve doctor` and returns its exit status.

    The status is 1 if there is a problem, 141 if the reader of the output has closed it, otherwise 0.
    """
    flags = vars(doctor_parser().parse_args(arguments))
    # What the server would log is a finding here.
    logging.getLogger("cnnserve").addHandler(logging.NullHandler())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    settings, findings = _settings(flags)
    context = Context(settings, load=not flags["no_load"])
    sections = {"settings": findings} | {name: _checked(check, context) for name, check in SECTIONS.items()}
    try:
        print(report.as_json(sections) if flags["json"] else report.as_text(sections), flush=True)
    except BrokenPipeError:
        # The interpreter flushes standard output again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 1 if report.count(sections, Status.PROBLEM) else 0


def doctor_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve doctor`."""
    parser = spelling.Parser(
        prog="cnnserve doctor",
        description="Check this machine, its settings and a model repository, and say what to do about each problem. "
        "The settings are those of cnnserve serve, from flags, environment variables and file.",
        epilog="Exit status: 0 if there is no problem (there may be warnings), 1 if there is one, 2 for a wrong "
        "command line. Example: cnnserve doctor --repository models",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--no-load",
        action="store_true",
        help="only compare the files of versions with their manifests (default: also load and self-test each version "
        "that would be served)",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (default: none)")
    sources.add_settings(parser)
    return parser


def _settings(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Returns the values of the settings, and what is wrong with them. Without valid ones: the defaults."""
    try:
        gathered = sources.gather(flags)
    except ConfigError as error:
        values = {name: setting.value for name, setting in sources.gather({}, {}).items()}
        return values, [_bad(error)]
    values = {name: setting.value for name, setting in gathered.items()}
    given = {name: setting.source for name, setting in gathered.items() if setting.source != DEFAULT}
    try:
        if gathered["repository"].value is not None or gathered["model"].value:
            sources.build(gathered)
    except ConfigError as error:
        return values, [_bad(error)]
    text = f"{len(given)} given, all others have their defaults" if given else "all have their defaults"
    return values, [Finding("settings", Status.OK, text, data={"sources": given})]


def _bad(error: ConfigError) -> Finding:
    return Finding("settings", Status.PROBLEM, str(error), "correct the setting; cnnserve serve --help lists them")


def _checked(check: Check, context: Context) -> list[Finding]:
    return list(_guarded(check, context))


def _guarded(check: Check, context: Context) -> Iterator[Finding]:
    try:
        yield from check(context)
    except Exception as error:
        text = f"this check failed with {type(error).__name__}: {error}"
        yield Finding("doctor", Status.PROBLEM, text, "report it with this line as a bug of cnnserve")
