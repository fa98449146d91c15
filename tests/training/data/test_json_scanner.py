"""Records are found without parsing, for any text, chunk size and file size."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidqa.cache.key import RECORDS_FOLDER as FOLDER
from vidqa.errors import TrainError, UsageError
from vidqa.training.data.json_scanner import layout_of, scan_json
from vidqa.training.data.record_index import RecordFile
from vidqa.training.data.sample import SampleError

NASTY = st.text(st.sampled_from('a"\\[]{},:\n\té\U0001f600\x00'), max_size=12)
VALUES = st.recursive(
    NASTY | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(NASTY, VALUES, max_size=3), max_size=5)


def found(path, layout, chunk):
    data = path.read_bytes()
    return [json.loads(data[a:b]) for a, b in scan_json(path, layout, chunk=chunk).spans]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scan") / "records.json"


@settings(max_examples=40, deadline=None)
@given(records=RECORDS, chunk=st.integers(1, 9), ascii=st.booleans(), indent=st.sampled_from([None, 1]))
def test_records_of_a_list_are_found_across_chunks(scratch, records, chunk, ascii, indent):
    scratch.write_text(json.dumps(records, ensure_ascii=ascii, indent=indent), encoding="utf-8")
    assert found(scratch, "array", chunk) == records


@settings(max_examples=25, deadline=None)
@given(records=RECORDS, chunk=st.integers(1, 9), gap=st.sampled_from(["\n", "\r\n", "\n \n\n", "\n\t\r\n"]))
def test_records_on_lines_are_found_across_chunks(scratch, records, chunk, gap):
    text = gap.join(json.dumps(r, ensure_ascii=False) for r in records)
    scratch.write_bytes(text.encode("utf-8"))
    assert found(scratch, "lines", chunk) == records


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\n\n", b"\xef\xbb\xbf \r\n", b"\n\n", b""])
def test_empty_lines_after_a_byte_order_mark_are_not_records(tmp_path, before):
    path = tmp_path / "a.jsonl"
    path.write_bytes(before + b'{"a": 1}\n\n{"a": 2}')
    for chunk in (1, 2, 3, 4, 100):
        assert len(scan_json(path, "lines", chunk=chunk).spans) == 2
    file = RecordFile(path, tmp_path / "cache")
    assert [file.record(n) for n in range(len(file))] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("n", range(1, 6))
def test_runs_of_backslashes_before_a_quote(scratch, n):
    records = [{"a": "\\" * n + '"', "b": "],["}, {"a": "\\" * n}]
    scratch.write_text(json.dumps(records))
    for chunk in (1, 2, 3, 5, 100):
        assert found(scratch, "array", chunk) == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"b": ', "byte 17 with 2 open brackets"),
        ('[{"a": "never closed}]', "inside a string"),
        ('[{"a": 1}] [{"b": 2}]', "byte 11: text after the end"),
        ('[{"a": 1}]]', "byte 10: text after the end"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_an_invalid_list_is_rejected_with_the_position(scratch, text, message, chunk):
    scratch.write_text(text)
    with pytest.raises(UsageError, match=message):
        scan_json(scratch, "array", chunk=chunk)


@pytest.mark.parametrize(
    ("data", "layout"),
    [(b" \n[{}]", "array"), (b"\xef\xbb\xbf[{}]", "array"), (b'{"a": 1}\n', "lines"), (b"PAR1....", "parquet")],
)
def test_the_layout_is_detected_by_content(scratch, data, layout):
    scratch.write_bytes(data)
    assert layout_of(scratch) == layout


@pytest.mark.parametrize("data", [b"", b"  \n", b"hello", b"\x1f\x8b\x08"])
def test_a_file_without_records_is_rejected(scratch, data):
    scratch.write_bytes(data)
    with pytest.raises(UsageError, match=r"empty|not a JSON list"):
        layout_of(scratch)


def test_a_large_list_needs_memory_for_offsets_only(tmp_path):
    path, n = tmp_path / "large.json", 8000
    with path.open("w") as f:
        f.write("[")
        f.write(",\n".join(json.dumps({"id": i, "text": 'x"\\' * 800}) for i in range(n)))
        f.write("]")
    size = path.stat().st_size
    assert size > 30e6
    tracemalloc.start()
    file = RecordFile(path, tmp_path / "cache")
    last = file.record(n - 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(file), last["id"]) == (n, n - 1)
    assert file.spans.nbytes == 16 * n
    assert peak < 16e6, f"{peak / 1e6:.1f} MB for a file of {size / 1e6:.1f} MB"


def test_the_index_is_cached_and_updated_with_the_file(tmp_path, monkeypatch):
    import os

    import vidqa.training.data.record_index as record_index

    path, cache = tmp_path / "a.json", tmp_path / "cache"
    path.write_text('[{"a": 1}, {"a": 2}]')
    os.utime(path, (1e9, 1e9))  # written long ago: an index is not trusted if the file changed within one clock tick
    first = RecordFile(path, cache)
    (index,) = (cache / FOLDER).iterdir()
    scans = []
    real = record_index.scan_json
    monkeypatch.setattr(record_index, "scan_json", lambda *a, **k: scans.append(a) or real(*a, **k))
    second = RecordFile(path, cache)
    assert not scans
    assert (second.sha256, second.size) == (first.sha256, 20)
    assert np.array_equal(second.spans, first.spans)
    index.write_bytes(b"broken")
    assert len(RecordFile(path, cache)) == 2
    assert len(scans) == 1
    path.write_text('[{"a": 1}, {"a": 2}, {"a": 3}]')
    assert len(RecordFile(path, cache)) == 3
    assert index not in (remaining := list((cache / FOLDER).iterdir()))
    assert len(remaining) == 1  # the index of the old file was removed


def test_an_index_that_cannot_be_cached_is_not_an_error(tmp_path, caplog):
    path, blocked = tmp_path / "a.json", tmp_path / "file"
    path.write_text('[{"a": 1}]')
    blocked.write_text("no folder")
    assert RecordFile(path, blocked).record(0) == {"a": 1}
    assert "cannot cache" in caplog.text


@pytest.mark.parametrize(
    "record", ['{"a": }', '"text"', "[1]", "3", '{"a": "\\ud8zz"}', '{"a": 1 "b": 2}', "[" * 100_000 + "]" * 100_000]
)
def test_a_record_that_is_not_an_object_is_bad_json_without_affecting_others(tmp_path, record):
    path = tmp_path / "a.json"
    path.write_text(f'[{{"a": 1}}, {record}, {{"a": 3}}]')
    file = RecordFile(path, tmp_path)
    assert (file.record(0), file.record(2)) == ({"a": 1}, {"a": 3})
    with pytest.raises(SampleError, match="from byte 10") as caught:
        file.record(1)
    assert caught.value.kind == "bad_json"


def test_invalid_utf8_is_bad_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xff\xfe"}\n{"a": 1}\n')
    file = RecordFile(path, tmp_path)
    assert file.record(1) == {"a": 1}
    with pytest.raises(SampleError) as caught:
        file.record(0)
    assert caught.value.kind == "bad_json"


def test_parquet_has_the_same_records(tmp_path):
    import polars as pl

    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": 'a "é"'}]
    rows = [
        {"id": str(i), "video": f"{i}.mp4" if i % 2 else None, "tags": ["x"] * (i % 3), "conversations": turns}
        for i in range(10)
    ]
    path = tmp_path / "any name"
    pl.DataFrame(rows).write_parquet(path)
    file = RecordFile(path, tmp_path / "cache")
    assert [file.record(i) for i in range(len(file))] == rows
    assert RecordFile(path, tmp_path / "cache").record(9) == rows[9]


def test_unusable_parquet_is_reported(tmp_path):
    import polars as pl

    path = tmp_path / "a.parquet"
    pl.DataFrame({"id": ["a"], "image": [b"\xff\xd8"]}).write_parquet(path)
    with pytest.raises(UsageError, match="column image contains bytes"):
        RecordFile(path, tmp_path / "cache")
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UsageError, match="Parquet"):
        RecordFile(path, tmp_path / "cache")
    pl.DataFrame({"id": ["a"]}).write_parquet(path)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TrainError, match="cannot be converted"):
        RecordFile(path, tmp_path / "file")
