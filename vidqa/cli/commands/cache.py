"""`vidqa cache`: how large the feature cache is, whether it is sound, and what may go."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import HELP, cache_option, output_options
from vidqa.cli.output import as_json
from vidqa.common.display import human_bytes
from vidqa.errors import EXIT_OK, EXIT_PARTIAL, UsageError


@click.group("cache", context_settings=HELP, short_help="Size, soundness and pruning of the feature cache.")
def command() -> None:
    """Look after the feature cache.

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
    """Count the entries and their bytes.

    \b
    Example:
      vidqa cache stats --json
    """
    from vidqa.cache import maintenance
    from vidqa.cli.context import CliContext

    session = CliContext(flags)
    found = maintenance.stats(session.cache_dir)
    if session.as_json:
        click.echo(as_json(found))
        return EXIT_OK
    click.echo(f"{found.root}: {found.n_entries} entries, {human_bytes(found.n_bytes)}")
    for encoder in found.encoders:
        click.echo(f"  encoder {encoder.encoder_id}: {encoder.n_entries} entries, {human_bytes(encoder.n_bytes)}")
    if found.n_records:
        click.echo(f"  indexes of training data: {found.n_records} files, {human_bytes(found.n_record_bytes)}")
    if found.n_leftovers:
        click.echo(f"  {found.n_leftovers} temporary files of runs at work or killed (prune removes old ones)")
    return EXIT_OK


@command.command("verify", context_settings=HELP)
@click.option("--delete", is_flag=True, help="Remove damaged entries; they are encoded again when needed.")
@cache_option
@output_options
def verify(delete: bool, **flags: Any) -> int:
    """Read every entry and check it. Damaged ones are named; exit code 3 if they stay.

    \b
    Example:
      vidqa cache verify --delete
    """
    from vidqa.cache import maintenance
    from vidqa.cli.context import CliContext

    session = CliContext(flags)
    report = maintenance.verify(session.cache_dir, delete=delete)
    if session.as_json:
        click.echo(as_json(report))
    else:
        for damage in report.damaged:
            click.echo(f"{damage.path}: {damage.reason}")
        removed = f", {report.n_removed} removed" if delete else ""
        click.echo(f"{report.n_entries} entries read, {len(report.damaged)} damaged{removed}")
    return EXIT_PARTIAL if len(report.damaged) > report.n_removed else EXIT_OK


@command.command("prune", context_settings=HELP)
@click.option("--max-size", metavar="SIZE", help="What may stay, as in 50GB; the longest unused entries go first.")
@click.option("--older-than", metavar="AGE", help="Entries unused for longer go, as in 30d.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@cache_option
@output_options
def prune(max_size: str | None, older_than: str | None, dry_run: bool, **flags: Any) -> int:
    """Remove entries by last use.

    \b
    Example:
      vidqa cache prune --max-size 50GB --older-than 90d
    """
    from vidqa.cache import maintenance
    from vidqa.cli.context import CliContext

    session = CliContext(flags)
    if max_size is None and older_than is None:
        raise UsageError("nothing says what may go", hint="--max-size 50GB, --older-than 90d, or both")
    report = maintenance.prune(
        session.cache_dir,
        max_size=None if max_size is None else maintenance.parse_size(max_size),
        older_than_s=None if older_than is None else maintenance.parse_age(older_than),
        dry_run=dry_run,
    )
    if session.as_json:
        click.echo(as_json(report))
        return EXIT_OK
    verb = "would remove" if dry_run else "removed"
    click.echo(f"{verb} {report.n_removed} entries, {human_bytes(report.n_bytes_removed)}")
    click.echo(f"left: {report.n_left} entries, {human_bytes(report.n_bytes_left)}")
    return EXIT_OK
