"""Requests -> answers: many clips and questions at once, a clip's own beginning computed and stored once.

The seam for every way of answering: `Request` in, `Answer` or `ItemError` out, and nothing else is known outside. What
is behind it may change; that a batch gives what one-by-one gives may not.

Prompts at work leave when they are finished, and waiting ones take their places: a long answer keeps nobody waiting.
Models whose attention cannot be exchanged (see `kinds.can_share`) are answered batch by batch, see `alone`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidqa.common.devices import is_out_of_memory
from vidqa.errors import ItemError
from vidqa.generate.fallback import FallbackEngine
from vidqa.generate.kv_cache.capacity import most_lines
from vidqa.generate.llm_adapter import can_share
from vidqa.generate.requests import GenerationSettings, Request, plan_job, to_answer
from vidqa.generate.running_batch import EngineStats
from vidqa.generate.scheduler import Scheduler, StoppingCriteria
from vidqa.generate.stop_strings import Stopper, end_ids
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Answer

__all__ = ["Engine", "GenerationSettings", "Request", "generate"]

Finished = tuple[object, Answer | ItemError]


def generate(
    model: VideoLlava, requests: Sequence[Request], settings: GenerationSettings, batch_size: int | None = None
) -> list[Answer | ItemError]:
    """Answer all requests.

    In float32 an answer does not depend on the batch it was part of, token for token.

    Args:
        model: in evaluation mode.
        requests: questions with the features of what they are about.
        settings: for all requests.
        batch_size: most requests at once; None takes what the memory is likely to hold. Where it does not hold, the
            batch is halved until it does.

    Returns:
        An answer for each request, in order, or the error of that request alone: `prompt_too_long` says by how many
        tokens, `out_of_memory` means that the request does not fit even on its own.

    Raises:
        UsageError: a question holds a text that the chat format reserves.
    """
    if not requests:
        return []
    engine = Engine(model, settings, min(batch_size or most_lines(model), len(requests)))
    order = sorted(range(len(requests)), key=lambda i: -sum(f.tokens.size for f in requests[i].features))
    for i in order:  # long ones first: their buffers fit the others, too
        engine.submit(i, requests[i])
    out: list[Answer | ItemError | None] = [None] * len(requests)
    while engine.busy:
        for tag, answer in engine.advance():
            assert isinstance(tag, int)
            out[tag] = answer
    return [answer for answer in out if answer is not None]


class Engine:
    """Answers requests that may come while others are at work.

    Args:
        model: in evaluation mode; used by nobody else while `advance` runs; both in one thread.
        settings: for all requests.
        batch_size: as for `generate`.
        static: steps of few fixed shapes, recorded as CUDA graphs; None does so on a CUDA device.
    """

    def __init__(
        self,
        model: VideoLlava,
        settings: GenerationSettings,
        batch_size: int | None = None,
        static: bool | None = None,
    ) -> None:
        self._model, self._settings = model, settings
        self._most = batch_size or most_lines(model)
        stops = (*model.chat.stop, *settings.stop)
        self._stopper = Stopper(model.tokenizer, stops, model.chat.answer_prefixes)
        ends = StoppingCriteria(end_ids(model.llm, model.tokenizer, stops), self._stopper.stops)
        on_gpu = model.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(model.device)  # each thread has a current one of its own, where kernels start
        self._lines: Scheduler | FallbackEngine = (
            Scheduler(model, settings, ends, batch_size, on_gpu if static is None else static)
            if can_share(model.llm, model.context)
            else FallbackEngine(model, settings, ends, batch_size)
        )
        self._finished: list[Finished] = []

    @property
    def work(self) -> EngineStats:
        """What the LLM did so far."""
        return self._lines.work

    @property
    def busy(self) -> bool:
        """True while answers are to come."""
        return bool(self._finished or self._lines.busy)

    @property
    def wants_more(self) -> bool:
        """True while the next batch is not full: another request would not have to wait for long.

        Requests that failed at once count until `advance` has told them: who asks for more in a loop comes to its end.
        """
        return self._lines.n_waiting + len(self._finished) < self._most

    def submit(self, tag: object, request: Request) -> None:
        """Put a request behind the others; its answer comes out of some later `advance`, with the tag.

        Raises:
            UsageError: a question holds a text that the chat format reserves.
        """
        job = plan_job(self._model, tag, request, self._settings)
        if isinstance(job, ItemError):
            self._finished.append((tag, job))
        else:
            self._lines.submit(job)

    def advance(self) -> list[Finished]:
        """Work for the time of about one token.

        Returns:
            (tag, answer or error) of what was finished, perhaps nothing.
        """
        if self._lines.busy:
            try:
                self._finished += [
                    (job.tag, to_answer(job, said, self._stopper)) for job, said in self._lines.advance()
                ]
                fits = True
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
            # Outside of the handler: the error's traceback would keep the tensors alive.
            if not fits and (lost := self._lines.back_off()) is not None:
                n = len(lost.prompt.ids)
                error_ = ItemError("out_of_memory", f"no memory for a prompt of {n} tokens, even on its own")
                self._finished.append((lost.tag, error_))
        finished, self._finished = self._finished, []
        return finished
