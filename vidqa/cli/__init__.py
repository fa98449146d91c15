"""The command line: arguments -> a function of `vidqa.pipeline` -> text or JSON, and an exit code.

main.py        finds and runs a command, turns errors into exit codes
commands/      one module per command, without logic of its own
options.py     options that several commands share
name_completion.py  names that a shell completes: models, question sets
context.py     option values -> model, options and reporter of a run
run_scope.py   signals, event log and metrics around a long command
table_text.py  text of `vidqa table`
output.py      results as tables or JSON

Heavy packages are imported inside the commands, so that `vidqa --help` is fast.
"""

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["CliContext", "RunScope", "run"]

__getattr__ = lazy_exports(__name__, {"CliContext": "context", "RunScope": "run_scope", "run": "main"})
