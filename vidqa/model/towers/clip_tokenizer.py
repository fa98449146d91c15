"""The tokenizer of a published CLIP text tower -> the `tokenizer.json` of a bundle.

`vidqa.encoders.text_encoder` uses it to tokenize queries.
"""

from __future__ import annotations

from pathlib import Path

from vidqa.errors import BundleError

#: Tokens around every text; the second is the last token of the vocabulary, at which the tower pools.
START, END = "<|startoftext|>", "<|endoftext|>"
_FILES = ("vocab.json", "merges.txt")


def save_clip_tokenizer(folder: Path, file: Path, n_tokens: int) -> None:
    """Write the tokenizer of a text tower, for `TextEncoderSpec.tokenizer`, with the tokens `START` and `END`.

    Args:
        folder: folder with `vocab.json` and `merges.txt`, or `tokenizer.json`, as published.
        file: `tokenizer.json` to write.
        n_tokens: rows of the tower's embedding table.

    Raises:
        BundleError: there is no tokenizer, its last token is not `END`, or it has more tokens than the tower.
    """
    from transformers import CLIPTokenizer

    # transformers creates an empty tokenizer from an empty folder.
    if not (folder / "tokenizer.json").is_file() and not all((folder / n).is_file() for n in _FILES):
        raise BundleError(f"{folder} has no tokenizer for the text tower: {' and '.join(_FILES)} are missing")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise BundleError(f"the tokenizer of the text tower in {folder} cannot be read: {e}") from e
    vocabulary = tokenizer.get_vocab()
    if START not in vocabulary or vocabulary.get(END) != max(vocabulary.values()):
        raise BundleError(f"{folder}: not the tokenizer of a CLIP text tower: {END} is not its last token")
    if vocabulary[END] >= n_tokens:
        raise BundleError(f"{folder}: the tokenizer has {vocabulary[END] + 1} tokens, the text tower {n_tokens}")
    tokenizer.backend_tokenizer.save(str(file))
