"""The engine: requests -> answers, many at a time, with the KV cache of each media item's prefix computed once.

This is the interface of the package: `Request` in, `Answer` or `ItemError` out. An answer does not depend on the other
requests of the batch. Models that support shared-prefix attention run with continuous batching (scheduler.py); the
others run batch by batch (fallback.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidqa.common.devices import is_out_of_memory
from vidqa.errors import ItemError
from vidqa.generate.fallback import FallbackEngine
from vidqa.generate.kv_cache.capacity import max_slots
from vidqa.generate.llm_adapter import supports_shared_prefix
from vidqa.generate.requests import GenerationSettings, Request, StoppingCriteria, plan_request, to_answer
from vidqa.generate.running_batch import EngineStats
from vidqa.generate.scheduler import Scheduler
from vidqa.generate.stop_strings import Stopper, eos_ids
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Answer

__all__ = ["Engine", "GenerationSettings", "Request", "generate"]

Finished = tuple[object, Answer | ItemError]


def generate(
    model: VideoLlava, requests: Sequence[Request], settings: GenerationSettings, batch_size: int | None = None
) -> list[Answer | ItemError]:
    """Answer all requests.

    In float32 every token of an answer is the same, whatever batch the request is part of, even if other requests fail.

    Args:
        model: the model, in evaluation mode.
        requests: questions with the features of their media.
        settings: decoding settings of all requests.
        batch_size: maximum number of requests at a time; None is as many as are likely to fit into memory. If they do
            not fit, the batch is halved until they do.

    Returns:
        An answer for each request, in order, or the error of that request: `prompt_too_long` names the number of
        excess tokens, `out_of_memory` means that the request does not fit even alone, and `not_finite` that the LLM
        returned NaN or infinity.

    Raises:
        UsageError: a question contains a string that the chat format reserves.
    """
    if not requests:
        return []
    engine = Engine(model, settings, min(batch_size or max_slots(model), len(requests)))
    order = sorted(range(len(requests)), key=lambda i: -sum(f.tokens.size for f in requests[i].features))
    for i in order:  # longest first: the others fit into their buffers
        engine.submit(i, requests[i])
    out: list[Answer | ItemError | None] = [None] * len(requests)
    while engine.busy:
        for tag, answer in engine.step():
            assert isinstance(tag, int)
            out[tag] = answer
    return [answer for answer in out if answer is not None]


class Engine:
    """Answers requests, which may be submitted while others are running.

    Args:
        model: the model, in evaluation mode. Other engines and chats wait for `step` before they use it. Use the engine
            from one thread.
        settings: decoding settings of all requests.
        batch_size: as for `generate`.
        static_shapes: run decode steps in a few fixed shapes, which a CUDA device replays as CUDA graphs; None does so
            on a CUDA device only.
    """

    def __init__(
        self,
        model: VideoLlava,
        settings: GenerationSettings,
        batch_size: int | None = None,
        static_shapes: bool | None = None,
    ) -> None:
        self._model, self._settings = model, settings
        self._max_waiting = batch_size or max_slots(model)
        stops = (*model.chat.stop, *settings.stop)
        self._stopper = Stopper(model.tokenizer, stops, model.chat.answer_prefixes)
        criteria = StoppingCriteria(eos_ids(model.llm, model.tokenizer, stops), self._stopper.has_stop_string)
        on_gpu = model.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(model.device)  # per thread; kernels start on the current device
        self._scheduler: Scheduler | FallbackEngine = (
            Scheduler(model, settings, criteria, batch_size, on_gpu if static_shapes is None else static_shapes)
            if supports_shared_prefix(model.llm, model.context)
            else FallbackEngine(model, settings, criteria, batch_size)
        )
        self._finished: list[Finished] = []

    @property
    def stats(self) -> EngineStats:
        """Work done by the LLM so far."""
        return self._scheduler.stats

    @property
    def busy(self) -> bool:
        """True while answers are pending."""
        return bool(self._finished or self._scheduler.busy)

    @property
    def accepts_more(self) -> bool:
        """True while the queue is shorter than a batch, so that another request would not wait long.

        Requests that failed at once count until `step` has returned them, so that a loop that submits while this is
        True terminates even if all requests fail.
        """
        return self._scheduler.n_waiting + len(self._finished) < self._max_waiting

    def submit(self, tag: object, request: Request) -> None:
        """Append a request to the queue; a later `step` returns its answer with the tag.

        Raises:
            UsageError: a question contains a string that the chat format reserves.
        """
        with self._model.lock:
            planned = plan_request(self._model, tag, request, self._settings)
        if isinstance(planned, ItemError):
            self._finished.append((tag, planned))
        else:
            self._scheduler.submit(planned)

    def drop_waiting(self) -> None:
        """Drop the requests that wait for a slot; those in the running batch continue."""
        self._scheduler.drop_waiting()

    def step(self) -> list[Finished]:
        """Run one step of the scheduler, about one token per running sequence.

        Returns:
            (tag, answer or error) of the requests that finished; may be empty.
        """
        with self._model.lock:
            self._step()
        finished, self._finished = self._finished, []
        return finished

    def _step(self) -> None:
        if not self._scheduler.busy:
            return
        try:
            self._finished += [
                (planned.tag, to_answer(planned, output, self._stopper)) for planned, output in self._scheduler.step()
            ]
            fits = True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        # Outside the handler: the error's traceback would keep the tensors alive.
        if not fits and (dropped := self._scheduler.back_off()) is not None:
            n = len(dropped.prompt.ids)
            error_ = ItemError("out_of_memory", f"not enough memory for a prompt of {n} tokens, even on its own")
            self._finished.append((dropped.tag, error_))
