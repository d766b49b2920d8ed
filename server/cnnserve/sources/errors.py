"""The errors of packs and of their sources."""


class SourceError(Exception):
    """A pack cannot be made, or a source cannot be used; nothing was published.

    The text is for the user who typed the command: what happened, which value caused it, and what to do.
    """


class NotFound(SourceError):
    """The source has no file of this name."""
