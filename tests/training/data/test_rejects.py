import polars as pl
import pytest

from vidqa.errors import TrainError, UsageError
from vidqa.training.data.rejects import COLUMNS, Rejected, RejectLog, read_rejects, write_rejects


def reject(record, kind="too_long", source="a.json"):
    return Rejected(source, record, f"id{record}", kind, f"why {record}")


def test_rejects_are_counted_once_and_listed_in_order(tmp_path):
    log = RejectLog(tmp_path / "rejects.parquet", 1000)
    log.add(reject(5), reject(2, "media_missing"))
    log.add(
        reject(5, "bad_json"), reject(5, source="b.json")
    )  # the first reason is kept; the same number in another file is another record
    assert (len(log), log.rate) == (3, 0.003)
    assert log.counts() == {"too_long": 2, "media_missing": 1}
    table = pl.read_parquet(log.save())
    assert tuple(table.columns) == COLUMNS
    assert table.rows() == [
        ("a.json", 2, "id2", "media_missing", "why 2"),
        ("a.json", 5, "id5", "too_long", "why 5"),
        ("b.json", 5, "id5", "too_long", "why 5"),
    ]


def test_one_reject_too_many_stops_training_and_explains_why(tmp_path):
    path = tmp_path / "rejects.parquet"
    log = RejectLog(path, 200, 0.02)
    log.add(*(reject(i, "media_missing") for i in range(3)), reject(3, "answerless"))
    assert not path.exists()
    with pytest.raises(TrainError) as caught:
        log.add(reject(9, "answerless"))
    text = str(caught.value)
    assert "5 of 200 records" in text
    assert "max_reject_rate 0.02" in text
    assert text.index("3 media_missing") < text.index("2 answerless")
    assert "a.json, record 0 (id id0): why 0" in text
    assert "--check-data" in text
    assert len(read_rejects(path)) == 5


def test_no_reject_is_allowed_at_rate_0_and_all_at_1(tmp_path):
    with pytest.raises(TrainError):
        RejectLog(tmp_path / "a.parquet", 10, 0.0).add(reject(0))
    log = RejectLog(tmp_path / "b.parquet", 2, 1.0)
    log.add(reject(0), reject(1))
    with pytest.raises(ValueError, match="max_rate"):
        RejectLog(tmp_path / "c.parquet", 2, 1.5)


def test_a_resumed_run_reads_its_rejects(tmp_path):
    path = tmp_path / "rejects.parquet"
    first = RejectLog(path, 100, 0.02)
    first.add(reject(1), reject(2))
    first.save()
    resumed = RejectLog(path, 100, 0.02)
    resumed.add(reject(1), reject(2))
    assert resumed.counts() == {"too_long": 2}
    with pytest.raises(TrainError):
        resumed.add(reject(3))


def test_a_table_may_be_empty(tmp_path):
    path = write_rejects(tmp_path / "rejects.parquet", [])
    assert read_rejects(path) == []
    assert pl.read_parquet(path).schema["record"] == pl.Int64


def test_a_different_table_is_not_overwritten(tmp_path):
    path = tmp_path / "rejects.parquet"
    pl.DataFrame({"answer": ["yes"]}).write_parquet(path)
    with pytest.raises(UsageError, match="not a table of rejects"):
        RejectLog(path, 10)
    path.write_bytes(b"torn")
    with pytest.raises(UsageError, match="not a readable table of rejects"):
        RejectLog(path, 10)
