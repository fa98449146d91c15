"""Scene -> captions, questions and correct answers; caption -> claims, for scoring.

Answers are short and have one wording each; captions and questions vary. `claims` parses every wording used here, so a
generated caption can be compared with the scene, attribute by attribute.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from demo_world.scene import COLOURS, MOTIONS, SHAPES, SIZE, Scene, Thing

#: Motion -> wordings in third person; answers use the first one.
SAYINGS: dict[str, tuple[str, ...]] = {
    "left": ("moves left", "moves to the left", "slides left"),
    "right": ("moves right", "moves to the right", "slides right"),
    "up": ("moves up", "moves upwards", "rises"),
    "down": ("moves down", "moves downwards", "sinks"),
    "still": ("stays still", "does not move", "stays where it is"),
    "grows": ("grows", "gets bigger", "grows larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
    "spins": ("spins", "turns around", "rotates"),
    "blinks": ("blinks", "flashes on and off"),
    "bounces": ("bounces", "bounces up and down"),
    "appears": ("appears", "comes into view"),
    "disappears": ("disappears", "vanishes"),
    "leaves": ("leaves the frame", "moves out of the frame"),
}
NUMBERS = ("zero", "one", "two", "three")
POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
#: By whether it is an image. A question set applies to all files of a folder, so images get "the video" questions, too.
CAPTION_QUESTIONS = {
    False: (
        "Describe the video.",
        "What happens?",
        "What happens in the video?",
        "what happens?",
        "Describe the clip.",
        "What is going on?",
        "Describe this video.",
        "What can be seen?",
        "What do you see?",
    ),
    True: (
        "Describe the picture.",
        "What is in the picture?",
        "Describe the image.",
        "What do you see?",
        "What is shown?",
        "Describe the video.",
        "What happens?",
        "What can be seen?",
        "Describe this image.",
    ),
}
DETAIL_QUESTIONS = {
    False: (
        "Describe the video in detail.", "Give a detailed description.", "Tell me everything about the video.",
        "Describe in detail what happens.",
    ),
    True: (
        "Describe the picture in detail.", "Give a detailed description.", "Tell me everything about the picture.",
        "Describe the video in detail.",
    ),
}  # fmt: skip


_ASK_COLOUR = ("What colour is the {0}?", "Which colour does the {0} have?", "The {0} has which colour?")
_ASK_SHAPE = ("What shape is the {0} object?", "Which shape does the {0} object have?", "What is the {0} thing?")
_ASK_SIZE = ("How big is the {0}?", "Is the {0} small or large?", "What size is the {0}?")
_ASK_MOTION = ("What does the {0} do?", "What happens to the {0}?", "How does the {0} move?")


@dataclass(frozen=True)
class Pair:
    """A question with its correct answer; `topic` groups pairs for scoring."""

    topic: str
    question: str
    answer: str


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Return a sentence that describes the scene, with a wording sampled from `rng`, or else the first one."""
    return _sentence(" ".join(_join([_phrase(t, scene.still, rng) for t in _in_order(scene)])))


def names(text: str) -> set[tuple[str, str]]:
    """Return the (color, shape) pairs of all objects that a text names."""
    return {(colour, shape) for _, colour, shape, _ in claims(text)}


def detail(scene: Scene) -> str:
    """Return a detailed description: a sentence with the number of objects, and one or two for each of them."""
    n = len(scene.things)
    parts = [f"There is {NUMBERS[1]} object." if n == 1 else f"There are {NUMBERS[n]} objects."]
    for t in _in_order(scene):
        size = f"{t.size} " if t.size else ""
        parts.append(f"One is a {size}{t.name}.".replace("a orange", "an orange"))
        if not scene.still:
            parts.append(f"It {SAYINGS[t.motion][0]}.")
    return " ".join(parts)


def pairs(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Return one question of every kind that has a single correct answer for this scene, in random order."""
    found = [pair for maker in _MAKERS for pair in maker(scene, rng)]
    order = rng.permutation(len(found))
    return [found[i] for i in order]


def dialogue(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Return a dialogue about one object, whose later turns call it `it`."""
    t = _pick(scene.things, rng)
    turns = [Pair("dialogue", f"Is there a {t.name}?".replace("a orange", "an orange"), "Yes.")]
    turns.append(Pair("dialogue", "What shape is it?", f"It is a {t.shape}."))
    if t.size:
        turns.append(Pair("dialogue", "Is it small or large?", f"It is {t.size}."))
    if not scene.still:
        turns.append(Pair("dialogue", "What does it do?", f"It {SAYINGS[t.motion][0]}."))
    return turns


def lookups(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Return questions that identify an object by its shape or its color only, where that is unambiguous.

    A model can nearly always find "the red circle" by its color. Without these questions it relies on that, and guesses
    when it is asked about "the circle".
    """
    found = []
    for t in scene.things:
        if _alone(scene, t, "shape"):
            found.append(Pair("lookup", f"Name the colour of the {t.shape}.", f"The {t.shape} is {t.colour}."))
            found.append(Pair("lookup", _choice(rng, _ASK_COLOUR).format(t.shape), f"It is {t.colour}."))
            colour = str(rng.choice([x.colour for x in scene.things] if rng.random() < 0.8 else list(COLOURS)))
            found.append(Pair("lookup", f"Is the {t.shape} {colour}?", "Yes." if colour == t.colour else "No."))
            found += _doings(scene, t, t.shape, rng)
        if _alone(scene, t, "colour"):
            found.append(Pair("lookup", _choice(rng, _ASK_SHAPE).format(t.colour), f"It is a {t.shape}."))
            found += _doings(scene, t, f"{t.colour} {_choice(rng, ('thing', 'object'))}", rng)
    return found


def plain(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Return everyday questions: about a single object called `it`, and about which objects and colors there are."""
    found = []
    if len(scene.things) == 1:
        t = scene.things[0]
        found.append(Pair("plain", _choice(rng, ("What shape is it?", "Which shape is it?")), f"It is a {t.shape}."))
        ask = _choice(rng, ("What colour is it?", "What color is it?", "Which colour is it?"))
        found.append(Pair("plain", ask, f"It is {t.colour}."))
        found.append(Pair("plain", _choice(rng, ("What is it?", "What is this?")), _things(scene)))
        if t.size:
            ask = _choice(rng, ("Is it small or large?", "How big is it?", "What size is it?"))
            found.append(Pair("plain", ask, f"It is {t.size}."))
        if not scene.still:
            ask = _choice(rng, ("What does it do?", "How does it move?", "What happens to it?"))
            found.append(Pair("plain", ask, f"It {SAYINGS[t.motion][0]}."))
    ask = _choice(rng, ("What shapes are there?", "What objects are there?", "Which objects do you see?"))
    found.append(Pair("plain", ask, _things(scene)))
    colours = [c for c in COLOURS if any(t.colour == c for t in scene.things)]
    ask = _choice(rng, ("What colours are there?", "What colors are there?", "Which colours do you see?"))
    found.append(Pair("plain", ask, _sentence(" ".join(_join(colours)))))
    return found


def checks(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Return claims to verify, and which of two objects appeared first.

    False claims use attributes of other objects in the scene. Random false claims would mostly name something that is
    nowhere in the scene; a model trained on those answers yes as soon as any object has the attribute.
    """
    found = []
    for t in scene.things:
        others = [x for x in scene.things if x is not t]
        if not scene.still:
            motions = [x.motion for x in others if x.motion != t.motion]
            if not motions or rng.random() < 0.3:
                motions = [m for m in MOTIONS if m != t.motion]
            for motion, answer in ((t.motion, "Yes."), (str(rng.choice(motions)), "No.")):
                ask = f"Is it true that the {t.name} {_choice(rng, SAYINGS[motion])}?"
                found.append(Pair("check", ask, answer))
        mixed = {f"{t.colour} {x.shape}" for x in others} - {x.name for x in scene.things}
        for name, answer in ((t.name, "Yes."), *((n, "No.") for n in sorted(mixed)[:1])):
            ask = _choice(rng, ("Is there a {0}?", "Do you see a {0}?", "Does a {0} occur?")).format(name)
            found.append(Pair("check", ask.replace("a orange", "an orange"), answer))
    return found + [Pair("check", p.question, p.answer) for p in _first(scene, rng)]


def _things(scene: Scene) -> str:
    """Return a sentence that lists all objects without their motion."""
    return _sentence(" ".join(_join([_phrase(t, True, None) for t in _in_order(scene)])))


def _doings(scene: Scene, t: Thing, name: str, rng: np.random.Generator) -> list[Pair]:
    """Return one question about the motion or the size of an object, which the question calls `name`."""
    if not scene.still and (not t.size or rng.random() < 0.6):
        return [Pair("lookup", _choice(rng, _ASK_MOTION).format(name), f"It {SAYINGS[t.motion][0]}.")]
    return [Pair("lookup", _choice(rng, _ASK_SIZE).format(name), f"It is {t.size}.")] if t.size else []


def share_a_colour(scene: Scene) -> bool:
    """Return whether two objects have the same color, so that a caption names them one after the other."""
    return len({t.colour for t in scene.things}) < len(scene.things)


def summary(scene: Scene, rng: np.random.Generator) -> str:
    """Return the scene as a list of phrases, for training the language model on text only."""
    when = sorted((t.at, t.name) for t in scene.things if t.motion in ("appears", "disappears"))
    rank = {name: i for i, (_, name) in enumerate(when)}
    items = []
    for t in scene.things:
        words = [*([t.size] if t.size else []), t.name, *([SAYINGS[t.motion][0]] if not scene.still else [])]
        if t.name in rank and len(rank) > 1:
            words.append(("first", "second", "third")[rank[t.name]])
        if where := position_of(t):
            words.append(f"at the {where}")
        items.append(" ".join(words))
    return "; ".join(items)


# --- parsing a caption ------------------------------------------------------------------------------------------------

_MEANING = {saying: motion for motion, sayings in SAYINGS.items() for saying in sayings}
_CLAIM = re.compile(
    rf"\b(?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf"(?: ({'|'.join(sorted(map(re.escape, _MEANING), key=len, reverse=True))}))?"
)


def claims(text: str) -> set[tuple[str | None, str, str, str | None]]:
    """Return the claims of a caption: a set of (size, color, shape, motion), None for unstated attributes."""
    return {(m[1] or None, m[2], m[3], _MEANING.get(m[4])) for m in _CLAIM.finditer(text.lower())}


def truth(scene: Scene) -> set[tuple[str | None, str, str, str | None]]:
    """Return the claims of a complete and correct caption of the scene."""
    return {(t.size, t.colour, t.shape, None if scene.still else t.motion) for t in scene.things}


# --- the kinds of questions -------------------------------------------------------------------------------------------


def _colour(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    t = _unique(scene, rng, "shape")
    if t is None:
        return []
    return [Pair("colour", _choice(rng, _ASK_COLOUR).format(t.shape), f"It is {t.colour}.")]


def _shape(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    t = _unique(scene, rng, "colour")
    if t is None:
        return []
    return [Pair("shape", _choice(rng, _ASK_SHAPE).format(t.colour), f"It is a {t.shape}.")]


def _size(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    sized = [t for t in scene.things if t.size]
    if not sized:
        return []
    t = _pick(sized, rng)
    return [Pair("size", _choice(rng, _ASK_SIZE).format(t.name), f"It is {t.size}.")]


def _count(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    ask = _choice(rng, ("How many objects are there?", "How many shapes are there?", "Count the objects."))
    return [Pair("count", ask, f"{NUMBERS[len(scene.things)].capitalize()}.")]


def _motion(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    if scene.still:
        return []
    t = _pick(scene.things, rng)
    return [Pair("motion", _choice(rng, _ASK_MOTION).format(t.name), f"It {SAYINGS[t.motion][0]}.")]


def _direction(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    moving = [t for t in scene.things if t.motion in ("left", "right", "up", "down")]
    if scene.still or not moving:
        return []
    t = _pick(moving, rng)
    ask = _choice(rng, ("Which way does the {0} go?", "In which direction does the {0} move?"))
    return [Pair("direction", ask.format(t.name), f"{t.motion.capitalize()}.")]


def _position(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    placed = [(t, where) for t in scene.things if (where := position_of(t))]
    if not placed:
        return []
    t, where = placed[int(rng.integers(len(placed)))]
    ask = _choice(rng, ("Where is the {0}?", "In which part of the frame is the {0}?"))
    return [Pair("position", ask.format(t.name), f"At the {where}.")]


def _yes_no(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    """Return one question with the answer yes and one with the answer no, to balance them."""
    return [_true_or_false(scene, rng, True), _true_or_false(scene, rng, False)]


def _true_or_false(scene: Scene, rng: np.random.Generator, true: bool) -> Pair:
    t = _pick(scene.things, rng)
    kinds = ["there", "count"] + ([] if scene.still else ["does"]) + (["size"] if t.size else [])
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "there":
        name = t.name if true else _missing_name(scene, t, rng)
        ask = _choice(rng, ("Is there a {0}?", "Do you see a {0}?", "Does a {0} occur?")).format(name)
        ask = ask.replace("a orange", "an orange")
    elif kind == "count":
        n = len(scene.things)
        claim = n if true else int(rng.choice([k for k in (1, 2, 3) if k != n]))
        ask = f"Is there {NUMBERS[1]} object?" if claim == 1 else f"Are there {NUMBERS[claim]} objects?"
    elif kind == "does":
        motion = t.motion if true else str(rng.choice([m for m in MOTIONS if m != t.motion]))
        ask = f"Is it true that the {t.name} {_choice(rng, SAYINGS[motion])}?"
    else:
        size = t.size if true else {"small": "large", "large": "small"}[str(t.size)]
        ask = f"Is the {t.name} {size}?"
    return Pair("yes_no", ask, "Yes." if true else "No.")


def _first(scene: Scene, rng: np.random.Generator) -> list[Pair]:
    found = []
    for motion, verb in (("appears", "appears"), ("disappears", "disappears")):
        timed = sorted((t for t in scene.things if t.motion == motion), key=lambda t: t.at)
        if len(timed) < 2:
            continue
        a, b = (timed[i].name for i in rng.permutation(len(timed))[:2])
        first = min((t for t in timed if t.name in (a, b)), key=lambda t: t.at)
        ask = _choice(rng, ("Which {1} first, the {0}?", "What {1} first, the {0}?")).format(f"{a} or the {b}", verb)
        found.append(Pair("first", ask, f"The {first.name}."))
    return found


_MAKERS: tuple[Callable[[Scene, np.random.Generator], list[Pair]], ...] = (
    _colour, _shape, _size, _count, _motion, _direction, _position, _yes_no, _first,
)  # fmt: skip


# --- small helpers ----------------------------------------------------------------------------------------------------


def _phrase(t: Thing, still: bool, rng: np.random.Generator | None) -> str:
    size = f"{t.size} " if t.size else ""
    article = "an" if not size and t.colour == "orange" else "a"
    text = f"{article} {size}{t.name}"
    return text if still else f"{text} {SAYINGS[t.motion][0] if rng is None else _choice(rng, SAYINGS[t.motion])}"


def _in_order(scene: Scene) -> list[Thing]:
    """Sort objects by color, then shape; without a fixed order, a captioner must track which ones it has named."""
    return sorted(scene.things, key=lambda t: (list(COLOURS).index(t.colour), SHAPES.index(t.shape)))


def _join(phrases: list[str]) -> list[str]:
    return [f"{p}," for p in phrases[:-2]] + phrases[-2:-1] + (["and"] if len(phrases) > 1 else []) + phrases[-1:]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def position_of(t: Thing) -> str | None:
    """Return one of POSITIONS, or None if the position is ambiguous or the object moves."""
    if t.motion in ("left", "right", "up", "down", "bounces", "leaves"):
        return None
    x, y = t.start
    across = "left" if x < 0.40 * SIZE else "right" if x > 0.60 * SIZE else "centre" if 0.46 < x / SIZE < 0.54 else None
    along = "top" if y < 0.40 * SIZE else "bottom" if y > 0.60 * SIZE else "centre" if 0.46 < y / SIZE < 0.54 else None
    if across is None or along is None:
        return None
    if across == along:
        return "centre"
    return " ".join(w for w in (along, across) if w != "centre")


def _unique(scene: Scene, rng: np.random.Generator, attribute: str) -> Thing | None:
    alone = [t for t in scene.things if _alone(scene, t, attribute)]
    return _pick(alone, rng) if alone else None


def _alone(scene: Scene, t: Thing, attribute: str) -> bool:
    """Return whether no other object has the same shape, or the same color."""
    return all(x is t or getattr(x, attribute) != getattr(t, attribute) for x in scene.things)


def _missing_name(scene: Scene, t: Thing, rng: np.random.Generator) -> str:
    """Return the name of an object that is not in the scene, often with the color or shape of `t`."""
    names = {x.name for x in scene.things}
    while True:
        colour = t.colour if rng.random() < 0.4 else str(rng.choice(list(COLOURS)))
        shape = t.shape if rng.random() < 0.4 else str(rng.choice(SHAPES))
        if f"{colour} {shape}" not in names:
            return f"{colour} {shape}"


def _pick(things: tuple[Thing, ...] | list[Thing], rng: np.random.Generator) -> Thing:
    return things[int(rng.integers(len(things)))]


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
