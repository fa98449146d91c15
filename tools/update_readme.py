#!/usr/bin/env python3
"""Update the table in README.md with the answers of the demo model.

python tools/update_readme.py           # run the demo model on examples/clips and rewrite the table
python tools/update_readme.py --check   # change nothing; exit with 1 if the table is out of date
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from vidqa import describe, read_table
from vidqa.pipeline.run.run_options import RunOptions

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
START, END = "<!-- table: python tools/update_readme.py -->", "<!-- end of table -->"


def table() -> str:
    """Return the rows of the README's first command as a Markdown table, with the columns that fit a page."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "captions.parquet")
        describe(str(ROOT / "examples" / "clips"), out, options=RunOptions(cache_dir=Path(folder, "cache")))
        rows = read_table(out).sort("path").to_dicts()
    lines = ["| path | end_s | answer | status |", "| --- | --- | --- | --- |"]
    lines += [f"| {row['path']} | {row['end_s']:.1f} | {row['answer']} | {row['status']} |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    """Rewrite or check the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the table is out of date")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    new = f"{before}{START}\n{table()}\n{END}{after}"
    if new == text:
        return 0
    if check:
        print("the table in README.md is out of date: python tools/update_readme.py", file=sys.stderr)
        return 1
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
