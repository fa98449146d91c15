r"""File names of any bytes <-> text that every table format can hold.

Python keeps an undecodable byte of a name as a lone surrogate, which is no text: neither Parquet nor JSON may hold it.
In the columns `path` and `root`, and wherever a name is printed, such a byte is written `\xff`; in columns and JSON the
backslashes of that name are doubled. A name that only looks as if it were written so (it really contains `\x41`) is
treated the same way; all others stay as they are. So two names never become one, and `unescape` finds every file again.
"""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")
_LOOKS_ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")


def escape(name: str) -> str:
    """The text that stands for a file name in a table.

    Args:
        name: as Python gives it, undecodable bytes as lone surrogates.
    """
    if not _SURROGATE.search(name) and not _LOOKS_ESCAPED.search(name):
        return name
    return visible(name.replace("\\", "\\\\"))


def unescape(text: str) -> str:
    """The file name that `escape` was given."""
    return _ESCAPED.sub(_original, text) if _LOOKS_ESCAPED.search(text) else text


def visible(text: str) -> str:
    """Any other text with lone surrogates made visible, as in the sentence of an error; not to be undone."""
    return _SURROGATE.sub(_shown, text)


def encode_visibly(error: UnicodeError) -> tuple[str, int]:
    """An error handler for `codecs.register_error`: writes what a stream cannot take as `visible` does.

    What is no surrogate (an ASCII terminal) is written with backslashes, as Python would.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = visible(error.object[error.start : error.end])
    return text.encode(error.encoding, "backslashreplace").decode(error.encoding), error.end


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _original(match: re.Match[str]) -> str:
    what = match[1]
    if what == "\\":
        return what
    return chr(0xDC00 + int(what[1:], 16)) if what[0] == "x" else chr(int(what[1:], 16))
