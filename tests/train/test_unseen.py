"""Pairs that the media never show together: what the loss leaves out, where, and what is said of a wrong file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vidqa.errors import UsageError
from vidqa.model.bundle.registry import find_bundle
from vidqa.model.llm import load_tokenizer
from vidqa.prompts.build import IGNORE_INDEX, build_labels
from vidqa.prompts.chat_formats import FORMATS
from vidqa.records import MediaShape
from vidqa.train.api import ByPath, GivenSamples, TuneSettings, tune
from vidqa.train.batching.dataset import TrainingBatch, TrainingDataset, labeller
from vidqa.train.batching.packing import collate
from vidqa.train.batching.sampler import BatchPlan
from vidqa.train.data import Corpus, Source
from vidqa.train.data.data_check import check_data
from vidqa.train.data.tokenize import RecordTokenizer
from vidqa.train.data.unseen_pairs import IgnoredTokens, UnseenPairs, read_unseen
from vidqa.train.outputs.run_dir import open_run, run_identity
from vidqa.train.recipe.load import read_recipe
from vidqa.train.stage.loss import PackedLoss

#: Words of the tests' tokenizer: of `a` and `d` there is no picture.
PAIRS = UnseenPairs(groups={"first": ("a", "b"), "second": ("c", "d")}, pairs=(("a", "d"),))
NONE = UnseenPairs(groups=PAIRS.groups, pairs=())
COLOURS = UnseenPairs(
    groups={"colour": ("red", "blue", "green"), "shape": ("star", "ring", "cross")},
    pairs=(("red", "star"), ("blue", "ring"), ("green", "ring")),
)


def batch_of(model, features, samples, unseen):
    """(a batch of one sequence that holds all samples, the rows that its labels name)."""
    left_out = IgnoredTokens(unseen, model.tokenizer) if unseen else None
    label = labeller(model, model.chat, model.context, left_out)
    corpus = GivenSamples([tuple(samples)], seed=0)
    plan = BatchPlan((tuple(range(len(samples))),), 1, 1.0)
    item = TrainingDataset(corpus, plan, ByPath(features), label)[0]
    return TrainingBatch(collate([item.packed]), item.features, len(samples), ()), left_out.rows if left_out else ()


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
    learned = [i for i in range(1, len(made.labels)) if made.labels[i] != IGNORE_INDEX]
    for n, i in enumerate(learned):
        shares = logits[i - 1].double().exp()
        if n == 1:  # `c` after `a`: `d` could not have been right
            shares[d] = 0.0
        total -= float(torch.log(shares[made.labels[i]] / shares.sum()))
    assert len(learned) == 4  # with the closing mark
    assert loss(tiny_model, batch, rows).item() == pytest.approx(total, abs=1e-4)
    assert loss(tiny_model, batch, ()).item() > total + 1e-3


def test_what_is_left_out_has_no_gradient_and_the_rest_has(tiny_model, features_of, lab):
    batch, rows = batch_of(tiny_model, features_of, [lab.make_sample(0, "3.mp4", "a c")], PAIRS)
    seen = []
    head = tiny_model.llm.get_output_embeddings()
    head.register_forward_hook(lambda _, __, out: (out.retain_grad(), seen.append(out))[0])
    loss(tiny_model.requires_grad_(True), batch, rows).backward()
    gradient, d = seen[0].grad, tiny_model.tokenizer.get_vocab()["d"]
    assert gradient[1, d] == 0.0
    assert gradient[0, d] > 0.0  # before `a` it is a wrong answer like any other
    assert (np.delete(gradient[1].numpy(), d) != 0).all()


@pytest.mark.parametrize("unseen", [None, NONE])
def test_without_a_pair_the_loss_is_the_same_to_the_bit(tiny_model, features_of, lab, unseen):
    samples = [lab.make_sample(0, "3.mp4", "a c"), lab.make_sample(1, "3.mp4", "b d a")]
    plain = loss(tiny_model, batch_of(tiny_model, features_of, samples, None)[0], ())
    assert torch.equal(loss(tiny_model, *batch_of(tiny_model, features_of, samples, unseen)), plain)


def test_packed_conversations_have_the_losses_that_they_have_alone(tiny_model, features_of, lab):
    asked = [("What is it ?", "a c"), ("Describe b d d", "yes b"), ("What is a", "c ."), ("What is it ?", "d")]
    samples = [lab.make_sample(n, "3.mp4", answer, question) for n, (question, answer) in enumerate(asked)]
    alone = sum(loss(tiny_model, *batch_of(tiny_model, features_of, [s], PAIRS)).item() for s in samples)
    together, rows = batch_of(tiny_model, features_of, samples, PAIRS)
    assert (together.packed.left_out > 0).sum() == 3  # `c` after `a`, twice; `b` after `d`; none for the lonely `d`
    assert loss(tiny_model, together, rows).item() == pytest.approx(alone, abs=1e-4)


def test_text_alone_and_held_out_losses_stay_ordinary(tiny_model, features_of, lab):
    batch, rows = batch_of(tiny_model, features_of, [lab.make_sample(0, None, "a c")], PAIRS)
    assert not batch.packed.left_out.any()
    assert torch.equal(loss(tiny_model, batch, rows), loss(tiny_model, batch, ()))
    decode_frames, _ = batch_of(
        tiny_model, features_of, [lab.make_sample(0, "3.mp4", "a c")], None
    )  # as Evaluator reads
    assert torch.equal(loss(tiny_model, decode_frames, rows), loss(tiny_model, decode_frames, ()))


def test_a_model_that_is_tuned_without_them_keeps_its_logits_of_what_is_left_out(lab, features_of, tmp_path):
    """Trained to say `c` after `a`, it learns that `d` is wrong there; with the pair named, it does not."""
    samples = [(lab.make_sample(n, f"{n}.mp4", "a c"),) for n in range(8)]

    def rank_of_d(unseen):
        model = lab.make_model()
        settings = TuneSettings("instruct", 30, 4, 3e-3, unseen_pairs=unseen)
        tune(model, samples, features_of, settings, folder=tmp_path)
        batch, _ = batch_of(model, features_of, [samples[0][0]], None)
        logits = []
        model.llm.get_output_embeddings().register_forward_hook(lambda _, __, out: logits.append(out))
        loss(model, batch, ())
        vocabulary = model.tokenizer.get_vocab()
        at = logits[0][1]
        return float(at[vocabulary["d"]] - at[vocabulary["no"]])

    assert rank_of_d(PAIRS) > rank_of_d(None)


# --- where words are pairs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_bundle("demo") / "llm")


def left_out(tokenizer, *turns, unseen=COLOURS):
    """(word that is said, tokens that are left out there) of each place."""
    found = IgnoredTokens(unseen, tokenizer)
    made = build_labels(tokenizer, FORMATS["vicuna_v1"], turns, [("video", 1, 2)])
    rows = found.where(made)
    return [
        (tokenizer.decode([made.prompt.ids[i]]).strip(), tokenizer.decode(found.rows[rows[i]]).strip())
        for i in np.flatnonzero(rows)
    ]


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [
        ([("What?", "A red ring and a blue star.")], [("ring", "star"), ("star", "ring")]),
        ([("What colour is the star?", "It is blue.")], [("blue", "red")]),
        ([("Name the colour of the star.", "The star is blue.")], [("blue", "red")]),
        ([("What shape is the red thing?", "A cross.")], [("cross", "star")]),
        ([("Is the ring small?", "No."), ("What colour is it?", "blue.")], []),  # the target stays
        ([("Is the star small?", "No."), ("What colour is it?", "blue.")], [("blue", "red")]),
        ([("A red ring?", "Yes."), ("And?", "A cross.")], []),  # both words of the question have their partner
        ([("What?", "A red star.")], []),  # said after all: the target stays
        ([("What?", "Redder rings and starts of blueish crossings.")], []),  # no listed word
        ([("What?", "It turns red.")], []),
    ],
)
def test_words_are_paired_as_they_are_said(tokenizer, turns, wanted):
    assert left_out(tokenizer, *turns) == wanted


def test_two_words_may_be_left_out_at_once(tokenizer):
    (said,) = left_out(tokenizer, ("What colour is the ring?", "It is red."))
    assert said[0] == "red"
    assert set(said[1].split()) == {"blue", "green"}


class Letters:
    """Every letter is a token; a space is one, too."""

    bos_token_id = None

    def encode(self, text, *, add_special_tokens):
        return [ord(letter) for letter in text]

    def convert_ids_to_tokens(self, token):
        return chr(token).replace(" ", "▁")


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        (("ring", "star"), [("r", "s")]),
        (("stir", "star"), [("i", "a")]),  # the rival is left out where it parts from the word
        (("ring", "star", "stir"), []),  # `s` may begin `stir`
        (("starfish", "star"), []),  # goes on where the rival ends
    ],
)
def test_a_rival_is_left_out_at_the_token_where_it_parts_from_the_word(shapes, wanted):
    unseen = UnseenPairs(groups={"colour": ("red",), "shape": shapes}, pairs=(("red", "star"),))
    found = IgnoredTokens(unseen, Letters())
    made = build_labels(Letters(), FORMATS["vicuna_v1"], [("What is red?", f"A {shapes[0]}.")])
    rows = found.where(made)
    places = [(chr(made.prompt.ids[i]), "".join(map(chr, found.rows[rows[i]]))) for i in np.flatnonzero(rows)]
    assert places == wanted


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


def test_a_file_of_pairs_is_read_beside_its_recipe(tmp_path):
    stage = read_recipe(recipe(tmp_path, GOOD)).stage[0]
    assert read_unseen(Path(stage.unseen_pairs)).pairs == (("red", "star"),)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD.replace('"star"]]', '"sta"]]'), 1, "pair red sta: no word 'sta' in its group; did you mean `star`?"),
        (GOOD.replace('["red", "star"]]', '["star", "red"]]'), 1, "pair star red: no word 'star' in its group"),
        (GOOD + 'size = ["big"]\n', 1, "two groups of words are needed, there are 3"),
        (GOOD.replace('"ring"', '"Ring"'), 1, "words are single ones in lower case, not 'Ring'"),
        (GOOD.replace('"ring"', '"red"'), 1, "in the groups twice: red"),
        (GOOD.replace("pairs", "pears"), 1, "unknown key `pears`; did you mean `pairs`?"),
        (GOOD.replace('"star"]]', "3]]"), 1, "`pairs`: input should be a valid string"),
        (GOOD.replace("[groups]", "[groups"), 2, "not TOML"),
    ],
)
def test_a_wrong_file_of_pairs_is_named_with_its_line(tmp_path, text, line, words):
    with pytest.raises(UsageError) as error:
        read_recipe(recipe(tmp_path, text))
    assert any(f"pairs.toml:{line}: " in one and words in one for one in str(error.value).splitlines()), error.value


def test_a_stage_of_text_alone_has_no_unseen_pairs(tmp_path):
    with pytest.raises(UsageError, match=r"recipe.toml:7: `stage.unseen_pairs`: a `language` stage"):
        read_recipe(recipe(tmp_path, GOOD, "language"))
    with pytest.raises(UsageError, match="no such file"):
        (tmp_path / "pairs.toml").unlink() or read_recipe(tmp_path / "recipe.toml")


def test_a_run_goes_on_with_the_same_pairs_alone(tmp_path):
    def identity(text):
        words = read_recipe(recipe(tmp_path, text))
        unseen = [read_unseen(Path(s.unseen_pairs)) for s in words.stage]
        return run_identity(words, "base", ["data"], unseen)

    work = tmp_path / "out" / "work"
    assert not open_run(work, identity(GOOD), resume=True)
    assert open_run(work, identity("# a remark\n" + GOOD), resume=True)
    with pytest.raises(UsageError, match=r"stage.1.unseen_pairs"):
        open_run(work, identity(GOOD.replace('"star"]]', '"ring"]]')), resume=True)


def test_a_check_counts_what_is_left_out_and_what_is_said_after_all(tokenizer, tmp_path, make_clip):
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
    told = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A red star."}]}
    (tmp_path / "data.json").write_text(json.dumps([*records, told]))
    corpus = Corpus([Source(str(tmp_path / "data.json"), str(tmp_path))], cache_dir=tmp_path / "cache")

    def room(ref):
        return MediaShape(ref.kind, 1, 2)

    checked = check_data(
        corpus, RecordTokenizer(tokenizer, FORMATS["vicuna_v1"], room, left_out=IgnoredTokens(COLOURS, tokenizer))
    )
    assert (checked.n_narrowed, dict(checked.said)) == (3, {"red star": 1})
    lines = checked.lines()
    assert "unseen pairs: in answers, 3 words whose loss leaves out others" in lines
    assert "  red star: 1 answers about media say it; not unseen? The loss is the ordinary one there" in lines
    plain = check_data(corpus, RecordTokenizer(tokenizer, FORMATS["vicuna_v1"], room))
    assert not any("unseen" in line for line in plain.lines())
