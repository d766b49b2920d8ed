"""Reads how images were prepared in training from the files that training tools write: `read`."""

from cnnserve_export.configs.reading import read

__all__ = ["read"]
