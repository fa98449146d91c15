"""Texts -> embeddings in the space that pictures and clips share: tokenizer and text tower of one model.

Knows one `tokenizer.json` and one ONNX graph. Does not know clips, scores or the cache; imports no torch.

Letters: B texts, S positions of the graph, E width of the pooled embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vidqa.encoders.onnx_errors import VERIFY_HINT, first_line, verify_file
from vidqa.encoders.onnx_session import open_graph, resolve_device
from vidqa.errors import BundleError, UsageError

_INPUTS, _OUTPUT = ("input_ids", "attention_mask"), "embedding"


class _Text(Protocol):
    @property
    def max_length(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def external(self) -> dict[str, str]: ...
    @property
    def tokenizer_sha256(self) -> str: ...
    @property
    def start(self) -> str | None: ...
    @property
    def end(self) -> str: ...


class _Parts(Protocol):
    @property
    def text(self) -> _Text | None: ...


class _Spec(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def encoders(self) -> _Parts: ...


class TextBundle(Protocol):
    """The little that the text encoder wants to know of a model on disk."""

    @property
    def folder(self) -> Path: ...
    @property
    def text_graph(self) -> Path | None: ...
    @property
    def text_tokenizer(self) -> Path | None: ...
    @property
    def spec(self) -> _Spec: ...


class TextTokenizer:
    """Text -> ids as the tower was trained with: start mark, tokens, end mark.

    Args:
        file: a `tokenizer.json`. Marks, padding and truncation that it asks for itself are not used.
        max_length: most ids of a text, marks included.
        start: the mark in front, None for none.
        end: the mark behind; the largest id that the tower knows.

    Raises:
        BundleError: the file cannot be read, or has no such marks.
    """

    def __init__(self, file: Path, max_length: int, start: str | None, end: str) -> None:
        from tokenizers import Tokenizer

        verify_file(file, None)
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as e:  # the package raises nothing narrower
            raise BundleError(f"{file}: not a tokenizer: {first_line(e)}", hint=VERIFY_HINT) from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_length = max_length
        self._start = [] if start is None else [self._id(start, file)]
        self._end, self._end_text = self._id(end, file), end

    def _id(self, mark: str, file: Path) -> int:
        number: int | None = self._tokenizer.token_to_id(mark)
        if number is None:
            raise BundleError(f"{file}: the tokenizer has no token {mark}, which the text tower needs")
        return number

    def ids(self, text: str) -> list[int]:
        """Ids of a text, at most `max_length`.

        Raises:
            UsageError: the text is empty, too long, or holds a token that is reserved.
        """
        inner: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not text.strip() or not inner:
            raise UsageError("the text to search for is empty", hint='vidqa search "a red circle" clips/')
        if max(inner) >= self._end:
            raise UsageError(f"the text holds {self._end_text} or another token that the text tower reserves")
        room = self.max_length - len(self._start) - 1
        if len(inner) > room:
            what = f"the text has {len(inner)} tokens, {len(inner) - room} more than this model's text tower takes"
            raise UsageError(what, hint=f"a text of at most {room} tokens, about {room * 3 // 4} words")
        return [*self._start, *inner, self._end]


class TextEncoder:
    """The text tower of one model on one device.

    Args:
        graph: the ONNX file.
        tokens: turns texts into ids.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        BundleError: the file is missing or no text tower of this form.
        DeviceError: the device was asked for by name and cannot be had.
    """

    def __init__(self, graph: Path, tokens: TextTokenizer, device: str = "auto") -> None:
        self.path, self.tokens = graph, tokens
        self.device = resolve_device(device)
        verify_file(graph, None)
        self._session: Any = open_graph(graph, self.device)
        ins = {i.name: i.shape for i in self._session.get_inputs()}
        outs = {o.name: o.shape for o in self._session.get_outputs()}
        shapes = [*(ins.get(name, []) for name in _INPUTS), outs.get(_OUTPUT, [])]
        if any(len(s) != 2 or not isinstance(s[1], int) for s in shapes) or shapes[0][1] != shapes[1][1]:
            raise BundleError(f"{graph}: not a text tower of this version: {ins} -> {outs}", hint=VERIFY_HINT)
        self.length: int = shapes[0][1]
        self.embedding_size: int = shapes[2][1]
        if tokens.max_length > self.length:
            raise BundleError(f"{graph}: takes {self.length} tokens, its description says {tokens.max_length}")

    @classmethod
    def from_bundle(cls, bundle: TextBundle, device: str = "auto") -> TextEncoder:
        """The text encoder of a bundle; its files must have the digests that the bundle names.

        Raises:
            UsageError: the bundle has no text tower.
            BundleError, DeviceError: as the class.
        """
        text, graph, tokenizer = bundle.spec.encoders.text, bundle.text_graph, bundle.text_tokenizer
        if text is None or graph is None or tokenizer is None:
            what = f"the model {bundle.spec.name} has no text tower, so its clips cannot be searched by text"
            raise UsageError(what, hint="--model demo, or convert the model again with its text tower")
        verify_file(graph, text.sha256)
        for name, digest in text.external.items():
            verify_file(bundle.folder / name, digest)
        verify_file(tokenizer, text.tokenizer_sha256)
        return cls(graph, TextTokenizer(tokenizer, text.max_length, text.start, text.end), device)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed some texts.

        Returns:
            float32 [B, E], not normalised.

        Raises:
            UsageError: a text is empty, too long, or holds a token that is reserved.
        """
        ids = np.zeros((len(texts), self.length), np.int64)
        mask = np.zeros_like(ids)
        for i, text in enumerate(texts):
            one = self.tokens.ids(text)
            ids[i, : len(one)], mask[i, : len(one)] = one, 1
        return self.embed(ids, mask)

    def embed(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Embed texts that are ids already.

        Args:
            ids: int64 [B, S].
            mask: int64 [B, S], 1 for real tokens.

        Returns:
            float32 [B, E], not normalised.
        """
        (embedding,) = self._session.run([_OUTPUT], dict(zip(_INPUTS, (ids, mask), strict=True)))
        return np.asarray(embedding, dtype=np.float32)
