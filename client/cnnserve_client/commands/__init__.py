"""The client's commands: `classify`, `models`, `labels`, `load`, `unload` and `health`.

May import the client library.
"""
