"""Completion of names in the shell: models, published models and question sets.

click completes options with fixed choices and paths. Completion must be fast and never fail: a folder that cannot be
read has no names.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem


def model_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the included and downloaded models; folders are completed by the shell.

    Args:
        ctx: of the command.
        param: the parameter to complete.
        incomplete: the word so far.
    """
    from vidqa.model.bundle.registry import built_in_bundles, pulled_models

    names = list(built_in_bundles())
    with suppress(OSError):
        names += pulled_models()
    return [CompletionItem(incomplete, type="dir"), *_matching(names, incomplete)]


def published_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the models that can be downloaded, with their descriptions.

    Args:
        ctx: of the command.
        param: the parameter to complete.
        incomplete: the word so far.
    """
    from vidqa.conversion.published import PUBLISHED

    return [CompletionItem(n, help=m.description) for n, m in PUBLISHED.items() if n.startswith(incomplete)]


def question_set_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the built-in question sets; TOML files are completed by the shell.

    Args:
        ctx: of the command.
        param: the parameter to complete.
        incomplete: the word so far.
    """
    from vidqa.prompts.questions import question_sets

    return [CompletionItem(incomplete, type="file"), *_matching(question_sets(), incomplete)]


def devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the kinds of devices.

    Args:
        ctx: of the command.
        param: the parameter to complete.
        incomplete: the word so far.
    """
    return _matching(("auto", "cpu", "cuda", "map"), incomplete)


def _matching(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
