"""The `vidqa` command: imports a command on demand, passes it its settings, and turns errors into exit codes."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from vidqa import __version__
from vidqa.common.lossy_stream import lossy
from vidqa.common.path_text import encode_surrogates
from vidqa.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, VidqaError

#: Exit codes after SIGTERM, and after the reader of a pipe has closed it (`vidqa ask ... | head -1`).
EXIT_TERMINATED = 143
EXIT_BROKEN_PIPE = 141

#: Command -> its module, in the order of `vidqa --help`.
COMMANDS: dict[str, str] = {
    "describe": "vidqa.cli.commands.describe",
    "ask": "vidqa.cli.commands.ask",
    "chat": "vidqa.cli.commands.chat",
    "search": "vidqa.cli.commands.search",
    "encode": "vidqa.cli.commands.encode",
    "train": "vidqa.cli.commands.train",
    "models": "vidqa.cli.commands.models",
    "table": "vidqa.cli.commands.tables",
    "cache": "vidqa.cli.commands.cache",
    "bench": "vidqa.cli.commands.bench",
    "doctor": "vidqa.cli.commands.doctor",
    "examples": "vidqa.cli.commands.examples",
    "config": "vidqa.cli.commands.config",
    "completion": "vidqa.cli.commands.completion",
}

#: Set by the completion scripts of shells: which words to complete is in other variables.
COMPLETE_VARIABLE = "_VIDQA_COMPLETE"


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM and handled like Ctrl-C: finished rows are saved, then the command ends."""


class LazyGroup(click.Group):
    """Imports the module of a command on demand, and passes it the defaults from variables and vidqa.toml."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands.

        Args:
            ctx: of the group.
        """
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name.

        Args:
            ctx: of the group.
            cmd_name: name of the command.
        """
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = import_module(module).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Load the settings, then find the command.

        Args:
            ctx: of the group.
            args: command line after `vidqa`.

        Raises:
            UsageError: the settings are invalid. Help is shown all the same.
        """
        has_settings = args[0] != "completion" and not ctx.resilient_parsing  # a shell asks for completions
        if has_settings and not {"-h", "--help"} & set(args):
            from vidqa.config import load_settings

            ctx.default_map = load_settings()
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # click itself does not list commands that are imported on demand
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from error


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 success; 1 the run failed; 2 invalid usage or settings; 3 finished, but some items failed; "
    "4 another run is writing the table; 130 interrupted; 143 terminated.",
)
@click.version_option(__version__, "--version", prog_name="vidqa", message="%(prog)s %(version)s")
def group() -> None:
    """Answer questions about folders of videos and images, and write the answers into a table.

    \b
    Examples:
      vidqa examples clips
      vidqa describe clips --out captions.parquet
      vidqa ask clips/clip01.mp4 "What happens?"

    Results are printed to stdout, progress and messages to stderr. Most options can also be set in vidqa.toml, or as
    variables such as VIDQA_BATCH_SIZE. The command line overrides variables, and variables override vidqa.toml.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: command line after `vidqa`; None for that of the process.

    Returns:
        The exit code; `vidqa --help` lists them.
    """
    try:
        # Not group.main, which returns 1 for a broken pipe and the same code for SIGINT and SIGTERM.
        with group.make_context("vidqa", list(sys.argv[1:] if arguments is None else arguments)) as context:
            result = group.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else EXIT_OK
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except VidqaError as error:
        return _print_error(str(error), error.exit_code)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except Terminated:
        return _print_error("terminated", EXIT_TERMINATED)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _print_error("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        _discard_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:  # disk full, no permission, no such folder: not a bug of vidqa
        return _print_error(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", EXIT_FAILED)


def entry() -> NoReturn:
    """Entry point of the console script and of `python -m vidqa`."""
    _open_streams()
    signal.signal(signal.SIGTERM, _on_terminate)
    codecs.register_error("visible", encode_surrogates)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None in a service without a terminal
            stream.reconfigure(errors="visible")
    sys.stderr = lossy(sys.stderr)  # of all libraries, too
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Only `models pull` may use the network and print the download progress of its library.
    if [argument for argument in sys.argv[1:] if not argument.startswith("-")][:2] != ["models", "pull"]:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    instruction = os.environ.get(COMPLETE_VARIABLE)
    code = _complete(instruction) if instruction else run()
    try:
        sys.stdout.flush()
    except OSError:  # already reported, and Python would report it again
        _discard_stdout()
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        from vidqa.pipeline.monitor.signals import WORK_THREADS

        if any(thread.name in WORK_THREADS for thread in threading.enumerate()):
            os._exit(code)  # they compute for too long, and must not outlive the libraries that they use
    sys.exit(code)


def _complete(instruction: str) -> int:
    from click.shell_completion import shell_complete

    return shell_complete(group, {}, "vidqa", COMPLETE_VARIABLE, instruction)


def _open_streams() -> None:
    """Open /dev/null for standard streams that the process was started without (`>&-`, some services).

    Python sets them to None, and the next file to be opened, possibly a table, would get the descriptor of stderr,
    which any library may write to.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free one, which is the missing one
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: SIM115 - never closed


def _discard_stdout() -> None:
    """Redirect stdout, because Python would report an error again when it flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _on_terminate(signum: int, frame: object) -> NoReturn:
    raise Terminated


def _print_error(text: str, code: int) -> int:
    click.echo(f"vidqa: {text}", err=True)
    return code
