"""What Triton's clients ask of a running server: config in force, statistics, trace and log settings."""

import logging
from collections.abc import Iterator

from cnnserve.api.methods import INFERENCE, CallContext, Method
from cnnserve.batching import statistics as s
from cnnserve.errors import InvalidInput, Unsupported
from cnnserve.model.version import Model
from cnnserve.registry.registry import Registry
from cnnserve.wire import open_inference_pb2 as pb

_TRACE = {"trace_level": "OFF", "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0", "trace_mode": "triton"}


class InspectionService:
    """ModelConfig, ModelStatistics, TraceSetting, LogSettings. Settings can be read, not changed."""

    extensions = ("model_configuration", "statistics")

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self) -> list[Method]:
        """The service's rows of the method table."""
        return [
            Method(f"{INFERENCE}/ModelConfig", pb.ModelConfigRequest, pb.ModelConfigResponse, self.model_config),
            Method(
                f"{INFERENCE}/ModelStatistics",
                pb.ModelStatisticsRequest,
                pb.ModelStatisticsResponse,
                self.model_statistics,
            ),
            Method(f"{INFERENCE}/TraceSetting", pb.TraceSettingRequest, pb.TraceSettingResponse, self.trace_setting),
            Method(f"{INFERENCE}/LogSettings", pb.LogSettingsRequest, pb.LogSettingsResponse, self.log_settings),
        ]

    async def model_config(self, request: pb.ModelConfigRequest, _: CallContext) -> pb.ModelConfigResponse:
        """The config in force, what was derived included. Raises as `Registry.get`."""
        return pb.ModelConfigResponse(config=self._registry.get(request.name, request.version).info.config)

    async def model_statistics(self, request: pb.ModelStatisticsRequest, _: CallContext) -> pb.ModelStatisticsResponse:
        """One row a READY version: of one version, of one model, of all. Raises as `Registry.get`."""
        return pb.ModelStatisticsResponse(model_stats=map(_statistics, self._models(request)))

    async def trace_setting(self, request: pb.TraceSettingRequest, _: CallContext) -> pb.TraceSettingResponse:
        """That nothing is traced. Raises `ModelNotFound`, and `Unsupported` for a change."""
        _refuse_change("trace", request.settings)
        if request.model_name:
            self._registry.entry(request.model_name)
        response = pb.TraceSettingResponse()
        for name, value in _TRACE.items():
            response.settings[name].value.append(value)
        return response

    async def log_settings(self, request: pb.LogSettingsRequest, _: CallContext) -> pb.LogSettingsResponse:
        """What is logged, in Triton's words. Raises `Unsupported` for a change."""
        _refuse_change("log", request.settings)
        level = logging.getLogger(__package__).getEffectiveLevel()
        response = pb.LogSettingsResponse()
        for name, own in (("log_error", logging.ERROR), ("log_warning", logging.WARNING), ("log_info", logging.INFO)):
            response.settings[name].bool_param = level <= own
        response.settings["log_verbose_level"].uint32_param = int(level <= logging.DEBUG)
        response.settings["log_format"].string_param = "default"
        response.settings["log_file"].string_param = ""
        return response

    def _models(self, request: pb.ModelStatisticsRequest) -> Iterator[Model]:
        if request.version and not request.name:
            raise InvalidInput(f"version {request.version!r} is given without a model's name")
        if request.version:
            yield self._registry.get(request.name, request.version)
            return
        if request.name:
            # Says why where none is READY.
            self._registry.get(request.name)
        entries = [self._registry.entry(request.name)] if request.name else self._registry.models
        for entry in entries:
            for version in entry.ready:
                if version.model is not None:
                    yield version.model


def _refuse_change(what: str, settings: object) -> None:
    if settings:
        raise Unsupported(f"{what} settings can be read, not changed; the server's own flags set them")


def _statistics(model: Model) -> pb.ModelStatistics:
    own = model.statistics
    message = pb.ModelStatistics(
        name=model.info.name,
        version=str(model.info.version),
        last_inference=own.last_inference_ms,
        inference_count=own.inferences,
        execution_count=own.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(own.success),
            fail=_duration(own.fail),
            queue=_duration(own.queue),
            compute_input=_duration(own.steps.compute_input),
            compute_infer=_duration(own.steps.compute_infer),
            compute_output=_duration(own.steps.compute_output),
        ),
    )
    for size, steps in sorted(own.batches.items()):
        message.batch_stats.add(
            batch_size=size,
            compute_input=_duration(steps.compute_input),
            compute_infer=_duration(steps.compute_infer),
            compute_output=_duration(steps.compute_output),
        )
    return message


def _duration(value: s.Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=value.count, ns=value.ns)
