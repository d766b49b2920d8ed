"""The one error an export ends with; its text is for the person who typed the command."""


class ExportError(Exception):
    """The export cannot be done or was not proved right; nothing was published. The text says why and what to do."""
