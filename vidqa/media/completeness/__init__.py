"""Whether a video is complete and intact.

In: an open video and its frame index. Out: notes for `MediaFacts.notes`; a sound video has none.

video_notes.py    the notes
truncation.py     whether the end of the file is missing
note_wording.py   the text of the notes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.media.completeness.video_notes import completeness_notes

__all__ = ["completeness_notes"]

__getattr__ = lazy_exports(__name__, {"completeness_notes": "video_notes"})
