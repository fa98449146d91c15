"""Training data: files of conversations -> samples with their media -> token ids and labels, or rejected records.

Reading order: corpus.py (several files as one set of samples), record_index.py and json_scanner.py (random access to
records), record_formats.py and chat_records.py (record -> sample), sample.py, media_paths.py, tokenize.py (sample ->
token ids and labels), metadata.py (what packing needs), rejects.py, data_check.py with media_facts.py and
media_shapes.py (check before training), unseen_pairs.py (tokens that the loss ignores).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.training.data.corpus import Corpus, Source
    from vidqa.training.data.data_check import check_corpus
    from vidqa.training.data.sample import Sample

__all__ = ["Corpus", "Sample", "Source", "check_corpus"]

__getattr__ = lazy_exports(
    __name__, {"Corpus": "corpus", "Sample": "sample", "Source": "corpus", "check_corpus": "data_check"}
)
