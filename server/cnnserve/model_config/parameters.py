"""The `parameters` of a config.pbtxt: which there are, and how their values are written."""

from collections.abc import Mapping, Sequence

from cnnserve.errors import ModelLoadFailed

_PREFIX = "cnnserve."
# Our own parameters. Those without a comment are read by `execution`.
OWN_PARAMETERS = (
    "cnnserve.allow_cpu_fallback",
    "cnnserve.batch_buckets",
    # These three by `image_settings`.
    "cnnserve.image",
    "cnnserve.max_pixels",
    "cnnserve.preprocess",
)

# What `in_force.effective` tells of a model; of no effect where it comes back in a config.
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
        'put it into optimization { execution_accelerators { gpu_execution_accelerator { name: "cuda" } } }',
    ),
    "share_session_between_instances": "CPU instances always share one session, CUDA instances never do; remove it",
}
_BOOLEANS = {"0": "0", "false": "0", "1": "1", "true": "1"}


def check_names(parameters: Mapping[str, str]) -> None:
    """Raises `ModelLoadFailed` for a parameter that this server does not have."""
    for name in parameters:
        if name in _ELSEWHERE:
            raise ModelLoadFailed(f"config.pbtxt: parameter {name}: {_ELSEWHERE[name]}")
        if name not in (*OWN_PARAMETERS, *REPORTED_PARAMETERS, *_RUNTIME_PARAMETERS):
            known = OWN_PARAMETERS if name.startswith(_PREFIX) else (*_RUNTIME_PARAMETERS, *OWN_PARAMETERS)
            raise unknown("parameters", name, known)


def flag(source: str, name: str, text: str) -> bool:
    """A yes or no as config.pbtxt spells it. Raises `ModelLoadFailed`."""
    if text.lower() not in _BOOLEANS:
        raise bad_value(source, name, text, "true or false")
    return _BOOLEANS[text.lower()] == "1"


def whole(source: str, name: str, text: str, minimum: int) -> int:
    """A whole number of at least `minimum`. Raises `ModelLoadFailed`."""
    if not (text.isascii() and text.isdigit() and int(text) >= minimum):
        raise bad_value(source, name, text, f"a whole number of at least {minimum}")
    return int(text)


def unknown(source: str, name: str, known: Sequence[str]) -> ModelLoadFailed:
    """The error for a name nobody knows, with those that are known."""
    return ModelLoadFailed(f'config.pbtxt: {source} has no "{name}"; known: {", ".join(sorted(known))}')


def bad_value(source: str, name: str, text: str, expected: str) -> ModelLoadFailed:
    """The error for a value that is not what was expected."""
    return ModelLoadFailed(f'config.pbtxt: {source} {name} is "{text}", expected {expected}')
