"""`vidqa search`: the files that match a text best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import (
    HELP,
    cache_option,
    file_options,
    model_options,
    output_options,
    progress_option,
    run_options,
    spreadsheet_option,
)
from vidqa.cli.output import as_json
from vidqa.common.display import display_path, plural
from vidqa.errors import EXIT_OK, EXIT_PARTIAL, TableError, UsageError

if TYPE_CHECKING:  # imports numpy
    from vidqa.pipeline.search import SearchHit, SearchResult

#: Number of hits on the screen; a table gets all.
DEFAULT_TOP = 10


@click.command("search", context_settings=HELP, short_help="Find the files that match a text best.")
@click.argument("text")
@click.argument("paths", nargs=-1, type=click.Path(), metavar="PATHS...")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Maximum number of hits. [default: {DEFAULT_TOP}, or all with --out]",
)
@click.option(
    "--out",
    metavar="TABLE",
    type=click.Path(),
    help="Write a table (.parquet, .csv, .jsonl or .arrow) instead of printing the hits.",
)
@spreadsheet_option
@run_options("each window is ranked separately")
@file_options
@model_options
@cache_option
@progress_option
@output_options
def command(text: str, paths: tuple[str, ...], top: int | None, out: str | None, **flags: Any) -> int:
    """Rank the videos and images in PATHS by how well they match TEXT. The score is a cosine similarity.

    Files that are not in the feature cache are encoded first. The hits are printed as a table, or with --json as one
    object per line.

    \b
    Examples:
      vidqa search "a red cross" clips
      vidqa search "a star moves to the right" clips --segment 1 --top 5 --json
      vidqa search "a star" clips --out stars.csv
      vidqa search "a star" clips --include '*.mp4' --max-duration 10min
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.monitor.summary import excluded_line
    from vidqa.pipeline.search import search

    context = CliContext(flags)
    if out is not None:
        _check_out(out)
    limit = top if out is not None else top or DEFAULT_TOP
    found = search(text, paths, top=limit, model=context.model, options=context.options, reporter=context.reporter)
    if out is not None:
        from vidqa.tables.search_results import write_results

        write_results(found.hits, out, for_spreadsheets=context.options.spreadsheet)
        context.reporter.message(f"wrote {plural(len(found.hits), 'hit')} to {display_path(out)}")
    elif context.as_json:
        click.echo("".join(as_json(hit) + "\n" for hit in found.hits), nl=False)
    else:
        click.echo(hits_as_table(found.hits), nl=False)
    _print_failures(found)
    if found.excluded:
        context.reporter.message(excluded_line(found.excluded))
    return EXIT_PARTIAL if found.failed or found.path_problems else EXIT_OK


def hits_as_table(hits: Sequence[SearchHit]) -> str:
    """Return aligned columns: rank, score, segment (if files were split), file.

    Args:
        hits: to print.
    """
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


def _check_out(out: str) -> None:
    from vidqa.tables.search_results import check_target

    try:
        check_target(out)
    except TableError as error:  # a wrong name, or an existing file that is not a table of hits
        raise UsageError(error.what, hint=error.hint) from error


def _print_failures(found: SearchResult) -> None:
    for path, error in found.failed:
        click.echo(f"vidqa: {display_path(path)}: {error.kind}: {error.what}", err=True)
