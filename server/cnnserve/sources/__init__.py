"""Where versions come from before a server starts: packs, registries and object stores, checked and then published.

Nothing that answers requests may import this room.
"""
