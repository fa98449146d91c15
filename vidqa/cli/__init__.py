"""The command line: arguments -> a function of `vidqa.pipeline` -> text or JSON, and an exit code.

main.py        finds and runs a command, turns errors into exit codes
commands/      one module per command, without logic of its own
options.py     options that several commands share
context.py     option values -> model, options and reporter of a run
run_scope.py   signals, event log and metrics around a long command
output.py      results as tables or JSON

Heavy packages are imported inside the commands, so that `vidqa --help` is fast.
"""

from importlib import import_module

_EXPORTS = {"CliContext": "vidqa.cli.context", "RunScope": "vidqa.cli.run_scope", "run": "vidqa.cli.main"}
__all__ = ["CliContext", "RunScope", "run"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
