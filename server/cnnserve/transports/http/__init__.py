"""The HTTP transport: the handlers of `api` over HTTP, with JSON and binary data.

May import `transports.lull`, `api` and the packages below it.
"""
