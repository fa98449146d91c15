import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vidqa.prompts.build import IGNORE_INDEX, build_labels
from vidqa.prompts.chat_formats import FORMATS
from vidqa.training.batching.dataset import TrainingBatch
from vidqa.training.batching.packing import attention_mask, collate, pack
from vidqa.training.stage.loss import PackedLoss

TURNS = [
    (("<video>\nWhat is it ?", "a"),),
    (("<video>\nDescribe the clip", "a b c d ."), ("What is it ?", "no")),
    (("<video>\nWhat is the clip ?", "yes b"),),
]


def tokenize(model, turns, *features, chat=None):
    shapes = [(f.kind, *f.tokens.shape[:2]) for f in features]
    return build_labels(model.tokenizer, chat or model.chat, turns, shapes)


def loss_of(model, one, *features):
    """Summed loss of one conversation, computed directly with the model, and its number of targets."""
    ids, slots, labels = (torch.from_numpy(a)[None] for a in (one.prompt.ids, one.prompt.slots, one.labels))
    visual = torch.cat([torch.zeros(0, 24), *model.visual_tokens(features)])
    logits = model(ids, slots, visual).logits
    is_target = labels[0, 1:] != IGNORE_INDEX
    return F.cross_entropy(logits[0, :-1][is_target], labels[0, 1:][is_target], reduction="sum"), int(is_target.sum())


def test_the_packed_loss_is_the_sum_of_the_separate_losses(tiny_model, features_of):
    features = features_of("3.mp4")
    separate = [tokenize(tiny_model, t, features) for t in TURNS]
    total, count = map(sum, zip(*(loss_of(tiny_model, one, features) for one in separate), strict=True))
    other = features_of("4.mp4")
    batch = TrainingBatch(collate([pack(separate)]), (features,), 3, ())
    loss = PackedLoss(tiny_model)(batch)["loss"]
    assert batch.n_targets == count
    assert loss.item() == pytest.approx(total.item(), abs=1e-4)
    longer = collate([pack(separate), pack(separate[:1])])  # padding of the second row must not affect the first
    second = PackedLoss(tiny_model)(TrainingBatch(collate([pack(separate[:1])]), (other,), 1, ()))["loss"]
    both = PackedLoss(tiny_model)(TrainingBatch(longer, (features, other), 4, ()))["loss"]
    assert both.item() == pytest.approx(loss.item() + second.item(), abs=1e-4)


LATER = (("<video>\nWhat is it ?", "a"), ("<image>\nWhat is it ?", "b"))


@pytest.mark.parametrize(
    ("turns", "names", "chat"),
    [
        (TURNS[0], ["3.mp4"], "plain"),  # the last visual token predicts the first word of the caption
        ((("What is it ?", "yes b"),), [], "plain"),
        (LATER, ["3.mp4", "4.png"], None),
    ],
)
def test_a_single_conversation_may_have_media_anywhere(tiny_model, features_of, turns, names, chat):
    features = [features_of(name) for name in names]
    one = tokenize(tiny_model, turns, *features, chat=chat and FORMATS[chat])
    total, count = loss_of(tiny_model, one, *features)
    batch = TrainingBatch(collate([pack([one])]), tuple(features), 1, ())
    assert batch.n_targets == count > 0
    assert PackedLoss(tiny_model)(batch)["loss"].item() == pytest.approx(total.item(), abs=1e-4)


def test_conversations_do_not_attend_to_each_other():
    branch = torch.tensor([[0, 0, 1, 1, 2, -1]])
    mask = attention_mask(branch)[0, 0]
    assert mask[3].tolist() == [True, True, True, True, False, False]
    assert mask[4].tolist() == [True, True, False, False, True, False]
    assert mask[5].tolist() == [False, False, False, False, False, True]
    assert mask[0].tolist() == [True] + [False] * 5


def test_positions_restart_after_the_prefix(tiny_model, features_of):
    features = features_of("3.mp4")
    separate = [tokenize(tiny_model, t, features) for t in TURNS[:2]]
    packed = pack(separate)
    cut = int((packed.branch == 0).sum())
    assert cut > int(np.flatnonzero(packed.slots)[-1])
    second = int(np.argmax(packed.branch == 2))
    assert packed.positions[second] == cut == packed.positions[cut]
    assert packed.slots.sum() == 6


def test_different_prefixes_are_rejected(tiny_model, features_of):
    video, image = features_of("3.mp4"), features_of("3.png")
    a = tokenize(tiny_model, TURNS[0], video)
    b = tokenize(tiny_model, (("<image>\nWhat is it ?", "a"),), image)
    with pytest.raises(ValueError, match="share"):
        pack([a, b])
    with pytest.raises(ValueError, match="nothing"):
        pack([])


def test_gradients_arrive_in_the_same_order_with_any_media(tiny_model, features_of):
    """Processes all-reduce gradients in the order of arrival: a different order would mix up weights."""
    loss, arrived = PackedLoss(tiny_model), []
    for name, weight in loss.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    orders = []
    for turns, names in ((TURNS[0], ["3.mp4"]), ((("<image>\nWhat is it ?", "a"),), ["3.png"]), ((("What", "a"),), [])):
        features = [features_of(name) for name in names]
        arrived.clear()
        loss(TrainingBatch(collate([pack([tokenize(tiny_model, turns, *features)])]), tuple(features), 1, ()))[
            "loss"
        ].backward()
        orders.append(tuple(arrived))
    assert len(set(orders)) == 1
    assert set(orders[0]) == {name for name, _ in loss.named_parameters()}
