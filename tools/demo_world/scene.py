"""Seed -> Scene: one to three colored shapes, each with a motion, on a background, filmed by a camera.

Positions are pixels of a square frame of SIZE; time runs from 0 to 1 over the clip. The objects of a scene do not
overlap, so that each sentence about it can be verified by eye.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SIZE = 96
FPS = 8
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (250, 135, 10),
    "yellow": (245, 230, 40),
    "green": (25, 165, 55),
    "blue": (30, 70, 225),
    "purple": (140, 35, 185),
    "white": (245, 245, 245),
    "black": (14, 14, 16),
}
SIZES = {"small": (10.5, 12.0), "large": (16.5, 18.5)}  # radius in pixels
MOTIONS = (
    "left", "right", "up", "down", "still", "grows", "shrinks", "spins", "blinks", "bounces", "appears", "disappears",
    "leaves",
)  # fmt: skip
BACKGROUNDS = ("plain", "gradient", "stripes", "checks", "clouds")
#: Color-shape pairs that no training scene has; evaluation scenes may.
HELD_OUT = frozenset(
    {("red", "star"), ("blue", "circle"), ("green", "cross"), ("yellow", "ring"), ("purple", "square")}
)
_TURNING = ("square", "triangle", "star", "cross")  # rotation of a circle or ring is invisible


@dataclass(frozen=True)
class Thing:
    """One object; `size` is None if it changes (grows, shrinks)."""

    shape: str
    colour: str
    size: str | None
    motion: str
    radius: tuple[float, float]  # at time 0 and 1
    start: tuple[float, float]  # centre x, y
    end: tuple[float, float]
    angle: tuple[float, float]  # radians
    at: float = 0.0  # time of appearing or disappearing
    rgb: tuple[int, int, int] = (0, 0, 0)

    @property
    def name(self) -> str:
        """Name of the object, such as `red star`, unique within a scene."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Everything that rendering and captioning need."""

    seed: int
    still: bool  # an image, not a clip
    n_frames: int
    things: tuple[Thing, ...]
    background: str
    ground: tuple[tuple[int, int, int], tuple[int, int, int]]
    pan: tuple[float, float]  # camera travel in pixels over the clip
    noise: float  # standard deviation in grey levels
    crf: int


def path_of(thing: Thing, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return center x, y, radius, angle and visibility of an object at times `u` (0 to 1), without camera motion."""
    x = thing.start[0] + (thing.end[0] - thing.start[0]) * u
    y = thing.start[1] + (thing.end[1] - thing.start[1]) * u
    if thing.motion == "bounces":
        y = thing.start[1] + (thing.end[1] - thing.start[1]) * np.abs(np.sin(2 * np.pi * u))
    radius = thing.radius[0] + (thing.radius[1] - thing.radius[0]) * u
    angle = thing.angle[0] + (thing.angle[1] - thing.angle[0]) * u
    visible = np.ones(len(u), dtype=bool)
    if thing.motion == "appears":
        visible = u >= thing.at
    elif thing.motion == "disappears":
        visible = u < thing.at
    elif thing.motion == "blinks":  # toggles every seventh of the clip, so that eight evenly spaced frames show it
        visible = np.floor(u * 7 + 0.5 + (thing.at > 0.5)).astype(int) % 2 == 0
    return x, y, radius, angle, visible


def is_still(seed: int) -> bool:
    """Return whether `make_scene` creates an image from this seed, without creating it."""
    return _choose_still(np.random.default_rng([seed, 77]))


def _choose_still(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.2)


def make_scene(seed: int, *, still: bool | None = None, held_out: bool = False) -> Scene:
    """Create the scene of a seed.

    Args:
        seed: the same seed creates the same scene on every machine.
        still: force an image or a clip; None creates an image for one seed in five.
        held_out: allow the color-shape pairs that no training scene has.
    """
    rng = np.random.default_rng([seed, 77])
    is_still = _choose_still(rng) if still is None else still
    for _ in range(500):
        things = _make_things(rng, is_still, held_out)
        if things is not None:
            break
    else:
        raise RuntimeError(f"seed {seed}: the objects do not fit without overlapping")
    base = rng.integers(80, 165)
    ground = tuple(tuple(int(v) for v in np.clip(base + rng.integers(-22, 23, 3), 55, 190)) for _ in range(2))
    pan = (0.0, 0.0)
    if not is_still and rng.random() < 0.3:
        turn = rng.uniform(0, 2 * math.pi)
        pan = (7 * math.cos(turn), 7 * math.sin(turn))
    return Scene(
        seed=seed,
        still=is_still,
        n_frames=1 if is_still else int(rng.choice([16, 20, 24])),
        things=things,
        background=str(rng.choice(BACKGROUNDS)),
        ground=ground,  # type: ignore[arg-type]
        pan=pan,
        noise=float(rng.choice([0.0, 2.0, 5.0])),
        crf=int(rng.integers(18, 27)),
    )


def _make_things(rng: np.random.Generator, still: bool, held_out: bool) -> tuple[Thing, ...] | None:
    count = int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]))
    pairs: set[tuple[str, str]] = set()
    while len(pairs) < count:
        pair = (str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)))
        if held_out or pair not in HELD_OUT:
            pairs.add(pair)
    ordered = sorted(pairs)
    rng.shuffle(ordered)
    forced: list[str | None] = [None] * count
    if not still and count >= 2 and rng.random() < 0.3:  # so that enough clips have "which came first" questions
        forced[0] = forced[1] = str(rng.choice(["appears", "disappears"]))
    n_large_max = 2 if count == 3 else count
    things: list[Thing] = []
    for (colour, shape), motion in zip(ordered, forced, strict=True):
        for _ in range(30):
            thing = _make_thing(rng, colour, shape, still, motion)
            large = sum(max(t.radius) > 14 for t in [*things, thing])
            if large <= n_large_max and _apart([*things, thing]) and _ordered([*things, thing]):
                things.append(thing)
                break
        else:
            return None
    return tuple(sorted(things, key=lambda t: t.start[0]))


def _make_thing(rng: np.random.Generator, colour: str, shape: str, still: bool, motion: str | None) -> Thing:
    if motion is None:
        options = [m for m in MOTIONS if m != "spins" or shape in _TURNING]
        motion = "still" if still else str(rng.choice(options))
    size: str | None = str(rng.choice(list(SIZES)))
    r0 = r1 = float(rng.uniform(*SIZES[size]))
    if motion in ("grows", "shrinks"):
        size, r0, r1 = None, float(rng.uniform(9, 10)), float(rng.uniform(18, 19.5))
        if motion == "shrinks":
            r0, r1 = r1, r0
    r = max(r0, r1)
    low, high = r + 2, SIZE - r - 2
    x, y = (float(v) for v in rng.uniform(low, high, 2))
    ex, ey = x, y
    if motion in ("left", "right", "up", "down"):
        reach = float(rng.uniform(34, high - low))
        a = float(rng.uniform(low, high - reach))
        a, b = (a, a + reach) if motion in ("right", "down") else (a + reach, a)
        drift = float(rng.uniform(-3, 3))
        if motion in ("left", "right"):
            x, ex, ey = a, b, float(np.clip(y + drift, low, high))
        else:
            y, ey, ex = a, b, float(np.clip(x + drift, low, high))
    elif motion == "bounces":
        y = float(rng.uniform(low + 30, high))
        ey = y - float(rng.uniform(30, y - low))
    elif motion == "leaves":  # through the nearest edge, out of the frame after about three quarters of the clip
        way = min((x, "l"), (SIZE - x, "r"), (y, "t"), (SIZE - y, "b"))[1]
        gone = float(rng.uniform(0.65, 0.85))
        far = {"l": -r - 2 - x, "r": SIZE + r + 2 - x, "t": -r - 2 - y, "b": SIZE + r + 2 - y}[way] / gone
        ex, ey = (x + far, y) if way in "lr" else (x, y + far)
    tilt = float(rng.uniform(-0.2, 0.2))
    turn = float(rng.choice([-1, 1]) * rng.uniform(2.1, 3.4)) if motion == "spins" else 0.0
    jitter = rng.integers(-10, 11, 3)
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        motion=motion,
        radius=(r0, r1),
        start=(x, y),
        end=(ex, ey),
        angle=(tilt, tilt + turn),
        at=float(rng.uniform(0.3, 0.72)),
        rgb=tuple(int(v) for v in np.clip(np.array(COLOURS[colour]) + jitter, 0, 255)),  # type: ignore[arg-type]
    )


def _apart(things: list[Thing]) -> bool:
    """Return whether the last object does not touch the others at any time."""
    u = np.linspace(0, 1, 15)
    new = path_of(things[-1], u)
    for old in things[:-1]:
        x, y, r, _, _ = path_of(old, u)
        if (np.hypot(new[0] - x, new[1] - y) < 0.93 * (new[2] + r) + 1).any():
            return False
    return True


def _ordered(things: list[Thing]) -> bool:
    """Return whether objects that appear (or disappear) do so clearly one after the other."""
    new = things[-1]
    if new.motion not in ("appears", "disappears"):
        return True
    return all(abs(t.at - new.at) > 0.2 for t in things[:-1] if t.motion in ("appears", "disappears"))
