"""The `parameters` of config.pbtxt: which names are known, and how values are read."""

import math
from collections.abc import Mapping, Sequence

from cnnserve.errors import ModelLoadFailed

_PREFIX = "cnnserve."
# Parameters of this server. `execution` reads those without a comment.
ALLOW_UNVERIFIED = "cnnserve.allow_unverified"
LAYOUT = "cnnserve.layout"
TARGET = "cnnserve.target_p99_ms"
OWN_PARAMETERS = (
    "cnnserve.allow_cpu_fallback",
    # `pbtxt` reads the next one.
    ALLOW_UNVERIFIED,
    "cnnserve.batch_buckets",
    # `image_settings` reads the next three.
    "cnnserve.image",
    "cnnserve.max_pixels",
    "cnnserve.preprocess",
    "cnnserve.run_timeout_s",
    # `layout` reads the next one, `settings` the last.
    LAYOUT,
    TARGET,
)

# `in_force.report` adds these to the config that clients see. In a config.pbtxt they have no effect.
REPORTED_PARAMETERS = ("cnnserve.activation", "cnnserve.encoded_images", "cnnserve.verified")

_RUNTIME_PARAMETERS = (
    "enable_mem_arena",
    "enable_mem_pattern",
    "execution_mode",
    "inter_op_thread_count",
    "intra_op_thread_count",
    "memory.enable_memory_arena_shrinkage",
    "session.use_device_allocator_for_initializers",
)
_ELSEWHERE = {
    **dict.fromkeys(
        ("arena_extend_strategy", "cudnn_conv_algo_search", "do_copy_in_default_stream", "gpu_mem_limit"),
        "it belongs to the accelerator cuda; move it to "
        'optimization { execution_accelerators { gpu_execution_accelerator { name: "cuda" } } }',
    ),
    "share_session_between_instances": "it has no effect, because CPU instances always share one session and GPU "
    "instances never do; remove it",
}
_SHORTEST_S, _LONGEST_S = 0.001, 86400
_SHORTEST_MS, _LONGEST_MS = 0.1, 60_000
_BOOLEANS = {"0": "0", "false": "0", "1": "1", "true": "1"}


def check_names(parameters: Mapping[str, str]) -> None:
    """Raises `ModelLoadFailed` for an unknown parameter."""
    for name in parameters:
        if name in _ELSEWHERE:
            raise ModelLoadFailed(f"config.pbtxt: parameter {name}: {_ELSEWHERE[name]}")
        if name not in (*OWN_PARAMETERS, *REPORTED_PARAMETERS, *_RUNTIME_PARAMETERS):
            known = OWN_PARAMETERS if name.startswith(_PREFIX) else (*_RUNTIME_PARAMETERS, *OWN_PARAMETERS)
            raise unknown("parameter", name, known)


def flag(source: str, name: str, text: str) -> bool:
    """Returns the value of a Boolean: true, false, 1 or 0. Raises `ModelLoadFailed`."""
    if text.lower() not in _BOOLEANS:
        raise bad_value(source, name, text, "true or false")
    return _BOOLEANS[text.lower()] == "1"


def whole(source: str, name: str, text: str, minimum: int) -> int:
    """Returns the value of a whole number that is at least `minimum`. Raises `ModelLoadFailed`."""
    if not (text.isascii() and text.isdigit() and int(text) >= minimum):
        raise bad_value(source, name, text, f"a whole number of at least {minimum}")
    return int(text)


def seconds(source: str, name: str, text: str) -> float:
    """Returns the value of a time of 0.001 s to a day. Raises `ModelLoadFailed`."""
    return _between(source, name, text, (_SHORTEST_S, _LONGEST_S), "seconds")


def milliseconds(source: str, name: str, text: str) -> float:
    """Returns the value of a time of 0.1 ms to a minute. Raises `ModelLoadFailed`."""
    return _between(source, name, text, (_SHORTEST_MS, _LONGEST_MS), "milliseconds")


def _between(source: str, name: str, text: str, limits: tuple[float, float], unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not limits[0] <= value <= limits[1]:
        raise bad_value(source, name, text, f"a number of {unit} from {limits[0]} to {limits[1]}")
    return value


def unknown(source: str, name: str, known: Sequence[str]) -> ModelLoadFailed:
    """Returns the error for an unknown name, with the known names."""
    return ModelLoadFailed(f'config.pbtxt: {source} "{name}" is unknown, expected one of {", ".join(sorted(known))}')


def bad_value(source: str, name: str, text: str, expected: str) -> ModelLoadFailed:
    """Returns the error for a value, with the expected ones."""
    return ModelLoadFailed(f'config.pbtxt: {source} {name} is "{text}", expected {expected}')
