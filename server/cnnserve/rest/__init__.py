"""HTTP: the same use cases on another wire."""
