"""`cnnserve serve --dry-run`: loads and self-tests what a server would serve at its start, and prints the outcome."""

import signal
import sys
from collections.abc import Iterator

from cnnserve import app
from cnnserve.access.lists import AccessError
from cnnserve.assembly import loading
from cnnserve.config.settings import ServerConfig
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.registry.control import EXPLICIT
from cnnserve.registry.lifecycle import ModelEntry, State, VersionEntry
from cnnserve.registry.registry import Registry
from cnnserve.repository import show_text

_HEADER = ("MODEL", "VERSION", "STATE", "SECONDS", "SELF-TEST OR REASON")


def run(config: ServerConfig) -> int:
    """Returns the exit status: 0 if every version that is to be served is READY, otherwise 1. Opens no port."""
    # A run that is interrupted has not found that all is well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    return app.run(config, _run)


async def _run(config: ServerConfig) -> int:
    try:
        loading.access_control(config)
    except AccessError as error:
        sys.stdout.write(f"NOT ready: {error}\n")
        return 1
    decoders = DecodingPool(1)
    registry = loading.make_registry(config, loading.cpu_threads(config), decoders, loading.memory_budget(config))
    await loading.load_first(config, registry)
    rows = list(_rows(registry))
    failed = sum(row[2] != State.READY.value for row in rows)
    good = not failed and (bool(rows) or config.model_control_mode == EXPLICIT)
    if rows:
        sys.stdout.write(show_text.aligned([_HEADER, *rows], right=(1, 3)) + "\n")
    outcome = f"{'ready' if good else 'NOT ready'}: {len(rows) - failed} of {len(rows)} versions can be served"
    sys.stdout.write(outcome + "\n")
    sys.stdout.flush()
    await registry.close()
    decoders.close()
    return 0 if good else 1


def _rows(registry: Registry) -> Iterator[tuple[str, str, str, str, str]]:
    for model in registry.models:
        if model.wanted and not model.versions:
            yield model.name, "-", State.UNAVAILABLE.value, "-", model.reason
        for entry in model.versions.values():
            yield _row(model, entry)


def _row(model: ModelEntry, entry: VersionEntry) -> tuple[str, str, str, str, str]:
    seconds = "-" if entry.load_s is None else f"{entry.load_s:.2f}"
    info = None if entry.model is None else entry.model.info
    found = entry.reason if info is None else str(info.self_test or info.probe)
    return model.name, str(entry.version), entry.state.value, seconds, found
