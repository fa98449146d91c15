"""vidqa: describe and question a folder of video.

    paths -> media -> FrameBatch -> encoders -> Features -> cache
                                                              |
    questions -> prompts -----------------> model + generate -+-> AnswerRow -> tables

Encode once, ask forever: a clip is decoded and encoded one time, its features stay on disk, and every later question
starts from them. One row for every (clip, segment, question), whatever happens; an error is a status, never a caption.

    import vidqa
    vidqa.describe("examples/clips", out="captions.parquet")
    print(vidqa.ask("clip.mp4", "What happens?")[0].answer)

The names below are loaded on first use: importing vidqa imports neither torch nor a decoder.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

#: Public name -> the module that has it.
_HOMES = {
    "load_model": "vidqa.pipeline.run.loaded_model",
    "describe": "vidqa.pipeline.describe",
    "ask": "vidqa.pipeline.ask",
    "chat": "vidqa.pipeline.chat",
    "search": "vidqa.pipeline.search",
    "read_table": "vidqa.tables.formats",
    "AnswerRow": "vidqa.records",
    "Question": "vidqa.records",
    "RunOptions": "vidqa.pipeline.run.run_options",
    "VidqaError": "vidqa.errors",
}

__all__ = [
    "AnswerRow",
    "Question",
    "RunOptions",
    "VidqaError",
    "__version__",
    "ask",
    "chat",
    "describe",
    "load_model",
    "read_table",
    "search",
]

if TYPE_CHECKING:  # for editors and type checkers, which do not see __getattr__'s names
    from vidqa.errors import VidqaError
    from vidqa.pipeline.ask import ask
    from vidqa.pipeline.chat import chat
    from vidqa.pipeline.describe import describe
    from vidqa.pipeline.run.loaded_model import load_model
    from vidqa.pipeline.run.run_options import RunOptions
    from vidqa.pipeline.search import search
    from vidqa.records import AnswerRow, Question
    from vidqa.tables.formats import read_table


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vidqa' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
