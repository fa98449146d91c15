"""`vidqa chat`: a dialogue about one or several files, at a terminal or from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import (
    HELP,
    cache_option,
    max_new_tokens_option,
    model_options,
    output_options,
    precision_options,
    timeout_option,
)
from vidqa.cli.output import answer_text, as_json
from vidqa.errors import EXIT_OK, EXIT_PARTIAL, ItemError, UsageError

if TYPE_CHECKING:  # imports torch
    from vidqa.cli.context import CliContext
    from vidqa.generate.chat_session import ChatSession, ChatTurn

PROMPT = "> "
COMMANDS = {
    "/reset": "start a new dialogue about the same media",
    "/quit": "quit, like Ctrl-D",
    "/help": "show this list",
}


@click.command("chat", context_settings=HELP, short_help="Hold a conversation about one or several files.")
@click.argument("media", nargs=-1, required=True, type=click.Path(), metavar="MEDIA...")
@max_new_tokens_option
@timeout_option
@model_options
@precision_options
@cache_option
@output_options
def command(media: tuple[str, ...], **flags: Any) -> int:
    """Hold a conversation about MEDIA: a video or an image, or several that the model sees together in this order.

    At a terminal there is a prompt with line editing and history: Ctrl-C stops an answer, Ctrl-D quits, /help lists
    the commands. From a pipe, each line is a question, and each answer is printed as one line. With --json, one object
    is printed per line.

    \b
    Examples:
      vidqa chat clips/clip01.mp4
      vidqa chat clips/clip05.mp4 clips/clip06.mp4
      printf 'What happens?\\nAnd then?\\n' | vidqa chat clips/clip01.mp4 --json
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.chat import chat

    if sys.stdin is None:  # a service without standard input
        raise UsageError("cannot read questions: standard input is closed", hint="vidqa ask MEDIA QUESTION")
    context = CliContext(flags)
    session = chat(media, model=context.model, options=context.options, reporter=context.reporter)
    return Dialogue(session, context).run()


class Dialogue:
    """Reads questions and prints answers until the input ends.

    Args:
        session: dialogue with the model.
        context: of the command.
    """

    def __init__(self, session: ChatSession, context: CliContext) -> None:
        self.session, self.context = session, context
        self.at_terminal = sys.stdin.isatty()
        self.n_failed = 0

    def run(self) -> int:
        """Return the exit code: 3 if a line of a pipe got no answer; at a terminal the user has seen the error."""
        if self.at_terminal:
            self.context.reporter.message("/help for help, Ctrl-D to quit")
        with closing(_typed_lines() if self.at_terminal else _piped_lines()) as lines:
            for line in lines:
                if line in ("/quit", "/exit"):
                    break
                if line.strip():
                    self.process(line)
        return EXIT_PARTIAL if self.n_failed and not self.at_terminal else EXIT_OK

    def process(self, line: str) -> None:
        """Execute a command or answer a question.

        Args:
            line: of the input.
        """
        if line == "/help":
            width = max(map(len, COMMANDS))
            for name, description in COMMANDS.items():
                click.echo(f"{name.ljust(width)}  {description}", err=True)
            click.echo("To ask a question that starts with /, put a space before it.", err=True)
        elif line == "/reset":
            self.session.reset()
            self.context.reporter.message("started a new dialogue")
        elif line.startswith("/"):
            self.fail(line, UsageError(f"unknown command {line.split()[0]}", hint="/help"))
        else:
            try:
                self.answer(line.strip())
            except (ItemError, UsageError) as error:
                self.fail(line, error)

    def answer(self, question: str) -> None:
        """Ask a question and print the answer, token by token if both input and output are a terminal.

        Args:
            question: its text.

        Raises:
            ItemError: the dialogue is too long for the model.
            UsageError: the question contains a reserved text.
        """
        from vidqa.cli.main import Terminated

        streamed, printed = self.at_terminal and sys.stdout.isatty() and not self.context.as_json, ""
        try:
            with closing(self.session.stream(question)) as pieces:
                for piece in pieces:
                    if streamed:
                        click.echo(answer_text(piece), nl=False)
                        printed += piece
        except KeyboardInterrupt as error:  # at a terminal, Ctrl-C stops only this answer
            if not self.at_terminal or isinstance(error, Terminated):
                raise
        turn = self.session.last
        if turn is None:  # stopped before the first token
            self.context.reporter.message("(stopped)")
            return
        if self.context.as_json:
            click.echo(as_json(_as_dict(turn)))
        elif streamed:
            click.echo("" if printed == turn.text else f"\n{answer_text(turn.text)}")
        else:
            click.echo(answer_text(turn.text) if self.at_terminal else " ".join(turn.text.splitlines()))
        if turn.finish_reason == "interrupted":
            self.context.reporter.message("(stopped)")
        elif turn.status != "ok":
            self.context.reporter.message(
                "(empty)" if turn.status == "empty" else "(truncated at the maximum number of tokens)"
            )

    def fail(self, line: str, error: ItemError | UsageError) -> None:
        """Print why a line got no answer.

        Args:
            line: of the input.
            error: the reason.
        """
        self.n_failed += 1
        click.echo(f"vidqa: {error}", err=True)
        if self.context.as_json:
            kind = error.kind if isinstance(error, ItemError) else "usage"
            failed = {"question": line, "answer": None, "status": "failed", "error_kind": kind, "error": error.what}
            click.echo(as_json(failed))
        elif not self.at_terminal:
            click.echo("")  # one line per question, so that answers can be matched by line number


def _as_dict(turn: ChatTurn) -> dict[str, Any]:
    return {
        "question": turn.question,
        "answer": turn.text or None,
        "status": turn.status,
        "finish_reason": turn.finish_reason,
        "n_visual_tokens": turn.n_visual_tokens,
        "n_prompt_tokens": turn.n_prompt_tokens,
        "n_answer_tokens": turn.n_answer_tokens,
        "n_computed_tokens": turn.n_computed_tokens,
    }


def _piped_lines() -> Generator[str]:
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    for line in sys.stdin:
        yield line.rstrip("\r\n")


def _typed_lines() -> Generator[str]:
    """Yield lines from a terminal, with editing and history if the system has readline."""
    editable = sys.stdout.isatty()  # otherwise `input` would write the prompt into the file that stdout goes to
    if editable:
        with suppress(ImportError):
            import readline  # noqa: F401  (importing it enables editing and history for `input`)
    while True:
        try:
            if editable:
                yield input(PROMPT)
                continue
            click.echo(PROMPT, nl=False, err=True)
            line = sys.stdin.readline()
            if not line:
                return
            yield line.rstrip("\r\n")
        except EOFError:
            click.echo("", err=True)
            return
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # SIGTERM
                raise
            click.echo("\n(Ctrl-D or /quit to quit)", err=True)
