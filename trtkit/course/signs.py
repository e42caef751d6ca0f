"""Traffic signs in the street, made from a seed: drawn signs, turned, tilted and lit, in front of the photographs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trtkit.course.paths import dataset
from trtkit.course.photos import photos

SIZE = 48
SPRITE = 64
NAMES = (
    "bicycle", "bicycle-designated", "city_limit", "dead_end", "foot", "foot-designated", "give_way", "goods", "horse",
    "horse-designated", "maxheight", "maxlength", "maxspeed", "maxspeed_none", "maxweight", "maxwidth", "minspeed",
    "motorbike", "motorcar", "psv", "restrictions", "roundabout_left", "roundabout_right", "stop",
    "turn_restrictions/no_left_turn", "turn_restrictions/no_left_turn_red", "turn_restrictions/no_right_turn",
    "turn_restrictions/no_right_turn_red", "turn_restrictions/no_straight_on", "turn_restrictions/no_straight_on_red",
    "turn_restrictions/no_u_turn", "turn_restrictions/only_left_turn", "turn_restrictions/only_right_turn",
    "turn_restrictions/only_straight_on",
)  # fmt: skip


def signs(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (count, 3, 48, 48) uint8 and which of `NAMES` each shows, (count,) int64, all equally often.

    >>> x, y = signs(2, seed=0)
    >>> x.shape, [NAMES[i] for i in y]
    ((2, 3, 48, 48), ['bicycle', 'bicycle-designated'])
    """
    rng = np.random.default_rng(seed)
    places = [photo.astype(np.float32) for photo in photos().values()]
    answers = np.arange(count) % len(NAMES)
    drawn = sprites()
    x = np.stack([_street(drawn[i], places[rng.integers(len(places))], rng) for i in answers])
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), answers


def sprites() -> list[Image.Image]:
    """The signs as they are drawn, 64 x 64 pixels with transparency, in the order of `NAMES`."""
    sheet = Image.open(dataset("signs/signs.png"))
    return [sheet.crop((i * SPRITE, 0, (i + 1) * SPRITE, SPRITE)) for i in range(len(NAMES))]


def _street(sign: Image.Image, photo: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    top, left = rng.integers(0, photo.shape[0] - SIZE + 1), rng.integers(0, photo.shape[1] - SIZE + 1)
    behind = photo[top : top + SIZE, left : left + SIZE]
    placed = sign.transform((SIZE, SIZE), Image.Transform.AFFINE, _placed(rng), Image.Resampling.BILINEAR)
    rgba = np.asarray(placed, np.float32)
    alpha = rgba[:, :, 3:] / 255
    light = rng.uniform(0.25, 1.0) * rng.uniform(0.8, 1.2, size=3)  # how much, and of which colour
    picture = (rgba[:, :, :3] * alpha + behind * (1 - alpha)) * light
    picture = _blurred(picture, rng.uniform(0, 1.2)) + rng.normal(0, rng.uniform(2, 18), picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _placed(rng: np.random.Generator) -> tuple[float, ...]:
    """Where in the drawing each pixel of the picture is: 26 to 46 pixels large, turned, sheared, off the middle."""
    scale = SPRITE / rng.uniform(26, 46) * np.array([rng.uniform(1, 1.3), 1])  # narrower where seen from the side
    angle, shear = rng.uniform(-0.25, 0.25), rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]]
    matrix = turn * scale[:, None]
    shift = SPRITE / 2 - matrix @ (SIZE / 2 + rng.uniform(-5, 5, size=2))
    return (*matrix[0], shift[0], *matrix[1], shift[1])


def _blurred(picture: NDArray[np.floating], amount: float) -> NDArray[np.floating]:
    """Each pixel mixed with its four neighbours; 0 leaves it as it is."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    beside = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return (picture + amount * beside / 4) / (1 + amount)
