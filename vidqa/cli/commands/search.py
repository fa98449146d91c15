"""`vidqa search`: the clips that fit a text, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import HELP, cache_option, model_options, output_options, work_options
from vidqa.cli.output import as_json
from vidqa.common.display import display_path
from vidqa.errors import EXIT_OK, EXIT_PARTIAL, TableError, UsageError

if TYPE_CHECKING:  # numpy comes with it
    from vidqa.pipeline.search import Found, Hit

#: Hits on the screen unless the user says otherwise; a table gets all.
DEFAULT_TOP = 10


@click.command("search", context_settings=HELP, short_help="Finds the clips that fit a text.")
@click.argument("text")
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="PATHS...")
@click.option(
    "--top", type=click.IntRange(min=1), metavar="N", help=f"How many hits. [{DEFAULT_TOP}; all of them with --out]"
)
@click.option(
    "--out", metavar="TABLE", type=click.Path(), help="Write a table (.parquet, .csv, .jsonl, .arrow) instead."
)
@work_options
@model_options
@cache_option
@output_options
def command(text: str, paths: tuple[str, ...], top: int | None, out: str | None, **flags: Any) -> int:
    """Rank the clips and pictures of PATHS by how well they fit TEXT; the score is a cosine, 1 at most.

    Clips that were encoded before are not decoded again; the others are encoded first. With --segment the windows of
    the clips are ranked. The result is a table; with --json one object a line, with --out a file.

    \b
    Examples:
      vidqa search "a red circle moves left" clips/
      vidqa search "a person opens a door" archive/ --segment 10 --top 50 --json
      vidqa search "a dog" archive/ --out dogs.csv
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.search import search

    session = CliContext(flags)
    if out is not None:
        _check(out)
    limit = top if out is not None else top or DEFAULT_TOP
    found = search(text, paths, top=limit, model=session.model, options=session.options, reporter=session.reporter)
    if out is not None:
        from vidqa.tables.search_results import write_results

        write_results(found.hits, out)
        session.reporter.say(f"{len(found.hits)} hits in {out}")
    elif session.as_json:
        click.echo("".join(as_json(hit) + "\n" for hit in found.hits), nl=False)
    else:
        click.echo(hits_as_table(found.hits), nl=False)
    _conclude(found)
    return EXIT_PARTIAL if found.failed else EXIT_OK


def hits_as_table(hits: Sequence[Hit]) -> str:
    """Aligned columns: rank, score, segment if clips were cut, file."""
    segmented = len({(hit.root, hit.path) for hit in hits}) < len(hits) or any(hit.start_s for hit in hits)
    lines = [
        [
            str(hit.rank),
            f"{hit.score:.3f}",
            *([f"{hit.start_s:.1f}-{hit.end_s:.1f}"] if segmented else []),
            display_path(hit.path),
        ]
        for hit in hits
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)] if lines else []
    return "".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) + "\n"
        for line in lines
    )


def _check(out: str) -> None:
    from vidqa.tables.search_results import check_target

    try:
        check_target(out)
    except TableError as error:  # the name is wrong, or the file something else: said before any work
        raise UsageError(error.what, hint=error.hint) from error


def _conclude(found: Found) -> None:
    """Failed files, on stderr."""
    for path, error in found.failed:
        click.echo(f"vidqa: {display_path(path)}: {error.kind}: {error.what}", err=True)
