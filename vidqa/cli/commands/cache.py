"""`vidqa cache`: size, integrity and pruning of the feature cache."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import HELP, cache_option, output_options
from vidqa.cli.output import as_json
from vidqa.common.display import human_bytes, plural
from vidqa.errors import EXIT_OK, EXIT_PARTIAL, UsageError


@click.group("cache", context_settings=HELP, short_help="Inspect, verify and prune the feature cache.")
def command() -> None:
    """Manage the feature cache.

    \b
    Examples:
      vidqa cache stats
      vidqa cache verify
      vidqa cache prune --max-size 50GB
    """


@command.command("stats", context_settings=HELP)
@cache_option
@output_options
def stats(**flags: Any) -> int:
    """Print the number and size of the entries.

    \b
    Example:
      vidqa cache stats --json
    """
    from vidqa.cache import maintenance
    from vidqa.cli.context import CliContext

    context = CliContext(flags)
    found = maintenance.stats(context.cache_dir)
    if context.as_json:
        click.echo(as_json(found))
        return EXIT_OK
    click.echo(f"{found.root}: {found.n_entries:,} entries, {human_bytes(found.n_bytes)}")
    for encoder in found.encoders:
        click.echo(f"  encoder {encoder.encoder_id}: {encoder.n_entries:,} entries, {human_bytes(encoder.n_bytes)}")
    if found.n_records:
        click.echo(
            f"  indexes of training data: {plural(found.n_records, 'file')}, {human_bytes(found.n_record_bytes)}"
        )
    if found.n_leftovers:
        click.echo(f"  {plural(found.n_leftovers, 'temporary file')} of active or killed runs (prune removes old ones)")
    return EXIT_OK


@command.command("verify", context_settings=HELP)
@click.option("--delete", is_flag=True, help="Delete damaged entries; they are encoded again when needed.")
@cache_option
@output_options
def verify(delete: bool, **flags: Any) -> int:
    """Verify the checksum of every entry, and print damaged ones. The exit code is 3 if any of them remain.

    \b
    Example:
      vidqa cache verify --delete
    """
    from vidqa.cache import maintenance
    from vidqa.cli.context import CliContext

    context = CliContext(flags)
    report = maintenance.verify(context.cache_dir, delete=delete)
    if context.as_json:
        click.echo(as_json(report))
    else:
        for damage in report.damaged:
            click.echo(f"{damage.path}: {damage.reason}")
        removed = f", {report.n_removed:,} deleted" if delete else ""
        click.echo(f"verified {report.n_entries:,} entries: {len(report.damaged):,} damaged{removed}")
    return EXIT_PARTIAL if len(report.damaged) > report.n_removed else EXIT_OK


@command.command("prune", context_settings=HELP)
@click.option(
    "--max-size",
    metavar="SIZE",
    help="Remove the least recently used entries until the cache has at most SIZE, such as 50GB.",
)
@click.option("--older-than", metavar="AGE", help="Remove entries that were not used for AGE, such as 30d.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed, then exit.")
@cache_option
@output_options
def prune(max_size: str | None, older_than: str | None, dry_run: bool, **flags: Any) -> int:
    """Remove the entries that were used least recently.

    \b
    Example:
      vidqa cache prune --max-size 50GB --older-than 90d
    """
    from vidqa.cache import maintenance
    from vidqa.cli.context import CliContext
    from vidqa.common.time_text import parse_age

    context = CliContext(flags)
    if max_size is None and older_than is None:
        raise UsageError("--max-size or --older-than is required", hint="vidqa cache prune --max-size 50GB")
    report = maintenance.prune(
        context.cache_dir,
        max_size=None if max_size is None else maintenance.parse_size(max_size),
        older_than_s=None if older_than is None else parse_age(older_than),
        dry_run=dry_run,
    )
    if context.as_json:
        click.echo(as_json(report))
        return EXIT_OK
    verb = "would remove" if dry_run else "removed"
    click.echo(f"{verb} {report.n_removed:,} entries, {human_bytes(report.n_bytes_removed)}")
    click.echo(f"remaining: {report.n_left:,} entries, {human_bytes(report.n_bytes_left)}")
    return EXIT_OK
