"""CSV files for spreadsheets: cells that a spreadsheet would run as formulas are written as text, and can be read back.

A file name or an answer may start with a character that makes it a formula. In a CSV file for spreadsheets such a cell
is prefixed with an apostrophe, and so is a cell that already starts with apostrophes and such a character. The file
starts with a byte order mark, which spreadsheets need in order to read UTF-8. vidqa recognizes such files by the mark,
and removes the added apostrophes when it reads them. Numbers are not changed.
"""

from __future__ import annotations

import codecs
import os

import polars as pl

#: Equals, plus, minus, at, tab, line breaks, and the full-width forms that some spreadsheets accept.
_FORMULA = r"[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20]"


def escape_formulas(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with an apostrophe in front of all strings that a spreadsheet would run as a formula."""
    return frame.with_columns(pl.col(pl.String).str.replace(rf"^('*{_FORMULA})", "'${1}"))


def unescape_formulas(frame: pl.DataFrame) -> pl.DataFrame:
    """Undo `escape_formulas`."""
    return frame.with_columns(pl.col(pl.String).str.replace(rf"^'('*{_FORMULA})", "${1}"))


def is_for_spreadsheets(path: str | os.PathLike[str]) -> bool:
    """Return whether a CSV file has escaped formulas. False if there is no such file."""
    try:
        with open(path, "rb") as f:
            return f.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    except FileNotFoundError:
        return False
