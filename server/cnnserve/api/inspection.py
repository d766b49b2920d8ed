"""Handlers for what Triton's clients read from a running server: config, statistics, trace and log settings."""

import logging
from collections.abc import Collection, Iterator

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import INFERENCE, CallContext, Method
from cnnserve.batching import statistics as s
from cnnserve.errors import InvalidInput, Unsupported
from cnnserve.model.version import Model
from cnnserve.registry.registry import Registry
from cnnserve.wire import open_inference_pb2 as pb

_TRACE = {"trace_level": "OFF", "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0", "trace_mode": "triton"}


class InspectionService:
    """Handlers of ModelConfig, ModelStatistics, TraceSetting and LogSettings. Clients cannot change settings."""

    extensions = ("model_configuration", "statistics")

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self) -> list[Method]:
        """Returns the service's rows of the method table."""
        return [
            Method(
                f"{INFERENCE}/ModelConfig", pb.ModelConfigRequest, pb.ModelConfigResponse, self.model_config, Scope.READ
            ),
            Method(
                f"{INFERENCE}/ModelStatistics",
                pb.ModelStatisticsRequest,
                pb.ModelStatisticsResponse,
                self.model_statistics,
                Scope.READ,
            ),
            Method(
                f"{INFERENCE}/TraceSetting",
                pb.TraceSettingRequest,
                pb.TraceSettingResponse,
                self.trace_setting,
                Scope.READ,
            ),
            Method(
                f"{INFERENCE}/LogSettings", pb.LogSettingsRequest, pb.LogSettingsResponse, self.log_settings, Scope.READ
            ),
        ]

    async def model_config(self, request: pb.ModelConfigRequest, _: CallContext) -> pb.ModelConfigResponse:
        """Returns the config in force, including the derived values. Raises as `Registry.get`."""
        return pb.ModelConfigResponse(config=self._registry.get(request.name, request.version).info.config)

    async def model_statistics(self, request: pb.ModelStatisticsRequest, _: CallContext) -> pb.ModelStatisticsResponse:
        """Returns one row for each READY version: the one asked for, those of one model, or all.

        Raises as `Registry.get`, and `InvalidInput` if the request has a version but no model.
        """
        return pb.ModelStatisticsResponse(model_stats=map(_statistics, self._models(request)))

    async def trace_setting(self, request: pb.TraceSettingRequest, _: CallContext) -> pb.TraceSettingResponse:
        """Returns Triton's settings for "nothing is traced".

        Raises `Unsupported` if the request has settings to change, and as `Registry.entry`.
        """
        _refuse_change(request.settings, "this server does not trace; send no settings")
        if request.model_name:
            self._registry.entry(request.model_name)
        response = pb.TraceSettingResponse()
        for name, value in _TRACE.items():
            response.settings[name].value.append(value)
        return response

    async def log_settings(self, request: pb.LogSettingsRequest, _: CallContext) -> pb.LogSettingsResponse:
        """Returns Triton's log settings for the log level in force. Raises `Unsupported` if there are any to change."""
        _refuse_change(request.settings, "only the server's --log-level sets what is logged; send no settings")
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
            raise InvalidInput(f"the request has version {request.version!r} but no model; set the model's name, too")
        if request.version:
            yield self._registry.get(request.name, request.version)
            return
        if request.name:
            # If no version is READY, this raises an error with the reason.
            self._registry.get(request.name)
        entries = [self._registry.entry(request.name)] if request.name else self._registry.models
        for entry in entries:
            for version in entry.ready:
                if version.model is not None:
                    yield version.model


def _refuse_change(settings: Collection[str], reason: str) -> None:
    if settings:
        raise Unsupported(f"{', '.join(sorted(settings))} cannot be changed by a call: {reason}")


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
