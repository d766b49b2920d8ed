"""The client's commands: `classify`, `models`, `labels`, `load`, `unload` and `health`.

They use the client library.
"""
