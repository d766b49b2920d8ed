"""`cnnserve serve --print-config`: every setting with its value in force, as a file that `--config` reads."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnserve.config.settings import Setting, variable
from cnnserve.process import memory_limit
from cnnserve.process.cpu import cpu_budget, decoding_threads
from cnnserve.process.pressure import resident_bytes

_HEAD = "# The settings of cnnserve serve: each value, where it comes from, and its variable."


def toml(settings: Mapping[str, Setting]) -> str:
    """Returns the settings as TOML. Comments have the sources, and what a 0 stands for on this machine."""
    chosen = _chosen({name: setting.value for name, setting in settings.items()})
    lines = [
        (f"{name} = {_literal(setting.value)}", _comment(name, setting, chosen))
        for name, setting in settings.items()
        # TOML has no word for "none".
        if setting.value is not None
    ]
    width = max(len(line) for line, _ in lines)
    return "\n".join([_HEAD, *(f"{line:<{width}}  # {comment}" for line, comment in lines)])


def _comment(name: str, setting: Setting, chosen: Mapping[str, int]) -> str:
    here = f"; 0 stands for {chosen[name]} here" if name in chosen else ""
    return f"{setting.source}; {variable(name)}{here}"


def _chosen(values: Mapping[str, Any]) -> dict[str, int]:
    """Returns the numbers that the server chooses by itself, by the name of their setting."""
    return {name: number for name, number in _choices(values) if values[name] == 0}


def _choices(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    threads = values["cpu_threads"] or cpu_budget()
    yield "cpu_threads", threads
    yield "decode_threads", decoding_threads(threads)
    yield "max_pending_mib", memory_limit.budget(0, memory_limit.memory_limit(), resident_bytes()).mib


def _literal(value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    # JSON's texts, numbers, true and false are also TOML's. Only DEL needs an escape in TOML alone.
    text = json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
