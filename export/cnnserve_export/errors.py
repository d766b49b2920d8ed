"""The error that ends an export or an import."""


class ExportError(Exception):
    """The version cannot be made, or a check of it failed; nothing was published.

    The text is for the user who typed the command: what happened, which value caused it, and what to do.
    """
