"""Scene -> frames: anti-aliased shapes over a muted background, rendered with numpy only."""

from __future__ import annotations

import numpy as np

from demo_world.scene import SIZE, Scene, Thing, path_of

_PAD = 10  # background beyond the frame, for camera motion


def render(scene: Scene, frames: np.ndarray | None = None) -> np.ndarray:
    """Render a scene.

    Args:
        scene: the scene.
        frames: int [F], indices of the frames; None for all.

    Returns:
        uint8 [F, SIZE, SIZE, 3].
    """
    return _render(scene, frames)[0]


def cover(scene: Scene, frames: np.ndarray, grid: int) -> np.ndarray:
    """Return the share of each grid cell that each object covers: float32 [F, n_things, grid, grid], 0 to 1."""
    masks = _render(scene, frames)[1]
    cell = SIZE // grid
    f, n = masks.shape[:2]
    return masks.reshape(f, n, grid, cell, grid, cell).mean(axis=(3, 5), dtype=np.float32)


def times(scene: Scene, frames: np.ndarray | None = None) -> np.ndarray:
    """Return the time of each frame, 0 to 1."""
    index = np.arange(scene.n_frames) if frames is None else np.asarray(frames)
    return index / max(scene.n_frames - 1, 1)


def _render(scene: Scene, frames: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([scene.seed, 78])
    u = times(scene, frames)
    ground = _ground(scene, rng)
    image = np.empty((len(u), SIZE, SIZE, 3), np.float32)
    shift = np.outer(u, scene.pan)
    for i, (dx, dy) in enumerate(np.rint(shift).astype(int)):
        image[i] = ground[_PAD + dy : _PAD + dy + SIZE, _PAD + dx : _PAD + dx + SIZE]
    masks = np.zeros((len(u), len(scene.things), SIZE, SIZE), np.float32)
    for k, thing in enumerate(scene.things):
        _add_coverage(masks[:, k], thing, u, shift)
        alpha = masks[:, k, :, :, None]
        image += alpha * (np.array(thing.rgb, np.float32) - image)
    if scene.noise:
        image += rng.normal(0, scene.noise, image.shape).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), masks


def _add_coverage(out: np.ndarray, thing: Thing, u: np.ndarray, shift: np.ndarray) -> None:
    """Write the coverage of one object into `out` [F, SIZE, SIZE]."""
    x, y, radius, angle, visible = path_of(thing, u)
    x, y = x - shift[:, 0], y - shift[:, 1]
    reach = int(np.ceil(radius.max())) + 2
    span = np.arange(-reach, reach + 1, dtype=np.float32)
    cx, cy = np.rint(x).astype(int), np.rint(y).astype(int)
    gx = span[None, None, :] + (cx - x)[:, None, None].astype(np.float32)
    gy = span[None, :, None] + (cy - y)[:, None, None].astype(np.float32)
    cos, sin = np.cos(angle)[:, None, None].astype(np.float32), np.sin(angle)[:, None, None].astype(np.float32)
    r = radius[:, None, None].astype(np.float32)
    alpha = np.clip(0.5 - _distance(thing.shape, cos * gx + sin * gy, cos * gy - sin * gx, r), 0, 1)
    for i in np.flatnonzero(visible):
        x0, x1 = max(cx[i] - reach, 0), min(cx[i] + reach + 1, SIZE)
        y0, y1 = max(cy[i] - reach, 0), min(cy[i] + reach + 1, SIZE)
        if x0 < x1 and y0 < y1:
            out[i, y0:y1, x0:x1] = alpha[
                i, y0 - cy[i] + reach : y1 - cy[i] + reach, x0 - cx[i] + reach : x1 - cx[i] + reach
            ]


def _distance(shape: str, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return the signed distance to the outline in pixels, negative inside; arrays broadcast to [F, n, n]."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95 * r
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.74 * r) - 0.24 * r
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.8 * r
    if shape == "cross":
        a, b = np.abs(x), np.abs(y)
        arm, wide = 0.98 * r, 0.3 * r
        return np.minimum(np.maximum(a - arm, b - wide), np.maximum(a - wide, b - arm))
    if shape == "triangle":  # half planes of an equilateral triangle, point up
        s3 = np.sqrt(3).astype(np.float32)
        y = y - 0.18 * r
        return np.maximum(
            np.maximum(y - 0.5 * r * 1.1, (s3 * x - y) / 2 - 0.5 * r * 1.1), (-s3 * x - y) / 2 - 0.5 * r * 1.1
        )
    if shape == "star":  # five points: fold the plane into one wedge, then one edge
        theta = np.arctan2(x, -y)
        wedge = 2 * np.pi / 5
        theta = np.abs((theta + wedge / 2) % wedge - wedge / 2).astype(np.float32)
        rho = np.hypot(x, y)
        px, py = rho * np.cos(theta), rho * np.sin(theta)
        tip, notch = 1.08 * r, 0.44 * r
        nx, ny = notch * np.float32(np.cos(wedge / 2)), notch * np.float32(np.sin(wedge / 2))
        ex, ey = nx - tip, ny
        return (ey * (tip - px) + ex * py) / np.hypot(ex, ey) * -1.0
    raise ValueError(f"unknown shape {shape!r}")


def _ground(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return a blend of the two background colors by a pattern: float32 [SIZE + 2 PAD, SIZE + 2 PAD, 3]."""
    n = SIZE + 2 * _PAD
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    turn = rng.uniform(0, 2 * np.pi)
    along = np.cos(turn) * x + np.sin(turn) * y
    if scene.background == "plain":
        mix = np.zeros((n, n), np.float32)
    elif scene.background == "gradient":
        mix = (along - along.min()) / (along.max() - along.min())
    elif scene.background == "stripes":
        mix = 0.5 + 0.5 * np.sin(along * rng.uniform(30, 60))
    elif scene.background == "checks":
        k = rng.uniform(4, 9)
        mix = ((np.floor(x * k) + np.floor(y * k)) % 2).astype(np.float32)
    else:
        coarse = rng.random((7, 7)).astype(np.float32)
        at = np.linspace(0, 5.999, n)
        i, f = at.astype(int), (at % 1).astype(np.float32)
        rows = coarse[i] * (1 - f)[:, None] + coarse[i + 1] * f[:, None]
        mix = rows[:, i] * (1 - f) + rows[:, i + 1] * f
    a, b = (np.array(c, np.float32) for c in scene.ground)
    return a + mix[:, :, None].astype(np.float32) * (b - a)
