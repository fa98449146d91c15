"""vidqa: answer questions about folders of videos and images.

    paths -> media -> FrameBatch -> encoders -> Features -> cache
                                                              |
    questions -> prompts -----------------> model + generate -+-> AnswerRow -> tables

Each file is decoded and encoded once; its features stay in a cache on disk, and every later question starts from them.
There is always one row per file, segment and question: if a file fails, its row has the error instead of an answer.

    import vidqa
    vidqa.describe("examples/clips", out="captions.parquet")
    print(vidqa.ask("clip.mp4", "What happens?")[0].answer)

The public names are loaded on first use: importing vidqa imports neither torch nor a decoder.
"""

from vidqa.import_path import ignore_working_folder, is_program

if is_program():  # before the first import that the working folder could answer
    ignore_working_folder()

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

__version__ = "0.1.0"

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

if TYPE_CHECKING:  # editors and type checkers do not evaluate __getattr__
    from vidqa.errors import VidqaError
    from vidqa.pipeline.ask import ask
    from vidqa.pipeline.chat import chat
    from vidqa.pipeline.describe import describe
    from vidqa.pipeline.run.loaded_model import load_model
    from vidqa.pipeline.run.run_options import RunOptions
    from vidqa.pipeline.search import search
    from vidqa.records import AnswerRow, Question
    from vidqa.tables.formats import read_table

__getattr__ = lazy_exports(
    __name__,
    {
        "load_model": "pipeline.run.loaded_model",
        "describe": "pipeline.describe",
        "ask": "pipeline.ask",
        "chat": "pipeline.chat",
        "search": "pipeline.search",
        "read_table": "tables.formats",
        "AnswerRow": "records",
        "Question": "records",
        "RunOptions": "pipeline.run.run_options",
        "VidqaError": "errors",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
