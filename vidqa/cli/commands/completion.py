"""`vidqa completion`: the script that completes vidqa's commands, options and names in a shell."""

from __future__ import annotations

import click

from vidqa.cli.options import HELP
from vidqa.errors import EXIT_OK


@click.command("completion", context_settings=HELP, short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print the script that lets SHELL complete commands, options, model names, question sets and files.

    \b
    Examples:
      vidqa completion bash > ~/.local/share/bash-completion/completions/vidqa
      vidqa completion zsh > ~/.zfunc/_vidqa
      vidqa completion fish > ~/.config/fish/completions/vidqa.fish

    The folders must exist, and completion works in shells that are started afterwards. Bash needs version 4.4. In zsh,
    ~/.zshrc must contain `fpath+=~/.zfunc; autoload -Uz compinit; compinit`. To try it in this shell only:
    eval "$(vidqa completion bash)"
    """
    from click.shell_completion import get_completion_class

    from vidqa.cli.main import COMPLETE_VARIABLE, group

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, "vidqa", COMPLETE_VARIABLE).source())
    return EXIT_OK
