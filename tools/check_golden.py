"""Compare vidqa with recorded outputs of the published models' own code, one line per fixture.

    python tools/check_golden.py tests/golden
    python tools/check_golden.py DIR --only valley --verbose

A fixture is NAME.json, usually with NAME.safetensors. Sizes, texts and seeds come from these files, so any folder with
the same layout works. Each line shows what was compared, the largest error, and how many token ids are equal.
Differences, and stored values without a counterpart in vidqa, follow below it. Missing and unexpected files are listed.

Exit status: 0 all present fixtures agree; 1 a fixture differs or is damaged, or there is none; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from golden_checks.report import Report

#: Fixture -> the module that compares it, and whether it has tensors.
FIXTURES = {
    "frame_indices": ("frames", False),
    "languagebind_image": ("towers", True),
    "languagebind_video": ("towers", True),
    "preprocess": ("preprocess", True),
    "prompts": ("prompts", False),
    "valley": ("valley", True),
    "video_chatgpt": ("video_chatgpt", True),
    "video_llava_forward": ("video_llava", True),
    "video_llava_hf": ("video_llava_hf", True),
}
#: Other files that the folder may contain.
OTHER_FILES = {"README.md", "tokenizer.model"}


def check(folder: Path, name: str) -> Report:
    """Compare one fixture; an exception is reported as a mismatch."""
    from golden_checks.fixture import Fixture

    module = FIXTURES[name][0]
    if missing := [f for f in files_of(name) if not (folder / f).is_file()]:
        return Report(name, misses=[f"{f}: missing" for f in missing])
    try:
        return importlib.import_module(f"golden_checks.{module}").check(Fixture.read(folder, name))
    except Exception as e:  # noqa: BLE001 - a malformed fixture must not stop the comparison of the others
        return Report(name, misses=[f"stopped by {type(e).__name__}: {e}"])


def files_of(name: str) -> list[str]:
    """Return the file names of a fixture."""
    return [f"{name}.json", f"{name}.safetensors"] if FIXTURES[name][1] else [f"{name}.json"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with the fixtures")
    parser.add_argument("--only", action="append", choices=sorted(FIXTURES), help="only this fixture; repeatable [all]")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print all differences and notes, not only the first five"
    )
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    names = options.only or list(FIXTURES)
    ran = failed = 0
    for name in names:
        if not any((options.folder / f).exists() for f in files_of(name)):
            print(f"none  {name:<20} not in the folder: {', '.join(files_of(name))}")
            failed += bool(options.only)
            continue
        report = check(options.folder, name)
        ran, failed = ran + 1, failed + (not report.ok)
        print(report.line(), flush=True)
        for kind, lines in (("differs", report.misses), ("note", report.notes)):
            shown = lines if options.verbose else lines[:5]
            for line in [*shown, *([f"... and {len(lines) - len(shown)} more"] if len(lines) > len(shown) else [])]:
                print(f"        {kind}: {line}")
    expected = {f for name in FIXTURES for f in files_of(name)} | OTHER_FILES
    for extra in sorted(p.name for p in options.folder.iterdir() if p.name not in expected):
        print(f"extra {extra}: not a fixture, ignored")
    print(f"{ran} fixtures compared, {failed} with differences")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
