"""EncoderInput -> Features: clips and pictures of many files share batches; results keep the order of the inputs.

Knows the two graphs of a model and how much fits into one run. Does not know files, frames or the cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from vidqa.encoders.onnx_session import OnnxSession, resolve_device
from vidqa.errors import ItemError
from vidqa.records import EncoderInput, Features, MediaKind

log = logging.getLogger(__name__)

#: Frames of one run with `batch_size="auto"`. Chosen by judgement: enough to share one call's overhead on the CPU, and
#: to keep a GPU busy. tools/bench_encode.py measures what other sizes give on a machine.
AUTO_FRAMES = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True)
class Graph:
    """One encoder of a model: the file, and how its tokens are taken."""

    path: str | os.PathLike[str]
    keep_cls: bool
    sha256: str | None = None  # None: not checked
    external: dict[str, str] = field(default_factory=dict)  # digests of weight files, by path from the graph's folder


class _Part(Protocol):
    @property
    def keep_cls(self) -> bool: ...
    @property
    def sha256(self) -> str: ...
    @property
    def external(self) -> dict[str, str]: ...


class _Parts(Protocol):
    @property
    def image(self) -> _Part: ...
    @property
    def video(self) -> _Part: ...


class _Spec(Protocol):
    @property
    def encoders(self) -> _Parts: ...


class EncoderBundle(Protocol):
    """The little that the encoder wants to know of a model on disk."""

    @property
    def folder(self) -> Path: ...
    @property
    def image_graph(self) -> Path: ...
    @property
    def video_graph(self) -> Path: ...
    @property
    def spec(self) -> _Spec: ...


class Encoder:
    """Image and video encoder of one model on one device; each graph is opened when its kind first appears.

    Args:
        image_graph: graph for pictures, or its path (class token dropped).
        video_graph: graph for clips, or its path (class token kept).
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        batch_size: inputs of one run, None lets the encoder choose. After running out of memory it is halved.
        threads: CPU threads, None for all that the process may use.

    Raises:
        DeviceError: the device was asked for by name and cannot be had.
        ValueError: `batch_size` is below 1.
    """

    def __init__(
        self,
        image_graph: Graph | str | os.PathLike[str],
        video_graph: Graph | str | os.PathLike[str],
        device: str = "auto",
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.device = resolve_device(device)
        self._graphs: dict[MediaKind, Graph] = {
            "image": image_graph if isinstance(image_graph, Graph) else Graph(image_graph, keep_cls=False),
            "video": video_graph if isinstance(video_graph, Graph) else Graph(video_graph, keep_cls=True),
        }
        self._sessions: dict[MediaKind, OnnxSession] = {}
        self._batch_size = batch_size
        self._limit: dict[MediaKind, int] = {}  # found by running out of memory
        self._threads = threads

    @classmethod
    def from_bundle(
        cls, bundle: EncoderBundle, device: str = "auto", *, batch_size: int | None = None, threads: int | None = None
    ) -> Encoder:
        """The encoder of a bundle; its graphs must have the digests that the bundle names.

        Raises:
            DeviceError: as the class.
        """

        def graph(path: Path, part: _Part) -> Graph:
            return Graph(
                path, part.keep_cls, part.sha256, {str(bundle.folder / n): d for n, d in part.external.items()}
            )

        parts = bundle.spec.encoders
        image, video = graph(bundle.image_graph, parts.image), graph(bundle.video_graph, parts.video)
        return cls(image, video, device, batch_size=batch_size, threads=threads)

    @property
    def provider(self) -> str:
        """What runs the graphs, for people: `CUDAExecutionProvider on cuda:0`."""
        name = "CPUExecutionProvider" if self.device == "cpu" else "CUDAExecutionProvider"
        return f"{name} on {self.device}"

    def session(self, kind: MediaKind) -> OnnxSession:
        """The session of a kind, opened on first use.

        Raises:
            BundleError: the graph is missing, altered or no encoder.
        """
        if kind not in self._sessions:
            g = self._graphs[kind]
            for other, opened in self._sessions.items():
                if self._graphs[other].path == g.path:  # one graph for pictures and clips: its weights are loaded once
                    self._sessions[kind] = opened
                    return opened
            self._sessions[kind] = OnnxSession(
                g.path, self.device, sha256=g.sha256, external=g.external, threads=self._threads
            )
        return self._sessions[kind]

    def batch_size(self, kind: MediaKind) -> int:
        """Groups of frames (for the usual graph: inputs) that the next run of a kind takes."""
        frames = AUTO_FRAMES["cpu" if self.device == "cpu" else "cuda"]
        wanted = self._batch_size or max(1, frames // self.session(kind).n_frames)
        return min(wanted, self._limit.get(kind, wanted))

    def flops(self, kind: MediaKind) -> float:
        """Operations that one group of frames asks for: 2 a weight and token, attention's own products left out."""
        session, graph = self.session(kind), self._graphs[kind]
        n_bytes = sum(os.path.getsize(p) for p in (graph.path, *graph.external))
        return 2.0 * n_bytes / session.bytes_per_weight * session.n_frames * session.n_tokens

    def encode(self, inputs: Sequence[EncoderInput]) -> list[Features]:
        """Encode clips and pictures, in any mix.

        A clip may have as many frames as the graph takes, or a multiple: then its frames fall into groups that do not
        see each other, as in the published model, and the embedding is the mean over the groups.

        Args:
            inputs: float32 [T, 3, S, S] each; those of one kind share batches.

        Returns:
            One `Features` an input, in the same order.

        Raises:
            ItemError: (`out_of_memory`) not even one input fits into memory.
            BundleError: a graph is missing, altered or no encoder.
            ValueError: frames of the wrong size or number.
        """
        results: dict[int, Features] = {}
        kinds: tuple[MediaKind, MediaKind] = ("image", "video")
        for kind in kinds:
            of_kind = [i for i, value in enumerate(inputs) if value.kind == kind]
            if of_kind:
                results |= zip(of_kind, self._encode_kind(kind, [inputs[i] for i in of_kind]), strict=True)
        return [results[i] for i in range(len(inputs))]

    def _encode_kind(self, kind: MediaKind, inputs: Sequence[EncoderInput]) -> list[Features]:
        session, keep_cls = self.session(kind), self._graphs[kind].keep_cls
        groups = [_groups(value, session) for value in inputs]
        tokens, embeddings = self._run(kind, [g for gs in groups for g in gs])
        features, first = [], 0
        for gs in groups:
            end = first + len(gs)
            kept = np.concatenate(tokens[first:end])[:, 0 if keep_cls else 1 :]
            embedding = np.asarray(np.mean(embeddings[first:end], axis=0, dtype=np.float32))
            features.append(Features(np.ascontiguousarray(kept), embedding, keep_cls, kind))
            first = end
        return features

    def _run(self, kind: MediaKind, groups: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """float32 [n, 3, S, S] each -> tokens float16 [n, P, D] and embedding float32 [E] each."""
        tokens: list[np.ndarray] = []
        embeddings: list[np.ndarray] = []
        while len(tokens) < len(groups):
            batch = groups[len(tokens) : len(tokens) + self.batch_size(kind)]
            try:
                some_tokens, some_embeddings = self.session(kind).run(np.stack(batch))
            except MemoryError as e:
                if len(batch) == 1:
                    what = f"the {kind} encoder ran out of memory on {self.device} with a single input"
                    raise ItemError("out_of_memory", what, hint="--device cpu") from e
                self._limit[kind] = len(batch) // 2
                log.warning("%s encoder: out of memory, batch size is now %d", kind, self._limit[kind])
                continue
            tokens.extend(some_tokens)
            embeddings.extend(some_embeddings)
        return tokens, embeddings


def _groups(value: EncoderInput, session: OnnxSession) -> list[np.ndarray]:
    """float32 [T, 3, S, S] -> T/n arrays [n, 3, S, S], n the frames that the graph takes."""
    n, n_frames = session.n_frames, len(value.values)
    size = session.image_size
    if n_frames % n or value.values.shape[2:] != (size, size):
        want = f"{n} frames (or a multiple) of {size} x {size}"
        raise ValueError(f"the {value.kind} encoder takes {want}, got {list(value.values.shape)}")
    return list(value.values.reshape(-1, n, 3, size, size))
