"""One microscope photograph of cells' nuclei as tiles: the upper rows to learn from, the lower ones to be judged by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

TRAIN_ROWS = 320  # of 512
TILE = 64
DARK, BRIGHT = 8, 116  # one in a hundred pixels is darker, one in a hundred brighter

Tiles = tuple[NDArray[np.float32], NDArray[np.float32]]


def crops(arrays: Mapping[str, np.ndarray], count: int, seed: int) -> Tiles:
    """Random tiles of the upper rows: photograph, mostly from 0 to 1, and mask of 0 and 1.

    Both are (count, 1, 64, 64) float32.

    Args:
        arrays: datasets/nuclei/data.npz: "image" (512, 512) uint8 and "mask" (512, 512) bool.
    """
    rng = np.random.default_rng(seed)
    places = zip(rng.integers(0, TRAIN_ROWS - TILE + 1, count), rng.integers(0, 512 - TILE + 1, count), strict=True)
    both = _both(arrays)
    tiles = np.stack([both[:, y : y + TILE, x : x + TILE] for y, x in places])
    return tiles[:, :1], tiles[:, 1:]


def lower_tiles(arrays: Mapping[str, np.ndarray]) -> Tiles:
    """The lower rows cut into tiles that do not overlap, as `crops` gives them: 24 of them.

    >>> lower_tiles({"image": np.zeros((512, 512), np.uint8), "mask": np.zeros((512, 512), bool)})[0].shape
    (24, 1, 64, 64)
    """
    both = _both(arrays)[:, TRAIN_ROWS:]
    down, across = both.shape[1] // TILE, both.shape[2] // TILE
    tiles = both.reshape(2, down, TILE, across, TILE).transpose(1, 3, 0, 2, 4).reshape(-1, 2, TILE, TILE)
    return tiles[:, :1], tiles[:, 1:]


def _both(arrays: Mapping[str, np.ndarray]) -> NDArray[np.float32]:
    light = (arrays["image"].astype(np.float32) - DARK) / (BRIGHT - DARK)
    return np.stack([light, arrays["mask"].astype(np.float32)])
