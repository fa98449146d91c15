"""Unseen pairs: which tokens the loss ignores at which positions, and errors in pairs files."""

import json
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from vidqa.errors import UsageError
from vidqa.model.bundle.registry import find_bundle
from vidqa.model.llm import load_tokenizer
from vidqa.prompts.build import IGNORE_INDEX, build_labels
from vidqa.prompts.chat_formats import FORMATS
from vidqa.records import MediaShape
from vidqa.training.api import FeaturesByPath, SamplesInMemory, TrainingSettings, train_stage
from vidqa.training.batching.dataset import TrainingBatch, TrainingDataset, model_tokenizer
from vidqa.training.batching.packing import collate
from vidqa.training.batching.sampler import BatchPlan
from vidqa.training.data.corpus import Corpus, Source
from vidqa.training.data.data_check import check_corpus
from vidqa.training.data.tokenize import RecordTokenizer
from vidqa.training.data.unseen_pairs import IgnoredTokens, PairCounts, UnseenPairs
from vidqa.training.outputs.run_dir import open_run, run_identity
from vidqa.training.recipe.load import read_recipe
from vidqa.training.stage.loss import PackedLoss

#: Words of the test tokenizer; no media item shows `a` with `d`.
PAIRS = UnseenPairs(groups={"first": ("a", "b"), "second": ("c", "d")}, pairs=(("a", "d"),))
NONE = UnseenPairs(groups=PAIRS.groups, pairs=())
COLOURS = UnseenPairs(
    groups={"colour": ("red", "blue", "green"), "shape": ("star", "ring", "cross")},
    pairs=(("red", "star"), ("blue", "ring"), ("green", "ring")),
)


def batch_of(model, features, samples, pairs):
    """A batch with one sequence of all samples, and the sets of ignored tokens."""
    ignored = IgnoredTokens(pairs, model.tokenizer) if pairs else None
    corpus = SamplesInMemory([tuple(samples)], seed=0)
    plan = BatchPlan((tuple(range(len(samples))),), 1, 1.0)
    data = TrainingDataset(corpus, plan, FeaturesByPath(features), model_tokenizer(model), ignored)
    item = data[0]
    return TrainingBatch(collate([item.packed]), item.features, len(samples), ()), data.ignored_tokens


def loss(model, batch, rows):
    return PackedLoss(model, rows)(batch)["loss"]


def test_the_loss_is_the_one_computed_by_hand(tiny_model, features_of, lab):
    sample = lab.make_sample(0, "3.mp4", "a c b")
    batch, rows = batch_of(tiny_model, features_of, [sample], PAIRS)
    d = tiny_model.tokenizer.get_vocab()["d"]
    shape = tiny_model.media_shape(features_of("3.mp4"))
    made = build_labels(tiny_model.tokenizer, tiny_model.chat, sample.turns, [shape])
    ids, slots = torch.from_numpy(made.prompt.ids)[None], torch.from_numpy(made.prompt.slots)[None]
    visual = torch.cat(tiny_model.visual_tokens([features_of("3.mp4")]))
    logits = tiny_model(ids, slots, visual).logits[0].detach()
    total = 0.0
    targets = [i for i in range(1, len(made.labels)) if made.labels[i] != IGNORE_INDEX]
    for n, i in enumerate(targets):
        weights = logits[i - 1].double().exp()
        if n == 1:  # `c` after `a`: `d` could not have been right
            weights[d] = 0.0
        total -= float(torch.log(weights[made.labels[i]] / weights.sum()))
    assert len(targets) == 4  # with the end-of-sequence token
    assert loss(tiny_model, batch, rows).item() == pytest.approx(total, abs=1e-4)
    assert loss(tiny_model, batch, ()).item() > total + 1e-3


def test_ignored_tokens_have_no_gradient_and_all_others_have_one(tiny_model, features_of, lab):
    batch, rows = batch_of(tiny_model, features_of, [lab.make_sample(0, "3.mp4", "a c")], PAIRS)
    seen = []
    head = tiny_model.llm.get_output_embeddings()
    head.register_forward_hook(lambda _, __, out: (out.retain_grad(), seen.append(out))[0])
    loss(tiny_model.requires_grad_(True), batch, rows).backward()
    gradient, d = seen[0].grad, tiny_model.tokenizer.get_vocab()["d"]
    assert gradient[1, d] == 0.0
    assert gradient[0, d] > 0.0  # before `a` it is a wrong answer like any other
    assert (np.delete(gradient[1].numpy(), d) != 0).all()


@pytest.mark.parametrize("pairs", [None, NONE])
def test_without_pairs_the_loss_is_bit_identical(tiny_model, features_of, lab, pairs):
    samples = [lab.make_sample(0, "3.mp4", "a c"), lab.make_sample(1, "3.mp4", "b d a")]
    plain = loss(tiny_model, batch_of(tiny_model, features_of, samples, None)[0], ())
    assert torch.equal(loss(tiny_model, *batch_of(tiny_model, features_of, samples, pairs)), plain)


def test_packed_conversations_have_the_same_losses_as_separate_ones(tiny_model, features_of, lab):
    asked = [("What is it ?", "a c"), ("Describe b d d", "yes b"), ("What is a", "c ."), ("What is it ?", "d")]
    samples = [lab.make_sample(n, "3.mp4", answer, question) for n, (question, answer) in enumerate(asked)]
    separate = sum(loss(tiny_model, *batch_of(tiny_model, features_of, [s], PAIRS)).item() for s in samples)
    together, rows = batch_of(tiny_model, features_of, samples, PAIRS)
    assert (
        together.packed.ignored_rows > 0
    ).sum() == 3  # `c` after `a`, twice; `b` after `d`; none for the unpaired `d`
    assert loss(tiny_model, together, rows).item() == pytest.approx(separate, abs=1e-4)


def test_text_only_and_held_out_losses_ignore_nothing(tiny_model, features_of, lab):
    batch, rows = batch_of(tiny_model, features_of, [lab.make_sample(0, None, "a c")], PAIRS)
    assert not batch.packed.ignored_rows.any()
    assert torch.equal(loss(tiny_model, batch, rows), loss(tiny_model, batch, ()))
    held_out, _ = batch_of(tiny_model, features_of, [lab.make_sample(0, "3.mp4", "a c")], None)  # as in Evaluator
    assert torch.equal(loss(tiny_model, held_out, rows), loss(tiny_model, held_out, ()))


def test_training_does_not_lower_the_logits_of_ignored_tokens(lab, features_of, tmp_path):
    """Training on `c` after `a` lowers the logit of `d` there, unless `a` and `d` are an unseen pair."""
    samples = [(lab.make_sample(n, f"{n}.mp4", "a c"),) for n in range(8)]

    def relative_logit_of_d(pairs):
        model = lab.make_model()
        settings = TrainingSettings("instruct", 30, 4, 3e-3, unseen_pairs=pairs)
        train_stage(model, samples, features_of, settings, folder=tmp_path)
        batch, _ = batch_of(model, features_of, [samples[0][0]], None)
        logits = []
        model.llm.get_output_embeddings().register_forward_hook(lambda _, __, out: logits.append(out))
        loss(model, batch, ())
        vocabulary = model.tokenizer.get_vocab()
        at = logits[0][1]
        return float(at[vocabulary["d"]] - at[vocabulary["no"]])

    assert relative_logit_of_d(PAIRS) > relative_logit_of_d(None)


# --- which words are pairs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_bundle("demo") / "llm")


def ignored(tokenizer, *turns, pairs=COLOURS):
    """(target, ignored tokens) of each position that ignores any."""
    found = IgnoredTokens(pairs, tokenizer)
    made = build_labels(tokenizer, FORMATS["vicuna_v1"], turns, [("video", 1, 2)])
    rows = found.row_indices(made)
    return [
        (tokenizer.decode([made.prompt.ids[i]]).strip(), tokenizer.decode(found.rows[rows[i]]).strip())
        for i in np.flatnonzero(rows)
    ]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("What?", "A red ring and a blue star.")], [("ring", "star"), ("star", "ring")]),
        ([("What colour is the star?", "It is blue.")], [("blue", "red")]),
        ([("Name the colour of the star.", "The star is blue.")], [("blue", "red")]),
        ([("What shape is the red thing?", "A cross.")], [("cross", "star")]),
        ([("Is the ring small?", "No."), ("What colour is it?", "blue.")], []),  # the target is kept
        ([("Is the star small?", "No."), ("What colour is it?", "blue.")], [("blue", "red")]),
        ([("A red ring?", "Yes."), ("And?", "A cross.")], []),  # both words of the question are paired
        ([("What?", "A red star.")], []),  # an unseen pair is mentioned: the target is kept
        ([("What?", "Redder rings and starts of blueish crossings.")], []),  # no listed word
        ([("What?", "It turns red.")], []),
    ],
)
def test_words_are_paired_in_the_order_of_their_mention(tokenizer, turns, expected):
    assert ignored(tokenizer, *turns) == expected


def test_two_words_may_be_ignored_at_once(tokenizer):
    ((target, tokens),) = ignored(tokenizer, ("What colour is the ring?", "It is red."))
    assert target == "red"
    assert set(tokens.split()) == {"blue", "green"}


class Letters:
    """Every letter is a token, and so is a space."""

    bos_token_id = None
    added_tokens_decoder: ClassVar = {}

    def encode(self, text, *, add_special_tokens):
        return [ord(letter) for letter in text]

    def convert_ids_to_tokens(self, token):
        return chr(token).replace(" ", "▁")


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (("ring", "star"), [("r", "s")]),
        (("stir", "star"), [("i", "a")]),  # the competing word is ignored where it starts to differ
        (("ring", "star", "stir"), []),  # `s` may also start `stir`
        (("starfish", "star"), []),  # continues where the competing word ends
    ],
)
def test_a_competing_word_is_ignored_at_the_token_where_it_differs(shapes, expected):
    pairs = UnseenPairs(groups={"colour": ("red",), "shape": shapes}, pairs=(("red", "star"),))
    found = IgnoredTokens(pairs, Letters())
    made = build_labels(Letters(), FORMATS["vicuna_v1"], [("What is red?", f"A {shapes[0]}.")])
    rows = found.row_indices(made)
    tokens = [(chr(made.prompt.ids[i]), "".join(map(chr, found.rows[rows[i]]))) for i in np.flatnonzero(rows)]
    assert tokens == expected


# --- files ------------------------------------------------------------------------------------------------------------

GOOD = 'pairs = [["red", "star"]]\n[groups]\ncolour = ["red", "blue"]\nshape = ["star", "ring"]\n'


def recipe(folder: Path, pairs: str, kind: str = "instruct") -> Path:
    (folder / "data.json").write_text("[]")
    (folder / "pairs.toml").write_text(pairs)
    path = folder / "recipe.toml"
    path.write_text(
        f'[model]\nbase = "demo"\n[[data]]\nfile = "data.json"\n'
        f'[[stage]]\nkind = "{kind}"\nunseen_pairs = "pairs.toml"\n'
    )
    return path


def test_a_pairs_file_is_read_relative_to_its_recipe(tmp_path):
    stage = read_recipe(recipe(tmp_path, GOOD)).stage[0]
    assert stage.unseen_pairs.pairs == (("red", "star"),)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD.replace('"star"]]', '"sta"]]'), 1, "pair red sta: no word 'sta' in its group; did you mean `star`?"),
        (GOOD.replace('["red", "star"]]', '["star", "red"]]'), 1, "pair star red: no word 'star' in its group"),
        (GOOD + 'size = ["big"]\n', 1, "two groups of words are required, not 3"),
        (GOOD.replace('"ring"', '"Ring"'), 1, "entries must be single words in lower case, not 'Ring'"),
        (GOOD.replace('"ring"', '"red"'), 1, "listed twice: red"),
        (GOOD.replace("pairs", "pears"), 1, "unknown key `pears`; did you mean `pairs`?"),
        (GOOD.replace('"star"]]', "3]]"), 1, "`pairs`: input should be a valid string"),
        (GOOD.replace("[groups]", "[groups"), 2, "not TOML"),
    ],
)
def test_errors_in_a_pairs_file_have_its_line(tmp_path, text, line, words):
    with pytest.raises(UsageError) as error:
        read_recipe(recipe(tmp_path, text))
    assert any(f"pairs.toml:{line}: " in one and words in one for one in str(error.value).splitlines()), error.value


def test_a_language_stage_has_no_unseen_pairs(tmp_path):
    with pytest.raises(UsageError, match=r"recipe.toml:7: `stage.unseen_pairs`: a `language` stage"):
        read_recipe(recipe(tmp_path, GOOD, "language"))
    with pytest.raises(UsageError, match="no such file"):
        (tmp_path / "pairs.toml").unlink() or read_recipe(tmp_path / "recipe.toml")


def test_a_run_is_resumed_only_with_the_same_pairs(tmp_path):
    def identity(text):
        return run_identity(read_recipe(recipe(tmp_path, text)), "base", ["data"])

    work = tmp_path / "out" / "work"
    assert not open_run(work, identity(GOOD), resume=True)
    assert open_run(work, identity("# a comment\n" + GOOD), resume=True)
    with pytest.raises(UsageError, match=r"stage.1.unseen_pairs"):
        open_run(work, identity(GOOD.replace('"star"]]', '"ring"]]')), resume=True)


def test_a_data_check_counts_ignored_tokens_and_mentions_of_unseen_pairs(tokenizer, tmp_path, make_clip):
    make_clip(tmp_path / "a.mp4", n_frames=4)
    asked = [
        ("What?", "A red ring."),
        ("What?", "A red star and a red cross."),
        ("What colour is the star?", "It is blue."),
    ]
    records = [
        {"video": "a.mp4", "conversations": [{"from": "human", "value": f"<video>\n{q}"}, {"from": "gpt", "value": a}]}
        for q, a in asked
    ]
    text_only = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A red star."}]}
    (tmp_path / "data.json").write_text(json.dumps([*records, text_only]))
    corpus = Corpus([Source(str(tmp_path / "data.json"), str(tmp_path))], cache_dir=tmp_path / "cache")

    def shape_of(ref):
        return MediaShape(ref.kind, 1, 2)

    found = IgnoredTokens(COLOURS, tokenizer)
    checked = check_corpus(corpus, RecordTokenizer(tokenizer, FORMATS["vicuna_v1"], shape_of, ignored=found))
    assert checked.pairs == PairCounts(3, Counter({"red star": 1}))
    lines = checked.lines()
    assert "unseen pairs: 3 answer tokens whose loss ignores other tokens" in lines
    assert (
        "  red star: mentioned by 1 answers about media, so it may not be unseen; their loss ignores nothing" in lines
    )
    plain = check_corpus(corpus, RecordTokenizer(tokenizer, FORMATS["vicuna_v1"], shape_of))
    assert not any("unseen" in line for line in plain.lines())
