"""The `vidqa` group: finds a command when it is asked for, hands it its settings, and turns errors into exit codes.

Does not know what the commands do.
"""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from vidqa import __version__
from vidqa.common.path_text import encode_surrogates
from vidqa.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, VidqaError

#: Exit codes of a process that SIGTERM ended, and of one whose reader went away (`vidqa ask ... | head -1`).
EXIT_TERMINATED = 143
EXIT_BROKEN_PIPE = 141

#: Command -> its module; the order is the order of `vidqa --help`.
COMMANDS: dict[str, str] = {
    "describe": "vidqa.cli.commands.describe",
    "ask": "vidqa.cli.commands.ask",
    "chat": "vidqa.cli.commands.chat",
    "search": "vidqa.cli.commands.search",
    "encode": "vidqa.cli.commands.encode",
    "train": "vidqa.cli.commands.train",
    "models": "vidqa.cli.commands.models",
    "cache": "vidqa.cli.commands.cache",
    "bench": "vidqa.cli.commands.bench",
    "doctor": "vidqa.cli.commands.doctor",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Handled where Ctrl-C is: finished rows are saved, then the command ends."""


class LazyGroup(click.Group):
    """Imports the module of a command on demand, and gives it the defaults of variables and vidqa.toml."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = import_module(module).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not {"-h", "--help"} & set(args):  # help is given whatever is wrong with the settings
            from vidqa.config import load_settings

            ctx.default_map = load_settings()
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 all done; 1 the run failed; 2 usage or settings; 3 finished, some items failed; "
    "4 another run holds the lock; 130 interrupted; 143 terminated.",
)
@click.version_option(__version__, "--version", prog_name="vidqa", message="%(prog)s %(version)s")
def group() -> None:
    """Describe and question a folder of video: each clip is encoded once, every answer is one row of a table.

    \b
    Examples:
      vidqa describe examples/clips --out captions.parquet
      vidqa ask clip.mp4 "What happens?"

    Results go to stdout, progress and messages to stderr. Options can also be set in vidqa.toml or as VIDQA_NAME (but
    for those that say what one call makes, as `models convert --name`); an option beats the variable, the variable
    beats the file.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: what follows `vidqa`; None takes those of the process.

    Returns:
        The exit code, as `vidqa --help` lists them.
    """
    try:
        # Not group.main: that one makes exit code 1 of a broken pipe, and one and the same of SIGINT and SIGTERM.
        with group.make_context("vidqa", list(sys.argv[1:] if arguments is None else arguments)) as context:
            result = group.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else EXIT_OK
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except VidqaError as error:
        return _complain(str(error), error.exit_code)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except Terminated:
        return _complain("terminated", EXIT_TERMINATED)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _complain("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit; nobody is left to read it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:  # no room, no permission, no such folder: the machine's doing, not a bug
        return _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", EXIT_FAILED)


def entry() -> NoReturn:
    """The console script."""
    _open_streams()
    signal.signal(signal.SIGTERM, _on_terminate)
    codecs.register_error("visible", encode_surrogates)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None in a service without a terminal
            stream.reconfigure(errors="visible")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Libraries that would talk, or ask the network, between our own messages. One command is there to do both.
    if [word for word in sys.argv[1:] if not word.startswith("-")][:2] != ["models", "pull"]:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(run())


def _open_streams() -> None:
    """Give a process that was started without standard streams (`>&-`, some services) ones that lead nowhere.

    Python has None for them; and the next file to be opened, perhaps a table, would get the number of stderr, to which
    any library may write.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: the one that is missing
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: SIM115 - lives as long as the process


def _on_terminate(signum: int, frame: object) -> NoReturn:
    raise Terminated


def _complain(text: str, code: int) -> int:
    click.echo(f"vidqa: {text}", err=True)
    return code
