"""Options that commands share, and the way from flags to settings: flag beats variable beats vidqa.toml.

Does not know what a command does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

#: For every command: `-h` works, and lines may be as wide as the table of options needs.
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class SegmentType(click.ParamType):
    """`whole` or a number of seconds."""

    name = "whole|SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        if value == "whole" or isinstance(value, float):
            return value
        if value == "scenes":
            self.fail("cutting at scenes is not in this version; use whole or a number of seconds", param, ctx)
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is neither 'whole' nor a positive number of seconds", param, ctx)
        return seconds


class BatchSizeType(click.ParamType):
    """`auto` or a whole number."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if value == "auto" or isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither 'auto' nor a whole number of at least 1", param, ctx)
        return int(value)


def _with(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator of several; the help lists them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


#: Which model, and where it computes.
model_options = _with(
    click.option("--model", metavar="NAME|DIR", help="A bundled or pulled model by name, or a model folder. [demo]"),
    click.option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N, or map: the language model over all devices. [auto]",
    ),
)

#: How exactly the language model computes; both change answers, and so the model's identity in the table.
precision_options = _with(
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Type of the language model. [float32 on the CPU, as saved on a GPU]",
    ),
    click.option(
        "--quantize",
        type=click.Choice(["8bit", "4bit"]),
        help="Hold the language model in fewer bits; needs bitsandbytes. `vidqa doctor` says what fits. [no]",
    ),
)

#: Where features are kept.
cache_option = _with(click.option("--cache-dir", metavar="DIR", help="Folder of the feature cache. [the user's cache]"))

#: What is printed.
output_options = _with(
    click.option("--json", "as_json", is_flag=True, help="Print the result for machines, on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no messages; errors are still said."),
    click.option("-v", "--verbose", is_flag=True, help="Say more: each file that failed or was left out."),
)

#: How long one file may take.
timeout_option = click.option(
    "--timeout", metavar="SECONDS", type=float, help="Longest time for decoding one file. [120]"
)

#: How files are cut, decoded and put together.
work_options = _with(
    click.option(
        "--segment",
        type=SegmentType(),
        metavar="whole|SECONDS",
        help="Each clip whole, or in windows of SECONDS, every one with its own row or rank. [whole]",
    ),
    click.option(
        "--batch-size",
        type=BatchSizeType(),
        metavar="auto|N",
        help="Clips, and prompts, that are computed together. [auto]",
    ),
    timeout_option,
)
