"""The gRPC transport on grpc's core: the event loop takes the core's events itself.

May import `transports.calls`, `transports.lull`, `api` and the rooms below it. grpcio's own synchronous server is
written with `grpc._cython.cygrpc`, but that module is not public. So `probe` tries the transport at the start of the
server, and `grpc.aio` serves if the probe fails.
"""
