"""EncoderInput -> Features. Inputs of many files share batches; results keep the order of the inputs.

Axes: T frames, S side of the encoder's input in pixels, P tokens per frame, D width of a token, E width of the pooled
embedding. A frame group is the number of frames n that the graph takes at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vidqa.encoders.bundle_protocol import EncoderBundle, VisionEncoderSpec
from vidqa.encoders.onnx_session import OnnxSession, resolve_device
from vidqa.errors import ItemError
from vidqa.records import EncoderInput, Features, MediaKind

log = logging.getLogger(__name__)

#: Frames per run if no batch size is set. An estimate: enough to amortize the overhead of a call on the CPU and to keep
#: a GPU busy. tools/bench_encode.py measures other sizes.
AUTO_FRAMES = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True)
class EncoderGraph:
    """One encoder of a model: its ONNX file, and whether the class token is kept."""

    path: str | os.PathLike[str]
    keep_cls: bool
    sha256: str | None = None  # None skips the check
    external: dict[str, str] = field(default_factory=dict)  # digests of external weight files by path


class Encoder:
    """Image and video encoder of one model on one device. Each graph is opened on first use.

    Args:
        image_graph: graph for images, or its path (class token dropped).
        video_graph: graph for videos, or its path (class token kept).
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        batch_size: frame groups per run; None chooses by device. Halved whenever memory runs out.
        threads: CPU threads; None uses all that the process may use.

    Raises:
        DeviceError: the requested device is not available.
        ValueError: `batch_size` is below 1.
    """

    def __init__(
        self,
        image_graph: EncoderGraph | str | os.PathLike[str],
        video_graph: EncoderGraph | str | os.PathLike[str],
        device: str = "auto",
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.device = resolve_device(device)
        self._graphs: dict[MediaKind, EncoderGraph] = {
            "image": image_graph
            if isinstance(image_graph, EncoderGraph)
            else EncoderGraph(image_graph, keep_cls=False),
            "video": video_graph if isinstance(video_graph, EncoderGraph) else EncoderGraph(video_graph, keep_cls=True),
        }
        self._sessions: dict[MediaKind, OnnxSession] = {}
        self._batch_size = batch_size
        self._max_batch: dict[MediaKind, int] = {}  # batch size after running out of memory
        self._threads = threads

    @classmethod
    def from_bundle(
        cls, bundle: EncoderBundle, device: str = "auto", *, batch_size: int | None = None, threads: int | None = None
    ) -> Encoder:
        """Create the encoder of a bundle. The digests of its graphs are checked when they are opened.

        Args:
            bundle: the bundle.
            device: as for the class.
            batch_size: as for the class.
            threads: as for the class.

        Raises:
            DeviceError: the requested device is not available.
        """

        def graph(path: Path, spec: VisionEncoderSpec) -> EncoderGraph:
            external = {str(bundle.folder / name): digest for name, digest in spec.external.items()}
            return EncoderGraph(path, spec.keep_cls, spec.sha256, external)

        specs = bundle.spec.encoders
        image, video = graph(bundle.image_graph, specs.image), graph(bundle.video_graph, specs.video)
        return cls(image, video, device, batch_size=batch_size, threads=threads)

    @property
    def provider(self) -> str:
        """Execution provider and device as text: `CUDAExecutionProvider on cuda:0`."""
        name = "CPUExecutionProvider" if self.device == "cpu" else "CUDAExecutionProvider"
        return f"{name} on {self.device}"

    def session(self, kind: MediaKind) -> OnnxSession:
        """Return the session for a kind of media, opened on first use.

        Args:
            kind: `image` or `video`.

        Raises:
            BundleError: the graph is missing, altered or not an encoder.
        """
        if kind not in self._sessions:
            g = self._graphs[kind]
            for other, opened in self._sessions.items():
                if self._graphs[other].path == g.path:  # images and videos share a graph: load its weights once
                    self._sessions[kind] = opened
                    return opened
            self._sessions[kind] = OnnxSession(
                g.path, self.device, sha256=g.sha256, external=g.external, threads=self._threads
            )
        return self._sessions[kind]

    def batch_size(self, kind: MediaKind) -> int:
        """Return the number of frame groups per run. An input is one group unless it has more frames than the graph."""
        frames = AUTO_FRAMES["cpu" if self.device == "cpu" else "cuda"]
        wanted = self._batch_size or max(1, frames // self.session(kind).n_frames)
        return min(wanted, self._max_batch.get(kind, wanted))

    def flops(self, kind: MediaKind) -> float:
        """Estimate the floating-point operations for one frame group: 2 per weight and token, without attention."""
        session, graph = self.session(kind), self._graphs[kind]
        n_bytes = sum(os.path.getsize(p) for p in (graph.path, *graph.external))
        return 2.0 * n_bytes / session.bytes_per_weight * session.n_frames * session.n_tokens

    def encode(self, inputs: Sequence[EncoderInput]) -> list[Features]:
        """Encode images and videos, in any mix.

        A video may have as many frames as the graph takes, or a multiple. Its frames are then split into groups
        without attention between them, as in the published model, and the embedding is the mean over the groups.

        Args:
            inputs: float32 [T, 3, S, S] each; inputs of the same kind share batches.

        Returns:
            One `Features` per input, in the same order.

        Raises:
            ItemError: `out_of_memory`: not even a single frame group fits into memory; `not_finite`: the features of an
                input contain NaN or infinity.
            BundleError: a graph is missing, altered or not an encoder.
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
        groups = [_frame_groups(value, session) for value in inputs]
        tokens, embeddings = self._run(kind, [g for gs in groups for g in gs])
        features, first = [], 0
        for gs in groups:
            end = first + len(gs)
            kept = np.concatenate(tokens[first:end])[:, 0 if keep_cls else 1 :]
            embedding = np.asarray(np.mean(embeddings[first:end], axis=0, dtype=np.float32))
            features.append(Features(np.ascontiguousarray(kept), embedding, keep_cls, kind))
            if not features[-1].is_finite:
                what = f"the {kind} encoder returned NaN or infinity"
                raise ItemError("not_finite", what, hint="convert the model again with --encoders float32")
            first = end
        return features

    def _run(self, kind: MediaKind, groups: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Encode frame groups float32 [n, 3, S, S]; return tokens float16 [n, P, D] and embedding float32 [E] each."""
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
                self._max_batch[kind] = len(batch) // 2
                log.warning("%s encoder ran out of memory; batch size is now %d", kind, self._max_batch[kind])
                continue
            tokens.extend(some_tokens)
            embeddings.extend(some_embeddings)
        return tokens, embeddings


def _frame_groups(value: EncoderInput, session: OnnxSession) -> list[np.ndarray]:
    """float32 [T, 3, S, S] -> T/n arrays [n, 3, S, S], where n is the number of frames that the graph takes."""
    n, n_frames = session.n_frames, len(value.values)
    size = session.image_size
    if n_frames % n or value.values.shape[2:] != (size, size):
        expected = f"{n} frames (or a multiple) of {size} x {size} pixels"
        raise ValueError(f"the {value.kind} encoder takes {expected}, got {list(value.values.shape)}")
    return list(value.values.reshape(-1, n, 3, size, size))
