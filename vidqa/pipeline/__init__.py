"""Commands as functions: they connect media, encoders, cache, prompts, model and tables. One module per command.

describe.py, dry_run.py, encode.py, ask.py, chat.py, search.py   answer questions about files, and find files
bench.py, doctor.py, models.py                                   inspect the machine and the models
train.py, check_data.py, training_features.py                    fine-tune a model
table/                                                           looks after a table
run/                                                             the stages that these commands share
monitor/                                                         messages, event log, counts and signals of a run
memory_estimate.py                                               memory of a 7B model, for doctor
"""

from vidqa.common.lazy_exports import lazy_exports

#: The functions of the commands are exported by `vidqa` itself; here they would hide the modules of the same name.
__all__ = ["LoadedModel", "Reporter", "RunOptions", "Summary"]

__getattr__ = lazy_exports(
    __name__,
    {
        "LoadedModel": "run.loaded_model",
        "Reporter": "monitor.reporter",
        "RunOptions": "run.run_options",
        "Summary": "monitor.summary",
    },
)
