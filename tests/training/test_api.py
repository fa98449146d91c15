import json

import pytest
import torch

from vidqa.errors import UsageError
from vidqa.training.api import TrainingSettings, train_stage
from vidqa.training.data.record_formats import read_conversations
from vidqa.training.data.sample import by_media

pytestmark = pytest.mark.slow


def record(i, media=None, answer="yes b"):
    kind = {"mp4": "video", "png": "image"}[media.split(".")[1]] if media else None
    tag = f"<{kind}>\n" if kind else ""
    turns = [{"from": "human", "value": f"{tag}What is it ?"}, {"from": "gpt", "value": answer}]
    return {"id": str(i), **({kind: media} if kind else {}), "conversations": turns}


@pytest.fixture
def groups(tmp_path):
    records = [record(0, "1.mp4"), record(1, "1.mp4", "a b c"), record(2, "2.png"), record(3), record(4, "3.mp4", "no")]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    return by_media(read_conversations(path))


def test_samples_are_grouped_by_media(groups):
    assert [[s.id for s in g] for g in groups] == [["0", "1"], ["2"], ["3"], ["4"]]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("connector", {"connector"}), ("instruct", {"connector", "llm"}), ("language", {"llm"})],
)
def test_a_stage_changes_its_weights_and_no_others(tiny_model, groups, features_of, tmp_path, stage, changes):
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    settings = TrainingSettings(stage=stage, epochs=9, batch_size=4, learning_rate=1e-2)
    chosen = [g for g in groups if not g[0].media] if stage == "language" else groups
    train_stage(tiny_model, chosen, features_of, settings, folder=tmp_path)
    changed = {k.split(".")[0] for k, v in tiny_model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == changes


def test_training_lowers_the_loss(tiny_model, groups, features_of, tmp_path):
    settings = TrainingSettings(stage="instruct", epochs=40, batch_size=2, learning_rate=5e-3)
    first = train_stage(tiny_model, groups, features_of, TrainingSettings("instruct", 0.25, 2, 0.0), folder=tmp_path)[
        "train_loss"
    ]
    last = train_stage(tiny_model, groups, features_of, settings, folder=tmp_path)["train_loss"]
    assert last < 0.7 * first


def test_same_seed_same_weights(groups, features_of, tmp_path, request):
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        model = request.getfixturevalue("tiny_model") if not results else results[0][0]
        if results:
            model.load_state_dict(results[0][1])
        start = {k: v.clone() for k, v in model.state_dict().items()}
        train_stage(model, groups, features_of, TrainingSettings("instruct", 2, 2, 1e-3, seed=5), folder=tmp_path)
        results.append((model, start, {k: v.clone() for k, v in model.state_dict().items()}))
    assert all(torch.equal(results[0][2][k], results[1][2][k]) for k in results[0][2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": []}, "no question"),
        ({"video": ["a.mp4", "b.mp4"]}, "1 <video> tags in the questions for 0 images and 2 videos"),
        ({"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "x"}]}, "0 <video> tags"),
        ({"conversations": [{"from": "human", "value": "<video>\n?"}, {"from": "gpt", "value": " "}]}, "empty"),
        ({"conversations": [{"from": "gpt", "value": "<video>\n?"}, {"from": "gpt", "value": "x"}]}, "alternate"),
    ],
)
def test_an_error_names_malformed_records(tmp_path, change, message):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([record(0, "1.mp4"), record(1, "1.mp4") | change]))
    with pytest.raises(UsageError, match=rf"data.json: record 1: .*{message}"):
        read_conversations(path)


def test_an_error_names_a_file_that_is_not_json(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("{")
    with pytest.raises(UsageError, match=r"data\.json"):
        read_conversations(path)
