import errno
import shutil
from types import SimpleNamespace

import pytest

from vidqa.errors import TrainError
from vidqa.train.stage import checkpoints


def written(folder, step):
    part = checkpoints.part_folder(folder, step)
    part.mkdir(parents=True)
    (part / "weights").write_text(str(step))
    return part


def test_the_last_ones_are_kept_and_half_written_ones_are_none(tmp_path):
    for step in (2, 4, 10):
        checkpoints.settle(written(tmp_path, step), tmp_path, step, keep=2)
    written(tmp_path, 12)
    assert [step for step, _ in checkpoints.found_in(tmp_path)] == [4, 10]
    checkpoints.clear_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-4"]


def test_a_checkpoint_of_an_earlier_attempt_gives_way(tmp_path):
    checkpoints.settle(written(tmp_path, 2), tmp_path, 2, keep=2)
    (tmp_path / "checkpoint-2" / "weights").write_text("old")
    checkpoints.settle(written(tmp_path, 2), tmp_path, 2, keep=2)
    assert (tmp_path / "checkpoint-2" / "weights").read_text() == "2"


def test_room_is_looked_for_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    checkpoints.need_room(tmp_path / "new" / "folder", 4_000_000, "a checkpoint")
    with pytest.raises(TrainError, match=r"no room for a checkpoint in .*: 6\.0 MB needed, 5\.0 MB free"):
        checkpoints.need_room(tmp_path, 6_000_000, "a checkpoint")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_leaves_nothing_half_written(tmp_path, error):
    part = written(tmp_path, 3)
    with pytest.raises(TrainError, match="no room for the checkpoint"), checkpoints.explained(part, "the checkpoint"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), checkpoints.explained(tmp_path / "part", "x"):
        raise RuntimeError("a bug")
