"""Commands as functions: they connect media, encoders, cache, prompts, model and tables. One module per command.

describe.py, dry_run.py, encode.py, ask.py, chat.py, search.py   answer questions about files, and find files
bench.py, doctor.py, models.py                                   inspect the machine and the models
train.py, check_data.py, training_features.py                    fine-tune a model
run/                                                             the stages that these commands share
monitor/                                                         messages, event log, counts and signals of a run
memory_estimate.py                                               memory of a 7B model, for doctor
"""

from importlib import import_module

#: The functions of the commands are exported by `vidqa` itself; here they would hide the modules of the same name.
_EXPORTS = {
    "LoadedModel": "vidqa.pipeline.run.loaded_model",
    "Reporter": "vidqa.pipeline.monitor.reporter",
    "RunOptions": "vidqa.pipeline.run.run_options",
    "Summary": "vidqa.pipeline.monitor.summary",
}
__all__ = ["LoadedModel", "Reporter", "RunOptions", "Summary"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
