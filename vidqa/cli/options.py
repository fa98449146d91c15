"""Options that several commands share. The command line overrides variables, which override vidqa.toml."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vidqa.cli.name_completion import devices, model_names

Command = TypeVar("Command", bound=Callable[..., Any])

#: Context settings of every command: `-h` works, and lines are wide enough for the table of options.
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class SegmentType(click.ParamType):
    """`whole` or a number of seconds."""

    name = "whole|SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        """Return `whole` or the number.

        Args:
            value: as given.
            param: of the value.
            ctx: of the command.

        Raises:
            click.BadParameter: the value is neither.
        """
        if value == "whole" or isinstance(value, float):
            return value
        if value == "scenes":
            self.fail("splitting at scene changes is not supported; use whole or a number of seconds", param, ctx)
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is neither 'whole' nor a positive number of seconds", param, ctx)
        return seconds


class BatchSizeType(click.ParamType):
    """`auto` or a positive integer."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        """Return `auto` or the number.

        Args:
            value: as given.
            param: of the value.
            ctx: of the command.

        Raises:
            click.BadParameter: the value is neither.
        """
        if value == "auto" or isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither 'auto' nor a positive integer", param, ctx)
        return int(value)


def combine(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator for several options; the help lists them in this order.

    Args:
        *options: decorators.
    """

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


model_options = combine(
    click.option(
        "--model",
        metavar="NAME|DIR",
        shell_complete=model_names,
        help="Model to use: an included or downloaded model, or a model folder. [default: demo]",
    ),
    click.option(
        "--device",
        metavar="DEVICE",
        shell_complete=devices,
        help="auto, cpu, cuda, cuda:N, or map: distribute the language model over all devices. [default: auto]",
    ),
)

#: Both change answers, so they are part of the model_id in the table.
precision_options = combine(
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Data type of the language model. [default: float32 on a CPU, the saved type on a GPU]",
    ),
    click.option(
        "--quantize",
        type=click.Choice(["8bit", "4bit"]),
        help="Load the language model with 8-bit or 4-bit weights. Requires bitsandbytes; `vidqa doctor` lists what "
        "fits. [default: off]",
    ),
)

cache_option = click.option(
    "--cache-dir",
    metavar="DIR",
    type=click.Path(),
    help="Folder of the feature cache. [default: the user's cache folder]",
)

output_options = combine(
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="Print no progress or messages; errors are still printed."),
    click.option("-v", "--verbose", is_flag=True, help="Print more details, such as each failed or ignored file."),
)

spreadsheet_option = click.option(
    "--spreadsheet",
    is_flag=True,
    help="Write CSV for spreadsheets: with a byte order mark, and with an apostrophe in front of text that would be a "
    "formula (=, +, -, @). vidqa removes it when it reads the table.",
)

strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Treat files with problems, such as a half-finished upload, as failed instead of describing what could be "
    "read. Example: vidqa describe clips --out t.parquet --strict",
)

progress_option = click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "none"]),
    help="Show progress as a bar, as a line every 30 seconds (for log files), or not at all. auto shows a bar on a "
    "terminal, else lines. Example: vidqa encode clips --progress lines 2> encode.log. [default: auto]",
)

timeout_option = click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    help="Stop decoding a file if neither a packet nor a frame of it arrives for SECONDS. Segments decoded before are "
    "kept; the others fail. [default: 120]",
)

max_new_tokens_option = click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum number of tokens per answer. [default: the model's own]",
)


#: Which of the files found are processed; the fields of `FileSelection`.
file_options = combine(
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Exclude files and folders that match, in the syntax of .gitignore and relative to the searched folder. "
        "May be repeated; lines of a .vidqaignore file have the same effect. Example: --exclude drafts/ --exclude "
        "'*_raw.mp4'",
    ),
    click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Take files that match although they are excluded; without --exclude, take only these. May be repeated. "
        "Example: --include '*.mp4'",
    ),
    click.option(
        "--newer-than",
        metavar="AGE|DATE",
        help="Only files modified in the last AGE (90s, 10min, 2h, 1d, 3w) or since DATE (2026-11-01, or with a time: "
        "2026-11-01T18:30), in local time.",
    ),
    click.option(
        "--older-than",
        metavar="AGE|DATE",
        help="Only files modified more than AGE ago, or before DATE. Example: --older-than 10min",
    ),
    click.option(
        "--min-duration",
        metavar="DURATION",
        help="Only videos of at least DURATION: seconds, or 90s, 10min, 1h30m. Images have no duration and are kept.",
    ),
    click.option("--max-duration", metavar="DURATION", help="Only videos of at most DURATION."),
    click.option(
        "--files-from",
        metavar="FILE|-",
        help="Read more PATHS from FILE or stdin, one per line, relative to the working folder. Example: find /archive "
        "-name '*.mp4' -print0 | vidqa ... --files-from - -0",
    ),
    click.option("-0", "--null", is_flag=True, help="Null bytes separate the paths of --files-from, not line breaks."),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="Process at most N files: the first ones that still have something to do. The next run continues there.",
    ),
    click.option(
        "--sample",
        type=click.IntRange(min=1),
        metavar="N",
        help="Process a random sample of N files: the same in every run, and nearly the same when files are added.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        metavar="S",
        help="Seed of --sample; another seed selects other files. [default: 0]",
    ),
)


def run_options(segment_effect: str) -> Callable[[Command], Command]:
    """Return the options for splitting, batching and decoding files.

    Args:
        segment_effect: what each segment becomes, for the help of `--segment`.
    """
    return combine(
        click.option(
            "--segment",
            type=SegmentType(),
            metavar="whole|SECONDS",
            help=f"Split each video into windows of SECONDS; {segment_effect}. [default: whole]",
        ),
        click.option(
            "--batch-size",
            type=BatchSizeType(),
            metavar="auto|N",
            help="Number of segments, and of prompts, that are computed together. [default: auto]",
        ),
        timeout_option,
    )
