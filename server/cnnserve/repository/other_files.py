"""Recognises what often stands in place of a model or of weights, by its first bytes."""

import re

# So many bytes are enough.
HEAD_BYTES = 512
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)", re.IGNORECASE)


def named(head: bytes) -> str:
    """Returns what a file is that begins with `head`, and what to do; "" if it is nothing of that kind."""
    if not head:
        return "empty (0 bytes), perhaps because a copy or a download of it was ended; copy or download it again"
    if head.startswith(_LFS):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` in the repository from which it was copied"
    if _HTML.match(head):
        return "an HTML page, perhaps of an error or a sign-in; download the file again"
    return ""
