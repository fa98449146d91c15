import errno
import shutil
from types import SimpleNamespace

import pytest

from vidqa.errors import TrainError
from vidqa.training.stage import checkpoints


def write_part(folder, step):
    part = checkpoints.temporary_path(folder, step)
    part.mkdir(parents=True)
    (part / "weights").write_text(str(step))
    return part


def test_the_latest_checkpoints_are_kept_and_incomplete_ones_ignored(tmp_path):
    for step in (2, 4, 10):
        checkpoints.publish(write_part(tmp_path, step), tmp_path, step, save_total_limit=2)
    write_part(tmp_path, 12)
    assert [step for step, _ in checkpoints.list_checkpoints(tmp_path)] == [4, 10]
    checkpoints.remove_incomplete(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-4"]


def test_a_checkpoint_of_an_earlier_attempt_is_replaced(tmp_path):
    checkpoints.publish(write_part(tmp_path, 2), tmp_path, 2, save_total_limit=2)
    (tmp_path / "checkpoint-2" / "weights").write_text("old")
    checkpoints.publish(write_part(tmp_path, 2), tmp_path, 2, save_total_limit=2)
    assert (tmp_path / "checkpoint-2" / "weights").read_text() == "2"


def test_free_disk_space_is_checked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 40, free=5_000_000))
    checkpoints.require_disk_space(tmp_path / "new" / "folder", 4_000_000, "a checkpoint")
    with pytest.raises(
        TrainError, match=r"not enough disk space for a checkpoint in .*: 6\.0 MB required, 5\.0 MB free"
    ):
        checkpoints.require_disk_space(tmp_path, 6_000_000, "a checkpoint")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_leaves_no_incomplete_files(tmp_path, error):
    part = write_part(tmp_path, 3)
    with (
        pytest.raises(TrainError, match="disk full while writing the checkpoint"),
        checkpoints.removed_if_disk_full(part, "the checkpoint"),
    ):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_changed(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), checkpoints.removed_if_disk_full(tmp_path / "part", "x"):
        raise RuntimeError("a bug")
