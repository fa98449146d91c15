"""vidqa: answer questions about folders of videos and images.

    paths -> media -> FrameBatch -> encoders -> Features -> cache
                                                              |
    questions -> prompts -----------------> model + generate -+-> AnswerRow -> tables

Each file is decoded and encoded once; its features stay in a cache on disk, and every later question starts from them.
There is always one row per file, segment and question: if a file fails, its row has the error instead of an answer.

    import vidqa
    vidqa.describe("examples/clips", out="captions.parquet")
    print(vidqa.ask("clip.mp4", "What happens?")[0].answer)

Functions: describe, ask, chat, search, encode, train, check_data, convert, load_model, read_table.

All names are loaded on first use: importing vidqa imports neither torch nor a decoder.
"""

from vidqa.import_path import ignore_working_folder, is_program

if is_program():  # before the first import that the working folder could answer
    ignore_working_folder()

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

__version__ = "0.1.0"

__all__ = [
    "AnswerRow",
    "BundleError",
    "CacheError",
    "ChatSession",
    "ChatTurn",
    "Conversion",
    "DeviceError",
    "FileSelection",
    "ItemError",
    "LoadedModel",
    "LockedError",
    "MediaError",
    "Precision",
    "Progress",
    "PromptTooLongError",
    "Question",
    "Reporter",
    "RunOptions",
    "SearchHit",
    "SearchResult",
    "StageCheck",
    "Summary",
    "TableError",
    "TrainError",
    "TrainSummary",
    "UsageError",
    "VidqaError",
    "__version__",
    "ask",
    "chat",
    "check_data",
    "convert",
    "describe",
    "encode",
    "load_model",
    "read_table",
    "search",
    "train",
]

if TYPE_CHECKING:  # editors and type checkers do not evaluate __getattr__
    from vidqa.conversion.convert import Conversion
    from vidqa.errors import (
        BundleError,
        CacheError,
        DeviceError,
        ItemError,
        LockedError,
        MediaError,
        PromptTooLongError,
        TableError,
        TrainError,
        UsageError,
        VidqaError,
    )
    from vidqa.generate.chat_session import ChatSession, ChatTurn
    from vidqa.media.selection.file_selection import FileSelection
    from vidqa.pipeline.ask import ask
    from vidqa.pipeline.chat import chat
    from vidqa.pipeline.check_data import StageCheck, check_data
    from vidqa.pipeline.convert_model import convert
    from vidqa.pipeline.describe import describe
    from vidqa.pipeline.encode import encode
    from vidqa.pipeline.monitor.progress_display import Progress
    from vidqa.pipeline.monitor.reporter import Reporter
    from vidqa.pipeline.monitor.summary import Summary
    from vidqa.pipeline.run.loaded_model import LoadedModel, Precision, load_model
    from vidqa.pipeline.run.run_options import RunOptions
    from vidqa.pipeline.search import SearchHit, SearchResult, search
    from vidqa.pipeline.train import TrainSummary, train
    from vidqa.records import AnswerRow, Question
    from vidqa.tables.formats import read_table

#: Name -> the module that defines it.
_EXPORTS = {
    "describe": "pipeline.describe",
    "ask": "pipeline.ask",
    "chat": "pipeline.chat",
    "search": "pipeline.search",
    "encode": "pipeline.encode",
    "train": "pipeline.train",
    "check_data": "pipeline.check_data",
    "convert": "pipeline.convert_model",
    "load_model": "pipeline.run.loaded_model",
    "read_table": "tables.formats",
    "Question": "records",
    "RunOptions": "pipeline.run.run_options",
    "FileSelection": "media.selection.file_selection",
    "Summary": "pipeline.monitor.summary",
    "AnswerRow": "records",
    "SearchResult": "pipeline.search",
    "SearchHit": "pipeline.search",
    "ChatSession": "generate.chat_session",
    "ChatTurn": "generate.chat_session",
    "LoadedModel": "pipeline.run.loaded_model",
    "Precision": "pipeline.run.loaded_model",
    "TrainSummary": "pipeline.train",
    "StageCheck": "pipeline.check_data",
    "Conversion": "conversion.convert",
    "Progress": "pipeline.monitor.progress_display",
    "Reporter": "pipeline.monitor.reporter",
    "VidqaError": "errors",
    "UsageError": "errors",
    "DeviceError": "errors",
    "BundleError": "errors",
    "CacheError": "errors",
    "TableError": "errors",
    "TrainError": "errors",
    "LockedError": "errors",
    "ItemError": "errors",
    "MediaError": "errors",
    "PromptTooLongError": "errors",
}

__getattr__ = lazy_exports(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return sorted(__all__)
