"""The course's photographs, and how they become a classifier's input and output.

Preprocessing is ImageNet's usual one (shorter side to 256, centre crop of 224, normalise), written with Pillow and
NumPy so that a lesson can show it; a test holds it against torchvision's transform, pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trtkit.course.paths import dataset
from trtkit.errors import DataError, MissingError

SIZE = 224
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

# What a right answer would be. A photograph that shows none of ImageNet's 1000 classes has no right answer.
TRUTH = {"cat": ("Egyptian cat", "tabby", "tiger cat"), "coffee": ("espresso", "cup"), "camera": ("tripod",),
         "rocket": ("missile", "space shuttle"), "clock": ("wall clock", "analog clock")}  # fmt: skip
MAX_PIXELS = 50_000_000


class Guess(NamedTuple):
    """One answer of a classifier: a label and its softmax probability."""

    label: str
    probability: float


def photos() -> dict[str, NDArray[np.uint8]]:
    """All photographs by name, each (H, W, 3) uint8, in alphabetical order. Cards: datasets/photos/README.md.

    >>> photos()["cat"].shape
    (300, 451, 3)
    """
    return {path.stem: read_image(path) for path in sorted(dataset("photos").glob("*.png"))}


def read_image(path: object) -> NDArray[np.uint8]:
    """The image file at ``path`` as (H, W, 3) uint8; DataError when it is no image or has over 50 megapixels."""
    try:
        with Image.open(str(path)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS:,}.")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def preprocess(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An (H, W, 3) uint8 photograph as a network's input, (1, 3, 224, 224) float32.

    >>> preprocess(photos()["cat"]).shape
    (1, 3, 224, 224)
    """
    picture = _picture(image)
    if picture.width <= picture.height:
        size = (256, int(256 * picture.height / picture.width))
    else:
        size = (int(256 * picture.width / picture.height), 256)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = round((picture.width - SIZE) / 2), round((picture.height - SIZE) / 2)
    return normalise(np.asarray(picture.crop((left, top, left + SIZE, top + SIZE))))[None]


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (H, W, 3) uint8 as ImageNet's normalised planes (3, H, W) float32.

    >>> normalise(np.zeros((1, 1, 3), np.uint8)).ravel().round(3)
    array([-2.118, -2.036, -1.804], dtype=float32)
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((scaled - MEAN) / STD).transpose(2, 0, 1))


def to_pixels(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The way back from ``normalise``, for drawing: (3, H, W) float32 to (H, W, 3) uint8.

    >>> to_pixels(normalise(np.full((1, 1, 3), 7, np.uint8))).ravel()
    array([7, 7, 7], dtype=uint8)
    """
    scaled = x.transpose(1, 2, 0) * STD + MEAN
    return np.clip(np.rint(scaled * 255), 0, 255).astype(np.uint8)


def views(count: int, seed: int = 0) -> NDArray[np.float32]:
    """``count`` random views of the photographs, (count, 3, 224, 224) float32: a stand-in for a calibration set.

    A view is a random crop (40 to 100 % of the area), mirrored half of the time, with brightness, contrast and colour
    changed by up to 30 %. View ``i`` shows photograph ``view_names(count)[i]``. There are only nine photographs, so
    the views of one are strongly correlated: a hundred views hold far less than a hundred photographs. They serve to
    find activation ranges and to see whether two networks agree, not to measure accuracy.

    >>> views(2, seed=1).shape
    (2, 3, 224, 224)
    """
    if count < 1:
        raise DataError(f"views() needs a count of at least 1, got {count}.")
    rng, pictures = np.random.default_rng(seed), photos()
    return np.stack([_view(pictures[name], rng) for name in view_names(count)])


def view_names(count: int) -> list[str]:
    """Which photograph each of ``views(count)`` shows: they take turns.

    >>> view_names(3)
    ['astronaut', 'camera', 'cat']
    """
    names = [path.stem for path in sorted(dataset("photos").glob("*.png"))]
    return [names[i % len(names)] for i in range(count)]


def labels() -> list[str]:
    """ImageNet's 1000 class names in the networks' order (they come with torchvision).

    >>> len(labels()), labels()[285]
    (1000, 'Egyptian cat')
    """
    try:
        from torchvision.models import MobileNet_V2_Weights
    except ImportError as error:
        raise MissingError("The ImageNet labels come with torchvision, which is not installed. "
                           "Install it with: pip install torchvision") from error  # fmt: skip
    return list(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (..., C) as probabilities that sum to 1 along the last axis.

    >>> softmax(np.zeros((1, 4), np.float32))
    array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


def top(logits: NDArray[np.float32], k: int = 5, names: Sequence[str] | None = None) -> list[Guess]:
    """The ``k`` likeliest classes of one image's logits, (C,) or (1, C) float32, likeliest first.

    >>> top(np.array([0.0, 2.0, 1.0], np.float32), k=1, names=["cat", "dog", "cow"])[0].label
    'dog'
    """
    flat = np.asarray(logits).reshape(-1)
    names = labels() if names is None else names
    if flat.size != len(names):
        raise DataError(f"top() wants the logits of one image, {len(names)} of them, got shape {np.shape(logits)}.")
    probabilities = softmax(flat)
    order = np.argsort(-flat, kind="stable")[:k]
    return [Guess(names[i], float(probabilities[i])) for i in order]


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise DataError(f"An image is a non-empty (H, W, 3) uint8 array, got {image.shape} {image.dtype}.")
    return Image.fromarray(image)


def _view(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    side = int(np.sqrt(rng.uniform(0.4, 1.0)) * min(height, width))
    top_, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    crop = image[top_ : top_ + side, left : left + side]
    square = np.asarray(_picture(np.ascontiguousarray(crop)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    if rng.random() < 0.5:
        square = square[:, ::-1]
    brightness, contrast, colour = rng.uniform(0.7, 1.3, size=3)
    pixels = square.astype(np.float32) * brightness
    pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * colour
    return normalise(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
