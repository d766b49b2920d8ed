"""Takes out of a library's error text what concerns the server only.

Such texts reach clients; the log has them whole.
"""

import re

_LONGEST = 4000
# Where in a library's C++ source the error arose: file, line, and the function or its whole signature.
_SOURCE = re.compile(
    r"(?:[\w./+~-]*/)?[\w+-]+\.(?:cc|cpp|cxx|cu|cuh|h|hpp):\d+:? ?"
    r"(?:[\w:~<>&*,\s]*?[\w>]\([^()]*(?:\([^()]*\)[^()]*)*\)(?: const)?(?: \[[^\]]*\])? "
    r"|[A-Za-z_]\w*(?:::~?\w+)+ |[A-Z]\w*[a-z][A-Z]\w* )?"
)
_OBJECT = re.compile(r"<[\w.]+(?: object)? at 0x[0-9a-fA-F]+>")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
# An absolute path, but not a part of a URL or of a relative path.
_FOLDERS = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s/'\"`:;,()\[\]<>]+/)+")


def redacted(text: str) -> str:
    """Returns a text without C++ sources and signatures, addresses of objects, and folders before file names.

    No message could hold half a character, as in the name of a file that is not UTF-8: it is escaped.
    """
    text = text[:_LONGEST].encode(errors="backslashreplace").decode()
    for pattern, instead in ((_SOURCE, ""), (_OBJECT, "the data"), (_ADDRESS, "an address"), (_FOLDERS, "")):
        text = pattern.sub(instead, text)
    return text.strip()
