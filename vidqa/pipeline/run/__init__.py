"""The stages of a run: paths in, rows in a table out. Each stage is a generator over the one before it.

Files are split after decoding: each segment continues as soon as it is decoded, encoded and answered.

scanning.py        paths -> media files
hashing.py         -> the media_id of each file's content
pending.py         -> the work that is not done yet
prefetch.py        -> cached features, or decoded frames
encode_stage.py    -> features of every segment
answer_stage.py    -> rows, made by rows.py
bookkeeping.py     -> the table; retry_policy.py and pruning.py decide about failed and removed files

feature_stages.py connects hashing to encoding. run_context.py, run_options.py and loaded_model.py hold what the stages
share. hardware_limit.py compares the throughput of a run with the hardware.
"""

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["LoadedModel", "RunContext", "RunOptions", "encode_files"]

__getattr__ = lazy_exports(
    __name__,
    {
        "LoadedModel": "loaded_model",
        "RunContext": "run_context",
        "RunOptions": "run_options",
        "encode_files": "feature_stages",
    },
)
