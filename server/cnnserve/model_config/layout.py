"""A layout: how the CPU runs of a model are cut into instances, threads and batches, and the config that says so."""

from dataclasses import dataclass

from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config.parameters import LAYOUT, bad_value
from cnnserve.wire import model_config_pb2 as pb

THREADS = "intra_op_thread_count"


@dataclass(frozen=True, order=True)
class Layout:
    """`instances` share a session of `threads`. `batch`: the size of a batch that leaves at once, at most `delay_us`
    after its oldest request arrived; a free instance takes no larger one.
    """

    instances: int = 1
    threads: int = 1
    batch: int = 1
    delay_us: int = 0

    def __str__(self) -> str:
        delay = f", delay {self.delay_us / 1000:g} ms" if self.delay_us else ""
        return f"{self.instances} × {self.threads} threads, batch {self.batch}{delay}"

    def applied(self, config: pb.ModelConfig | None) -> pb.ModelConfig:
        """Returns a copy of `config` with this layout in place of its own."""
        result = pb.ModelConfig()
        result.MergeFrom(config or pb.ModelConfig())
        del result.instance_group[:]
        result.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=self.instances)
        result.parameters[THREADS].string_value = str(self.threads)
        result.dynamic_batching.preferred_batch_size[:] = [self.batch]
        result.dynamic_batching.ClearField("max_queue_delay_microseconds")
        if self.delay_us:
            result.dynamic_batching.max_queue_delay_microseconds = self.delay_us
        return result


def is_stated(config: pb.ModelConfig | None) -> bool:
    """Returns whether a config says anything of the layout itself."""
    if config is None:
        return False
    batching = config.dynamic_batching
    return bool(
        config.instance_group
        or THREADS in config.parameters
        or batching.preferred_batch_size
        or batching.max_queue_delay_microseconds
    )


def is_automatic(config: pb.ModelConfig | None, *, by_default: bool) -> bool:
    """Returns whether the server is to find the layout. `by_default`: of models whose config leaves that open.

    Raises `ModelLoadFailed` if the config asks for that and states a layout.
    """
    word = config.parameters[LAYOUT].string_value if config is not None and LAYOUT in config.parameters else ""
    if word not in ("", "auto", "fixed"):
        raise bad_value("parameter", LAYOUT, word, "auto or fixed")
    if word == "auto" and is_stated(config):
        raise ModelLoadFailed(
            f"config.pbtxt: parameter {LAYOUT} is auto, but instance_group, {THREADS} or dynamic_batching states a "
            "layout; remove one of them"
        )
    return word == "auto" or (not word and by_default and not is_stated(config))
