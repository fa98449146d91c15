"""A sample -> token ids and labels, or the reason why there are none: the one way for check and training."""

from __future__ import annotations

from collections.abc import Sequence

from vidqa.errors import UsageError
from vidqa.prompts.build import LabelledPrompt, Tokenizer, build_labels
from vidqa.prompts.chat_formats import ChatFormat
from vidqa.records import MediaKind, MediaShape
from vidqa.train.data.sample import Sample, SampleError


def labelled(
    sample: Sample,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    shapes: Sequence[tuple[MediaKind, int, int] | MediaShape],
    max_tokens: int | None = None,
) -> LabelledPrompt:
    """Token ids, slots and labels of a whole sample: the loss is on the answers and their closing mark, in every turn.

    Args:
        sample: the sample.
        tokenizer: the LLM's own.
        chat: format to tune with; `plain` leaves the questions out.
        shapes: (kind, n_frames, tokens_per_frame) of each of the sample's media, in their order.
        max_tokens: longest sample, visual tokens included.

    Raises:
        SampleError: reserved_text, media_unreadable (of the other kind), too_long.
        ValueError: there are more or fewer shapes than media.
    """
    for ref, shape in zip(sample.media, shapes, strict=True):
        if shape[0] != ref.kind:
            raise SampleError("media_unreadable", f"{ref.path}: of kind {shape[0]}, the record says {ref.kind}")
    if any("\0" in part for turn in sample.turns for part in turn):
        raise SampleError("reserved_text", "the text holds a NUL character")  # a medium's mark inside prompts
    try:
        made = build_labels(tokenizer, chat, sample.turns, shapes)
    except UsageError as e:
        raise SampleError("reserved_text", e.what) from e
    if made.problem:
        raise SampleError("reserved_text", made.problem)
    check_length(made, max_tokens)
    return made


def check_length(made: LabelledPrompt, max_tokens: int | None) -> None:
    """A sample that does not fit is refused; cutting it would teach half an answer.

    Raises:
        SampleError: too_long.
    """
    n = len(made.prompt.ids)
    if max_tokens is not None and n > max_tokens:
        n_visual = int(made.prompt.slots.sum())
        raise SampleError("too_long", f"{n} tokens, {n_visual} of them visual; the limit is {max_tokens}")
