"""The HTTP transport: the same use cases on another wire.

May import `transports.lull`, `api` and the rooms below it.
"""
