"""Collect the course's photographs from the packages that carry them into datasets/photos/.

    pip download --no-deps scipy==1.9.3
    python datasets/make_photos.py scipy-1.9.3-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl

The others come from the installed scikit-image (0.26.0). Each photograph is scaled down so that
its shorter side has at most 400 pixels and is stored as PNG: a JPEG decodes to slightly different pixels with different
libraries, and the lessons compare their outputs exactly. Licences and sources: datasets/photos/README.md.
"""

from __future__ import annotations

import bz2
import sys
import zipfile
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

TARGET = Path(__file__).parent / "photos"
SHORT_SIDE = 400
SKIMAGE = {
    "cat": "chelsea.png", "coffee": "coffee.png", "camera": "camera.png", "rocket": "rocket.jpg",
    "astronaut": "astronaut.png", "clock": "clock_motion.png", "retina": "retina.jpg",
    "galaxies": "hubble_deep_field.jpg",
}  # fmt: skip


def originals(scipy_wheel: Path) -> dict[str, Image.Image]:
    """Every photograph as its package holds it, as RGB."""
    data = Path(skimage.__file__).parent / "data"
    images = {name: Image.open(data / file) for name, file in SKIMAGE.items()}
    with zipfile.ZipFile(scipy_wheel) as archive:
        pixels = np.frombuffer(bz2.decompress(archive.read("scipy/misc/face.dat")), np.uint8)
    images["raccoon"] = Image.fromarray(pixels.reshape(768, 1024, 3))
    return {name: image.convert("RGB") for name, image in images.items()}


def shrink(image: Image.Image) -> Image.Image:
    """``image`` with its shorter side at most SHORT_SIDE pixels, its proportions kept."""
    factor = min(1.0, SHORT_SIDE / min(image.size))
    if factor == 1.0:
        return image
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def main(scipy_wheel: str) -> None:
    """Write one PNG a photograph and say the sizes."""
    TARGET.mkdir(exist_ok=True)
    for name, image in sorted(originals(Path(scipy_wheel)).items()):
        small = shrink(image)
        if name == "camera":
            small = small.convert("L")
        path = TARGET / f"{name}.png"
        small.save(path, optimize=True)
        print(f"{path.name}: {small.width} x {small.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
