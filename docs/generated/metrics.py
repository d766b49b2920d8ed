"""Every metric with its labels, from what the server writes."""

import re

from cnnserve.batching.statistics import BOUNDS_NS
from cnnserve.registry.lifecycle import State
from cnnserve.registry.snapshot import Distribution, Snapshot, Version, Work
from cnnserve.transports.http import exposition

from .tables import code, table

_HEAD = """# Metrics

Every metric of `GET /metrics`. [Operate](../operate.md#metrics) says how requests are counted and which metrics to
watch.

"""


_FAMILY = re.compile(r"# HELP (?P<name>\S+) (?P<meaning>.*)\n# TYPE \S+ (?P<kind>\S+)\n(?P<samples>(?:[^#].*\n)*)")
_LABEL = re.compile(r'[{,](\w+)="')


def page() -> str:
    """The page."""
    families = _FAMILY.finditer(exposition.write(_one_of_everything()).decode())
    rows = [(code(one["name"]), one["kind"], _labels(one["samples"]), one["meaning"]) for one in families]
    return _HEAD + table(("Metric", "Type", "Labels", "Meaning"), rows)


def _one_of_everything() -> Snapshot:
    """Of a server with one model that did nothing yet."""
    never = Distribution((0,) * (len(BOUNDS_NS) + 1), 0)
    work = Work(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {"OTHER": 0}, {1: 0}, never, never, never, never)
    version = Version("model", "1", State.READY, 0.0, {"CPUExecutionProvider": 1}, work)
    return Snapshot((version,), 0, 0, 0, 0, "", "")


def _labels(samples: str) -> str:
    return ", ".join(code(name) for name in dict.fromkeys(_LABEL.findall(samples)) if name != "le")
