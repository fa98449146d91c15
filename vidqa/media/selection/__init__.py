"""Which of the files below the searched paths a run takes.

file_selection.py    the options: patterns, ages, durations, list of paths, sample, limit
path_patterns.py     --exclude, --include and .vidqaignore files; the scan asks them before it opens anything
path_list.py         --files-from
file_durations.py    durations for --min-duration and --max-duration, from a cache or from decoder processes
choose.py            the files of a scan -> those to process, and why the others are excluded
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["FileSelection", "PathPatterns", "choose_files"]

__getattr__ = lazy_exports(
    __name__,
    {"FileSelection": "file_selection", "PathPatterns": "path_patterns", "choose_files": "choose"},
)
