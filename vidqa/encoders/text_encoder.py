"""Texts -> embeddings in the same space as images and videos: tokenizer and text tower of one model.

Axes: B texts, S sequence length of the graph, E width of the pooled embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidqa.encoders.bundle_protocol import EncoderBundle
from vidqa.encoders.onnx_errors import VERIFY_HINT, first_line, verify_file
from vidqa.encoders.onnx_session import open_graph, resolve_device
from vidqa.errors import BundleError, ItemError, UsageError

_INPUTS, _OUTPUT = ("input_ids", "attention_mask"), "embedding"


class TextTokenizer:
    """Text -> token ids as the text tower was trained with: start token, text, end token.

    Args:
        file: a `tokenizer.json`. Its own special tokens, padding and truncation are not used.
        max_length: maximum number of ids, including the start and end tokens.
        start: the start token; None if the tower has none.
        end: the end token; it must have the largest id that the tower accepts.

    Raises:
        BundleError: the file cannot be read, or does not have these tokens.
    """

    def __init__(self, file: Path, max_length: int, start: str | None, end: str) -> None:
        from tokenizers import Tokenizer

        verify_file(file, None)
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as e:  # tokenizers raises plain Exception
            raise BundleError(f"{file}: not a tokenizer: {first_line(e)}", hint=VERIFY_HINT) from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_length = max_length
        self._start = [] if start is None else [self._token_id(start, file)]
        self._end, self._end_text = self._token_id(end, file), end

    def _token_id(self, token: str, file: Path) -> int:
        token_id: int | None = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise BundleError(f"{file}: the tokenizer has no token {token}, which the text tower needs")
        return token_id

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, at most `max_length`.

        Args:
            text: the text.

        Raises:
            UsageError: the text is empty, too long, or contains a reserved token.
        """
        inner: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not text.strip() or not inner:
            raise UsageError("the text to search for is empty", hint='vidqa search "a red circle" clips/')
        if max(inner) >= self._end:
            raise UsageError(f"the text contains {self._end_text} or another token that the text tower reserves")
        max_tokens = self.max_length - len(self._start) - 1
        if len(inner) > max_tokens:
            what = (
                f"the text has {len(inner)} tokens, {len(inner) - max_tokens} more than this model's text tower accepts"
            )
            raise UsageError(what, hint=f"use at most {max_tokens} tokens, about {max_tokens * 3 // 4} words")
        return [*self._start, *inner, self._end]


class TextEncoder:
    """The text tower of one model on one device.

    Args:
        graph: the ONNX file.
        tokenizer: its tokenizer.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        BundleError: the file is missing or not a text tower.
        DeviceError: the requested device is not available.
    """

    def __init__(self, graph: Path, tokenizer: TextTokenizer, device: str = "auto") -> None:
        self.path, self.tokenizer = graph, tokenizer
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
        if tokenizer.max_length > self.length:
            raise BundleError(
                f"{graph}: takes {self.length} tokens, but bundle.json has max_length {tokenizer.max_length}"
            )

    @classmethod
    def from_bundle(cls, bundle: EncoderBundle, device: str = "auto") -> TextEncoder:
        """Create the text encoder of a bundle, after checking the digests of its files.

        Args:
            bundle: the bundle.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            UsageError: the bundle has no text tower.
            BundleError: a file is missing or altered, or the graph is not a text tower.
            DeviceError: the requested device is not available.
        """
        text, graph, tokenizer = bundle.spec.encoders.text, bundle.text_graph, bundle.text_tokenizer
        if text is None or graph is None or tokenizer is None:
            what = f"the model {bundle.spec.name} has no text tower, which search needs"
            raise UsageError(what, hint="use --model demo, or convert the model again with its text tower")
        verify_file(graph, text.sha256)
        for name, digest in text.external.items():
            verify_file(bundle.folder / name, digest)
        verify_file(tokenizer, text.tokenizer_sha256)
        return cls(graph, TextTokenizer(tokenizer, text.max_length, text.start, text.end), device)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: B texts.

        Returns:
            float32 [B, E], not normalized.

        Raises:
            UsageError: a text is empty, too long, or contains a reserved token.
            ItemError: (`not_finite`) an embedding contains NaN or infinity.
        """
        ids = np.zeros((len(texts), self.length), np.int64)
        mask = np.zeros_like(ids)
        for i, text in enumerate(texts):
            row = self.tokenizer.ids(text)
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        embeddings = self.embed(ids, mask)
        if not np.isfinite(embeddings).all():
            raise ItemError("not_finite", "the text encoder returned NaN or infinity", hint=VERIFY_HINT)
        return embeddings

    def embed(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Embed token ids.

        Args:
            ids: int64 [B, S].
            mask: int64 [B, S], 1 for tokens and 0 for padding.

        Returns:
            float32 [B, E], not normalized.
        """
        (embedding,) = self._session.run([_OUTPUT], dict(zip(_INPUTS, (ids, mask), strict=True)))
        return np.asarray(embedding, dtype=np.float32)
