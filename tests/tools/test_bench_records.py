import pytest


def test_bench_records_measures_the_list_that_it_writes(tmp_path):
    import bench_records

    path = tmp_path / "records.json"
    bench_records.write_list(path, 100_000)
    found = bench_records.measure(path)
    assert found["bytes"] == pytest.approx(100_000, rel=0.01)
    assert found["records"] == path.read_text().count('"webvid"')
    assert found["index"] > 16 * found["records"]
    assert all(found[name] >= 0 for name in ("first_s", "again_s", "record_s", "memory"))
