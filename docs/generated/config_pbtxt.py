"""The names that `parameters` and the execution accelerators of a config.pbtxt may have."""

from collections.abc import Mapping

from cnnserve.model_config import parameters, providers

from .tables import code, table

_OWN = {
    "cnnserve.allow_cpu_fallback": "`true`: if there is no GPU, or for nodes that it cannot run, the CPU is allowed",
    "cnnserve.allow_unverified": "`true`: versions without a manifest are served, although the model has or had one "
    "with a manifest; only the config file can say so, no load call",
    "cnnserve.batch_buckets": "sizes to which batches are padded, for example `1,2,4,8`",
    "cnnserve.image": "for a model without a manifest: [how an image becomes the input](../images.md"
    "#models-without-a-manifest), as JSON",
    "cnnserve.max_pixels": "an image of a client may have at most this many pixels, before and after the resize",
    "cnnserve.run_timeout_s": "longest time of a run in seconds; a version whose run takes longer is taken out of "
    "service (default: 60 s or 50 times the slowest run of the self-test, whichever is more)",
    "cnnserve.layout": "`auto`: the server finds the [layout](../tune.md#automatic-layouts) by itself; `fixed`: it "
    "does not, also with `--auto-layout` (default: as `--auto-layout` says)",
    "cnnserve.target_p99_ms": "[latency target](../performance.md#a-latency-target) in milliseconds; requests that "
    "cannot meet it are refused (default: none)",
    "cnnserve.preprocess": "`exact` (default), or `fast`: [faster preprocessing whose pixels may differ]"
    "(../images.md#exact-and-fast)",
}
_REPORTED = {
    "cnnserve.activation": "what the values of the output went through",
    "cnnserve.encoded_images": "the model takes image files as BYTES",
    "cnnserve.verified": "a manifest states the digests of the files, and the self-test passed",
}
_RUNTIME = {
    "enable_mem_arena": "`true` (default) or `false`: ONNX Runtime keeps memory of the CPU for the next run",
    "enable_mem_pattern": "`true` (default) or `false`: ONNX Runtime plans the memory of a run ahead",
    "execution_mode": "`0` (default): nodes of the graph run one after another; `1`: nodes that do not depend on each "
    "other run in parallel",
    "inter_op_thread_count": "threads for parallel nodes; `0` (default): ONNX Runtime chooses",
    "intra_op_thread_count": "threads within a node; `0` (default): the server chooses",
    "memory.enable_memory_arena_shrinkage": "devices whose unused memory is returned after each run, for example "
    "`cpu:0;gpu:0`",
    "session.use_device_allocator_for_initializers": "`true` or `false` (default): weights get memory of their own "
    "instead of a part of the arena",
}
_HEAD = """# Parameters of config.pbtxt

[Model repository and config.pbtxt](../model-repository.md) says what each field does; every field stands in
[Messages](messages.md#inferencemodelconfig). This page has the names that the server accepts in `parameters` and in
`execution_accelerators`. A name that is not here fails the load; the error lists the known names.

"""


def page() -> str:
    """The page. Raises `ValueError` where the code has a name that is not described here."""
    return (
        _HEAD
        + "## parameters of cnnserve\n\n"
        + _described(_OWN, parameters.OWN_PARAMETERS)
        + "\n## parameters of ONNX Runtime\n\n"
        + _described(_RUNTIME, parameters._RUNTIME_PARAMETERS)
        + "\n## parameters that the server reports\n\n"
        + "`ModelConfig` adds these. In a config.pbtxt they have no effect.\n\n"
        + _described(_REPORTED, parameters.REPORTED_PARAMETERS)
        + '\n## gpu_execution_accelerator "cuda"\n\n'
        + _rules(providers._CUDA_RULES, providers._CUDA_DEFAULTS)
        + '\n## gpu_execution_accelerator "tensorrt"\n\n'
        + _rules(providers._TENSORRT_RULES, providers._TENSORRT_DEFAULTS)
        + "\nThe words of Triton are accepted, too: `precision_mode` with "
        + ", ".join(map(code, providers._PRECISIONS))
        + ", and "
        + ", ".join(f"{code(word)} for {code(name)}" for word, name in providers._TENSORRT_ALIASES.items())
        + ".\n"
    )


def _described(texts: Mapping[str, str], names: tuple[str, ...]) -> str:
    if texts.keys() != set(names):
        raise ValueError(f"docs/generated/config_pbtxt.py describes {sorted(texts)}, the code has {sorted(names)}")
    return table(("Key", "Value"), [(code(name), texts[name]) for name in names])


def _rules(rules: Mapping[str, providers._Rule], defaults: Mapping[str, str]) -> str:
    return table(
        ("Option", "Value", "Default of cnnserve"),
        [(code(name), _values(rule), code(defaults.get(name, ""))) for name, rule in rules.items()],
    )


def _values(rule: providers._Rule) -> str:
    if rule is None:
        return "text"
    if isinstance(rule, int):
        return f"whole number from {rule}"
    return " or ".join(map(code, rule))
