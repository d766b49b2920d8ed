"""Every metric with its labels, from what the server writes."""

import re

import numpy as np

from cnnserve.batching.drift import Drift, Moments
from cnnserve.batching.statistics import BOUNDS_NS
from cnnserve.model.selftest import SelfTest
from cnnserve.registry.lifecycle import State
from cnnserve.registry.snapshot import Distribution, Snapshot, Version, Work
from cnnserve.transports.http import exposition

from .tables import code, table

_HEAD = """# Metrics

Every metric of `GET /metrics`. [Observability](../observability.md#metrics) says how requests are counted and which
metrics to watch.

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
    work = Work(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {"OTHER": 0}, {1: 0}, never, never, never, never)
    test = SelfTest(0.0, 0.0, 0.0, inputs=Moments(0.0, 0.0))
    drift = Drift()
    drift.add(np.zeros((1, 1), np.uint8), np.ones((1, 2), np.float32))
    version = Version("model", "1", State.READY, 0.0, {"CPUExecutionProvider": 1}, work, test, drift)
    return Snapshot((version,), 0, 0, 0, 0, 0, "", "", {"queue_full": 0}, 0, 0.0)


def _labels(samples: str) -> str:
    return ", ".join(code(name) for name in dict.fromkeys(_LABEL.findall(samples)) if name != "le")
