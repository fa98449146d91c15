"""Files of conversations -> samples that own their media, and what is wrong with those that are none.

    Source, Source, ... -> Corpus -> Sample -> labelled() -> token ids and labels
                              |
                              +-> SampleError -> RejectLog -> rejects.parquet

Records are read one by one: a JSON list of gigabytes costs two offsets a record, not its text. Knows files, chat
formats and, for the check, decoders; knows no model.
"""

from vidqa.train.data.corpus import Corpus, Source
from vidqa.train.data.labels import labelled
from vidqa.train.data.record_formats import read_conversations
from vidqa.train.data.rejects import Rejected, RejectLog
from vidqa.train.data.sample import REJECT_KINDS, MediaRef, Sample, SampleError, by_media

__all__ = [
    "REJECT_KINDS",
    "Corpus",
    "MediaRef",
    "RejectLog",
    "Rejected",
    "Sample",
    "SampleError",
    "Source",
    "by_media",
    "labelled",
    "read_conversations",
]
