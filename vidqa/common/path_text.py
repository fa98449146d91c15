r"""File names of arbitrary bytes as text that every table format can hold.

Python keeps an undecodable byte of a file name as a lone surrogate, which neither Parquet nor JSON can store. In the
columns `path` and `root`, and wherever a name is printed, such a byte is written `\xff`; in columns and JSON the
backslashes of that name are doubled. A name that merely looks escaped (it really contains `\x41`) is treated the same
way; all other names stay unchanged. Two different names therefore never become equal, and `unescape_path` restores
every one.
"""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")
_LOOKS_ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")


def escape_path(name: str) -> str:
    """Return the text that represents a file name in a table.

    Args:
        name: as `os` returns it, with undecodable bytes as lone surrogates.
    """
    if not _SURROGATE.search(name) and not _LOOKS_ESCAPED.search(name):
        return name
    return escape_surrogates(name.replace("\\", "\\\\"))


def unescape_path(text: str) -> str:
    """Return the file name that `escape_path` received."""
    return _ESCAPED.sub(_unescape_match, text) if _LOOKS_ESCAPED.search(text) else text


def escape_surrogates(text: str) -> str:
    """Return a text other than a path, such as an error message, with lone surrogates escaped; not reversible."""
    return _SURROGATE.sub(_escape_match, text)


def encode_surrogates(error: UnicodeError) -> tuple[str, int]:
    """Escape what a stream cannot encode; a handler for `codecs.register_error`.

    Surrogates are escaped as by `escape_surrogates`; other characters, on an ASCII terminal, as Python would.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = escape_surrogates(error.object[error.start : error.end])
    return text.encode(error.encoding, "backslashreplace").decode(error.encoding), error.end


def _escape_match(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _unescape_match(match: re.Match[str]) -> str:
    body = match[1]
    if body == "\\":
        return body
    return chr(0xDC00 + int(body[1:], 16)) if body[0] == "x" else chr(int(body[1:], 16))
