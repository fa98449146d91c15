"""`vidqa chat`: several turns about the same clip, at the prompt or from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import HELP, cache_option, model_options, output_options, precision_options, timeout_option
from vidqa.cli.output import as_json
from vidqa.errors import EXIT_OK, EXIT_PARTIAL, ItemError, UsageError

if TYPE_CHECKING:  # torch comes with it
    from vidqa.cli.context import CliContext
    from vidqa.generate.chat_session import ChatSession, ChatTurn

PROMPT = "> "
COMMANDS = {
    "/reset": "forget all turns; the clip stays",
    "/quit": "end, as Ctrl-D does",
    "/help": "this list",
}


@click.command("chat", context_settings=HELP, short_help="Several turns about a clip; it is read once.")
@click.argument("media", nargs=-1, required=True, type=click.Path(), metavar="MEDIA...")
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer. [what the model says]")
@timeout_option
@model_options
@precision_options
@cache_option
@output_options
def command(media: tuple[str, ...], **flags: Any) -> int:
    """Talk about MEDIA: a clip or a picture; or several, which the model then sees together, in this order.

    At a terminal there is a prompt, with line editing and history. Ctrl-C stops an answer, Ctrl-D ends. /reset forgets
    all turns, /help lists what else there is. From a pipe, each line is a question and gets one answer; stdout carries
    answers only. With --json one object a line.

    \b
    Examples:
      vidqa chat clip.mp4
      vidqa chat before.png after.png
      printf 'What happens?\\nAnd then?\\n' | vidqa chat clip.mp4 --json
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.chat import chat

    if sys.stdin is None:  # a service without any input
        raise UsageError("there is nobody to ask: standard input is closed", hint="vidqa ask clip.mp4 QUESTION")
    session = CliContext(flags)
    talk = Talk(chat(media, model=session.model, options=session.options, reporter=session.reporter), session)
    return talk.run()


class Talk:
    """Questions in, answers out, until there are no more."""

    def __init__(self, chat: ChatSession, session: CliContext) -> None:
        self.chat, self.session = chat, session
        self.at_terminal = sys.stdin.isatty()
        self.n_failed = 0

    def run(self) -> int:
        """The exit code: 3 if a line of a pipe got no answer. Somebody at a terminal has seen it."""
        if self.at_terminal:
            self.session.reporter.say("/help for help, Ctrl-D ends")
        with closing(_typed() if self.at_terminal else _piped()) as lines:
            for line in lines:
                if line in ("/quit", "/exit"):
                    break
                if line.strip():
                    self.take(line)
        return EXIT_PARTIAL if self.n_failed and not self.at_terminal else EXIT_OK

    def take(self, line: str) -> None:
        """Obey a command or answer a question."""
        if line == "/help":
            width = max(map(len, COMMANDS))
            for name, does in COMMANDS.items():
                click.echo(f"{name.ljust(width)}  {does}", err=True)
            click.echo("a question that begins with / is written with a space before it", err=True)
        elif line == "/reset":
            self.chat.reset()
            self.session.reporter.say("all turns are forgotten")
        elif line.startswith("/"):
            self.fail(line, UsageError(f"no command {line.split()[0]}", hint="/help"))
        else:
            try:
                self.answer(line.strip())
            except (ItemError, UsageError) as error:
                self.fail(line, error)

    def answer(self, question: str) -> None:
        """Ask and print."""
        from vidqa.cli.main import Terminated

        live, shown = self.at_terminal and sys.stdout.isatty() and not self.session.as_json, ""
        try:
            with closing(self.chat.stream(question)) as pieces:
                for piece in pieces:
                    if live:
                        click.echo(piece, nl=False)
                        shown += piece
        except KeyboardInterrupt as stop:  # Ctrl-C stops this answer; from a pipe there is nobody to go on
            if not self.at_terminal or isinstance(stop, Terminated):
                raise
        said = self.chat.last
        if said is None:  # stopped before the first token
            self.session.reporter.say("(stopped)")
            return
        if self.session.as_json:
            click.echo(as_json(_as_dict(said)))
        elif live:
            click.echo("" if shown == said.text else f"\n{said.text}")
        else:
            click.echo(_one_line(said.text, self.at_terminal))
        if said.finish_reason == "interrupted":
            self.session.reporter.say("(stopped)")
        elif said.status != "ok":
            why = "the answer is empty" if said.status == "empty" else "the longest allowed answer ended it"
            self.session.reporter.say(f"({why})")

    def fail(self, line: str, error: ItemError | UsageError) -> None:
        """Say why a line has no answer."""
        self.n_failed += 1
        click.echo(f"vidqa: {error}", err=True)
        if self.session.as_json:
            kind = error.kind if isinstance(error, ItemError) else "usage"
            failed = {"question": line, "answer": None, "status": "failed", "error_kind": kind, "error": error.what}
            click.echo(as_json(failed))
        elif not self.at_terminal:
            click.echo("")  # one line a question, so that answers can be told apart by their number


def _as_dict(said: ChatTurn) -> dict[str, Any]:
    return {
        "question": said.question,
        "answer": said.text or None,
        "status": said.status,
        "finish_reason": said.finish_reason,
        "n_visual_tokens": said.n_visual_tokens,
        "n_prompt_tokens": said.n_prompt_tokens,
        "n_answer_tokens": said.n_answer_tokens,
        "n_computed_tokens": said.n_computed_tokens,
    }


def _one_line(text: str, at_terminal: bool) -> str:
    """From a pipe an answer is one line; --json keeps its line ends."""
    return text if at_terminal else " ".join(text.splitlines())


def _piped() -> Generator[str]:
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    for line in sys.stdin:
        yield line.rstrip("\r\n")


def _typed() -> Generator[str]:
    """Lines from a terminal, with editing and history where the system has readline."""
    edited = sys.stdout.isatty()  # else the prompt would go into the file that takes the answers
    if edited:
        with suppress(ImportError):
            import readline  # noqa: F401  (what it does to `input` is all that is wanted)
    while True:
        try:
            if edited:
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
        except KeyboardInterrupt as stop:
            if type(stop) is not KeyboardInterrupt:  # SIGTERM's
                raise
            click.echo("\n(Ctrl-D or /quit ends)", err=True)
