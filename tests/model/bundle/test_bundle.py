"""Loading, validating, identifying and writing bundles."""

from __future__ import annotations

import copy
import errno
import json
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from vidqa.common.atomic_io import sha256_of_file, temporary_folder
from vidqa.errors import BundleError, LockedError, UsageError
from vidqa.model.bundle.bundle import BUNDLE_FILE, load_bundle, save_bundle

Json = dict[str, Any]


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "model"))


def edit(folder: Path, change: Callable[[Json], Any]) -> None:
    data = json.loads((folder / BUNDLE_FILE).read_text())
    change(data)
    (folder / BUNDLE_FILE).write_text(json.dumps(data))


def list_llm_files(folder: Path) -> None:
    """Update the digests of the LLM's files."""
    files = {p.name: sha256_of_file(p) for p in (folder / "llm").iterdir()}
    edit(folder, lambda data: data["llm"].update(files=files))


def load_error(folder: Path) -> str:
    with pytest.raises(BundleError) as e:
        load_bundle(folder)
    assert str(folder / BUNDLE_FILE) in e.value.what, "the message names the file"
    return e.value.what


def keys(table: Json, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (*path, key)
        if isinstance(value, dict) and key not in ("files", "external"):
            yield from keys(value, (*path, key))


def at(data: Json, path: tuple[str, ...]) -> Json:
    for key in path:
        data = data[key]
    return data


def test_a_valid_bundle(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.spec.name == "tiny"
    assert bundle.verify() == []
    assert bundle.image_graph.is_file()
    assert bundle.video_graph.is_file()
    assert bundle.text_graph is None
    assert bundle.llm_folder == folder / "llm"
    assert len(bundle.model_id) == len(bundle.encoder_id) == 16


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json does not exist"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="no model at"):
        load_bundle("no-such-name")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format": 1}'])
def test_not_a_description(text: str, folder: Path) -> None:
    (folder / BUNDLE_FILE).write_text(text)
    load_error(folder)


def test_every_missing_key_is_named(folder: Path) -> None:
    data = json.loads((folder / BUNDLE_FILE).read_text())
    paths = list(keys(data))
    assert len(paths) > 50
    for path in paths:
        broken = copy.deepcopy(data)
        del at(broken, path[:-1])[path[-1]]
        (folder / BUNDLE_FILE).write_text(json.dumps(broken))
        assert f"{'.'.join(path)}: missing" in load_error(folder)


def test_every_unknown_key_is_named(folder: Path) -> None:
    data = json.loads((folder / BUNDLE_FILE).read_text())
    tables = [(), *(p for p in keys(data) if isinstance(at(data, p), dict) and p[-1] not in ("files", "external"))]
    assert len(tables) > 8
    for path in tables:
        broken = copy.deepcopy(data)
        at(broken, path)["color"] = 1
        (folder / BUNDLE_FILE).write_text(json.dumps(broken))
        assert f"{'.'.join((*path, 'color'))}: unknown key" in load_error(folder)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("format", 2, "format 2"),
        ("format", True, "format: must be a whole number"),
        ("architecture", "other", "architecture"),
        ("connector.in_size", 0, "in_size must be at least 1"),
        ("connector.in_size", 17, "hidden_size is 16"),
        ("connector.type", "mlp3x_gelu", "connector.type"),
        ("connector.sha256", "abc", "64 hex digits"),
        ("connector.file", "connector.bin", "safetensors"),
        ("encoders.image", None, "encoders.image"),
        ("encoders.image.preprocess.mean", [0.5, 0.5], "needs 3 values"),
        ("encoders.image.preprocess.mode", "best", "encoders.image.preprocess.mode"),
        ("encoders.video.n_frames", 3, "sampling.n_frames is 8, not a multiple of the 3 frames of the graph"),
        ("encoders.video.sampling.rate", "5", "a number"),
        ("encoders.video.keep_cls", 1, "true or false"),
        ("llm.files", {}, "config.json is missing"),
        ("llm.context", 0, "context"),
        ("prompt.format", "vicuna", "unknown chat format"),
        ("generation.temperature", -1, "temperature"),
        ("generation.temperature", True, "a number"),
        ("generation.max_new_tokens", 1.5, "a whole number"),
        ("generation.top_p", 0, "top_p must be a number above 0"),
        ("generation.stop", "###", "a list"),
        ("notice", 3, "notice: must be a string"),
    ],
)
def test_invalid_values_are_named(path: str, value: object, problem: str, folder: Path) -> None:
    *tables, key = path.split(".")
    edit(folder, lambda data: at(data, tuple(tables)).update({key: value}))
    assert problem in load_error(folder)


def test_all_problems_are_reported_together(folder: Path) -> None:
    def damage(data: Json) -> None:
        data["color"] = 1
        data["connector"]["in_size"] = "x"
        del data["llm"]["context"]

    edit(folder, damage)
    what = load_error(folder)
    assert all(key in what for key in ("color", "connector.in_size", "llm.context"))


class TestPaths:
    @pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../../x", "C:x", "..\\x", "", "."])
    def test_path_outside_the_folder(self, name: str, folder: Path) -> None:
        (folder.parent / "outside.safetensors").write_bytes((folder / "connector.safetensors").read_bytes())
        edit(folder, lambda data: data["encoders"]["image"].update(file=name))
        load_error(folder)
        edit(folder, lambda data: data["encoders"]["image"].update(file="encoders/image.onnx"))
        load_bundle(folder)
        edit(folder, lambda data: data["llm"].update(folder=name or ".."))
        load_error(folder)

    def test_symlink_to_a_file_outside(self, folder: Path) -> None:
        real = folder / "connector.safetensors"
        outside = folder.parent / "outside.safetensors"
        real.rename(outside)
        real.symlink_to(outside)
        assert "a symlink to a file outside" in load_error(folder)

    def test_symlink_to_a_folder_outside(self, folder: Path) -> None:
        outside = folder.parent / "llm"
        (folder / "llm").rename(outside)
        (folder / "llm").symlink_to(outside)
        assert "a symlink to a file outside" in load_error(folder)

    def test_symlink_inside_is_accepted(self, folder: Path) -> None:
        (folder / "connector.safetensors").rename(folder / "real.safetensors")
        (folder / "connector.safetensors").symlink_to("real.safetensors")
        assert load_bundle(folder).verify() == []


class TestParts:
    def test_missing(self, folder: Path) -> None:
        (folder / "encoders" / "video.onnx").unlink()
        assert "encoders/video.onnx: missing" in load_error(folder)

    @pytest.mark.parametrize("name", ["encoders/image.onnx", "connector.safetensors", "llm/model.safetensors"])
    def test_altered(self, name: str, folder: Path) -> None:
        raw = bytearray((folder / name).read_bytes())
        raw[-2] ^= 1
        (folder / name).write_bytes(raw)
        problems = load_bundle(folder).verify()
        assert [p.split(":")[0] for p in problems] == [name]

    def test_deleted_after_loading(self, folder: Path) -> None:
        bundle = load_bundle(folder)
        (folder / "connector.safetensors").unlink()
        assert bundle.verify() == ["connector.safetensors: missing"]

    def test_not_listed(self, folder: Path) -> None:
        (folder / "llm" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
        assert "llm/pytorch_model.bin: not listed" in load_error(folder)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_own.py", "weights.PT"])
    def test_file_types_that_can_run_code(self, name: str, folder: Path) -> None:
        (folder / "llm" / name).write_bytes(pickle.dumps({}))
        list_llm_files(folder)
        assert f"llm/{name}: this type of file" in load_error(folder)

    def test_shards_outside_the_folder(self, folder: Path) -> None:
        index = folder / "llm" / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../../other.safetensors"}}))
        list_llm_files(folder)
        assert "names '../../other.safetensors'" in load_error(folder)

    @pytest.mark.parametrize("damage", ["longer", "header", "empty", "short", "text", "hole"])
    def test_invalid_safetensors_header(self, damage: str, folder: Path) -> None:
        path = folder / "connector.safetensors"
        raw = path.read_bytes()
        n = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + n])
        data = raw[8 + n :]
        first = next(k for k in header if k != "__metadata__")
        if damage == "longer":
            header[first]["shape"][0] *= 1000
        if damage == "hole":
            header = {first: header[first] | {"data_offsets": [o + 8 for o in header[first]["data_offsets"]]}}
        text = json.dumps(header).encode()
        written = struct.pack("<Q", len(text)) + text + data
        if damage == "header":
            written = struct.pack("<Q", 1 << 60) + text + data
        if damage == "empty":
            written = b""
        if damage == "short":
            written = written[:-5]
        if damage == "text":
            written = b"not safetensors at all"
        path.write_bytes(written)
        assert "connector.safetensors: damaged safetensors file" in load_error(folder)


class TestIdentity:
    def ids(self, folder: Path) -> tuple[str, str]:
        bundle = load_bundle(folder)
        return bundle.encoder_id, bundle.model_id

    def test_path_and_names_do_not_matter(self, folder: Path, tmp_path: Path) -> None:
        expected = self.ids(folder)
        other = tmp_path / "quite another name"
        folder.rename(other)
        edit(other, lambda data: data.update(name="other", notice=None))
        (other / "llm").rename(other / "language")
        edit(other, lambda data: data["llm"].update(folder="language"))
        (other / "encoders" / "image.onnx").rename(other / "i.onnx")
        edit(other, lambda data: data["encoders"]["image"].update(file="i.onnx"))
        assert self.ids(other) == expected

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("encoders.image.layer", -1),
            ("encoders.image.keep_cls", True),
            ("encoders.image.sha256", "0" * 64),
            ("encoders.image.preprocess.pad", True),
            ("encoders.image.preprocess.mode", "hf"),
            ("encoders.video.sampling.rule", "arange"),
        ],
    )
    def test_feature_settings_change_both_ids(self, path: str, value: object, folder: Path) -> None:
        before = self.ids(folder)
        *tables, key = path.split(".")
        edit(folder, lambda data: at(data, tuple(tables)).update({key: value}))
        after = self.ids(folder)
        assert after[0] != before[0]
        assert after[1] != before[1]

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("connector.sha256", "0" * 64),
            ("llm.context", 1000),
            ("prompt.system", "Be short."),
            ("prompt.format", "llava_v1"),
            ("generation.max_new_tokens", 3),
        ],
    )
    def test_answer_settings_keep_the_encoder_id(self, path: str, value: object, folder: Path) -> None:
        before = self.ids(folder)
        *tables, key = path.split(".")
        edit(folder, lambda data: at(data, tuple(tables)).update({key: value}))
        after = self.ids(folder)
        assert after[0] == before[0]
        assert after[1] != before[1]


class TestSave:
    @pytest.fixture
    def fill(self, tiny_bundle: Path) -> Callable[[Path], None]:
        def copy_parts(to: Path) -> None:
            shutil.copytree(tiny_bundle, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BUNDLE_FILE))

        return copy_parts

    def test_same_parts_have_the_same_ids(
        self, tiny_bundle: Path, tmp_path: Path, fill: Callable[[Path], None]
    ) -> None:
        old = load_bundle(tiny_bundle)
        new = save_bundle(tmp_path / "deep" / "new", old.spec, fill)
        assert (new.model_id, new.encoder_id) == (old.model_id, old.encoder_id)
        assert new.verify() == []
        assert [p.name for p in new.folder.parent.iterdir()] == ["new"]

    @pytest.mark.parametrize(
        ("error", "hint"),
        [
            (SafetensorError("I/O error: No space left on device (os error 28)"), "free space in"),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), "free space in"),
            (
                RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3: file too large"),
                "ulimit -f",
            ),
        ],
    )
    def test_a_full_disk_is_an_error_that_names_the_folder(
        self, tiny_bundle: Path, tmp_path: Path, error: Exception, hint: str
    ) -> None:
        def fill(to: Path) -> None:
            (to / "half").write_bytes(b"x")
            raise error

        with pytest.raises(BundleError, match="new: the model cannot be written") as caught:
            save_bundle(tmp_path / "new", load_bundle(tiny_bundle).spec, fill)
        assert hint in (caught.value.hint or "") and str(tmp_path) in (caught.value.hint or "")
        assert not list(tmp_path.iterdir())

    def test_external_data_is_hashed(self, tiny_bundle: Path, tmp_path: Path, fill: Callable[[Path], None]) -> None:
        def with_data(to: Path) -> None:
            fill(to)
            (to / "encoders" / "video.onnx.data").write_bytes(b"large tensors")

        old = load_bundle(tiny_bundle)
        new = save_bundle(tmp_path / "new", old.spec, with_data)
        assert list(new.spec.encoders.video.external) == ["encoders/video.onnx.data"]
        assert new.encoder_id != old.encoder_id
        (new.folder / "encoders" / "video.onnx.data").write_bytes(b"other tensors")
        assert new.verify()[0].startswith("encoders/video.onnx.data")

    def test_existing_bundles_are_kept_or_replaced(
        self, tiny_bundle: Path, tmp_path: Path, fill: Callable[[Path], None]
    ) -> None:
        spec = load_bundle(tiny_bundle).spec
        target = tmp_path / "new"
        save_bundle(target, spec, fill)
        with pytest.raises(UsageError, match="exists already"):
            save_bundle(target, replace(spec, name="second"), fill)
        assert load_bundle(target).spec.name == "tiny"
        save_bundle(target, replace(spec, name="second"), fill, replace_old=True)
        assert load_bundle(target).spec.name == "second"
        assert [p.name for p in tmp_path.iterdir()] == ["new"]

    def test_only_a_bundle_is_replaced(self, tiny_bundle: Path, tmp_path: Path, fill: Callable[[Path], None]) -> None:
        """Anything else there, such as a checkpoint or the user's work, must not be removed."""
        spec = load_bundle(tiny_bundle).spec
        (work := tmp_path / "work").mkdir()
        (work / "thesis.txt").write_text("x")
        (file := tmp_path / "file").write_text("x")
        for target in (work, file):
            with pytest.raises(UsageError, match="is not a model, so it is not replaced"):
                save_bundle(target, spec, fill, replace_old=True)
        save_bundle(model := tmp_path / "model", spec, fill)
        (model / "report").mkdir()
        with pytest.raises(UsageError, match=r"contains other files \(report\)"):
            save_bundle(model, spec, fill, replace_old=True)
        assert (work / "thesis.txt").exists() and file.exists() and (model / "report").is_dir()
        (model / "report").rmdir()
        (model / BUNDLE_FILE).write_text("damaged")
        (tmp_path / "empty").mkdir()
        for target in (model, tmp_path / "empty"):
            assert not save_bundle(target, spec, fill, replace_old=True).verify()

    @pytest.mark.parametrize("damage", ["raise", "missing", "pickle", "damaged"])
    def test_writing_is_atomic(
        self, damage: str, tiny_bundle: Path, tmp_path: Path, fill: Callable[[Path], None]
    ) -> None:
        def broken(to: Path) -> None:
            fill(to)
            if damage == "raise":
                raise KeyboardInterrupt
            if damage == "missing":
                (to / "encoders" / "image.onnx").unlink()
            if damage == "pickle":
                (to / "llm" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
            if damage == "damaged":
                (to / "connector.safetensors").write_bytes(b"x" * 100)

        spec = load_bundle(tiny_bundle).spec
        old = save_bundle(tmp_path / "old", spec, fill)
        for target in (tmp_path / "new", tmp_path / "old"):
            with pytest.raises((BundleError, KeyboardInterrupt)):
                save_bundle(target, spec, broken, replace_old=True)
        assert [p.name for p in tmp_path.iterdir()] == ["old"]
        assert old.verify() == []


class TestLeftovers:
    """Leftovers of a process that was killed while writing a bundle."""

    @pytest.fixture
    def killed(self, tmp_path: Path) -> Path:
        """The hidden folder of a process that was killed while writing `model`."""
        code = (
            "import sys, os, signal; from pathlib import Path; from vidqa.common.atomic_io import temporary_folder\n"
            "with temporary_folder(Path(sys.argv[1])) as part:\n"
            "    (part / 'llm').mkdir(); (part / 'llm' / 'model.safetensors').write_bytes(bytes(1000))\n"
            "    os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=False)
        (leftover,) = tmp_path.iterdir()
        assert leftover.name.startswith(".model.") and leftover.suffix == ".part"
        return leftover

    @pytest.fixture
    def save(self, tiny_bundle: Path, tmp_path: Path) -> Callable[[], object]:
        def fill(to: Path) -> None:
            shutil.copytree(tiny_bundle, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BUNDLE_FILE))

        return lambda: save_bundle(tmp_path / "model", load_bundle(tiny_bundle).spec, fill)

    def test_the_next_write_removes_and_reports_them(
        self, killed: Path, save: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        others = [tmp_path / ".models.abcdefgh.part", tmp_path / ".model.more.abcdefgh.part", tmp_path / ".model.part"]
        for other in others:
            other.mkdir()
        (aside := tmp_path / ".model.abcdefgh.old").mkdir()  # of a process killed between two renames: the old bundle
        save()
        assert {p.name for p in tmp_path.iterdir()} == {"model", *(p.name for p in others)}
        messages = [record.getMessage() for record in caplog.records]
        assert [line.split(" (")[0] for line in messages] == [f"removed {killed}", f"removed {aside}"]
        assert all("left by a killed process" in line for line in messages)

    def test_a_running_process_keeps_its_folder(self, save: Callable, tmp_path: Path) -> None:
        with temporary_folder(tmp_path / "model") as part:
            with pytest.raises(LockedError, match="is being written by another process"):
                save()
            assert part.is_dir()
        save()
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    def test_without_locks_nothing_is_removed(
        self, killed: Path, save: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fcntl = pytest.importorskip("fcntl")

        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks here")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        save()
        assert killed.is_dir()


def test_loading_a_bundle_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from vidqa.model.bundle.bundle import load_bundle; load_bundle(sys.argv[1]).model_id;"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_model_made_from_the_demo_does_not_inherit_its_notice(tmp_path: Path) -> None:
    demo = load_bundle("demo")
    assert demo.notice and "demo" in demo.notice
    copy, other = tmp_path / "copy", tmp_path / "other"
    for folder in (copy, other):
        shutil.copytree(demo.folder, folder)
    edit(other, lambda data: data["prompt"].update(system="Answer briefly."))
    assert load_bundle(copy).notice == demo.notice and load_bundle(other).notice is None
    edit(other, lambda data: data.update(notice="Only for tests."))
    assert load_bundle(other).notice == "Only for tests."
