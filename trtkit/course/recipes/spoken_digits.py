"""The network and data of datasets/spoken_digits: `python -m trtkit.course.recipes.spoken_digits`.

Needs the programs espeak-ng and flite, which speak the words, and SciPy to bring them to one rate.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trtkit.course.recipes.export import report, ship, write
from trtkit.course.recipes.training import fit
from trtkit.course.speech import RATE, WORDS, log_mel

# espeak-ng speaks with accents and, each of them, with many voices; flite's voices were recorded from people
ACCENTS = ("en-gb", "en-us", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
VOICES = (
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee",
    "Marco", "Mario", "Michael", "Mike", "Nguyen", "Storm", "Tweaky", "adam", "anika", "antonio", "aunty",
    "belinda", "benjamin", "boris", "caleb", "croak", "david", "ed", "edward", "f1", "f2", "f3", "f4", "f5",
    "grandma", "grandpa", "gustave", "iven", "john", "klatt", "klatt2", "linda", "m1", "m2", "m3", "m4", "m5", "m6",
    "m7", "m8",
)  # fmt: skip
HELD_OUT_ACCENTS = ("en-gb-scotland", "en-029")
HELD_OUT_VOICES = (
    "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro",
    "shelby", "steph", "travis",
)  # fmt: skip
RECORDED, HELD_OUT_RECORDED = ("kal16", "awb", "slt"), ("rms",)


def espeak(word: str, accent: str, voice: str, rng: np.random.Generator) -> bytes:
    """A wav file of one word, at a random speed and pitch."""
    speed, pitch = (str(rng.integers(low, high)) for low, high in ((120, 200), (30, 71)))
    command = ["espeak-ng", "-v", f"{accent}+{voice}", "-s", speed, "-p", pitch, "--stdout", word]
    return subprocess.run(command, capture_output=True, check=True).stdout


def flite(word: str, voice: str, rng: np.random.Generator) -> bytes:
    """A wav file of one word, at a random speed and pitch."""
    stretch, pitch = f"duration_stretch={rng.uniform(0.8, 1.3):.2f}", f"int_f0_target_mean={rng.uniform(80, 220):.0f}"
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice, "--setf", stretch, "--setf", pitch, "-t", word, "-o", file.name]
        subprocess.run(command, capture_output=True, check=True)
        return Path(file.name).read_bytes()


def second(data: bytes, rng: np.random.Generator) -> np.ndarray:
    """A wav file as one second at 16 kHz: the word somewhere in it, loud or soft, with noise behind it."""
    from scipy.signal import resample_poly

    head = data.index(b"data")
    with wave.open(io.BytesIO(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8 : head + 4]
                              + (len(data) - head - 8).to_bytes(4, "little") + data[head + 8 :])) as file:  # fmt: skip
        rate, sound = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    sound = resample_poly(sound, RATE, rate)
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1][:RATE]
    out = np.zeros(RATE)
    start = rng.integers(0, RATE - len(sound) + 1)
    out[start : start + len(sound)] = sound / np.abs(sound).max() * rng.uniform(0.1, 0.9)
    return out + noise(rng) * np.sqrt(np.mean(out**2)) * 10 ** (-rng.uniform(3, 30) / 20)


def noise(rng: np.random.Generator) -> np.ndarray:
    """One second of noise of power 1, white or with more low tones than high ones, as a room or a street has."""
    spectrum = np.fft.rfft(rng.standard_normal(RATE))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20) ** rng.uniform(0, 1)
    sound = np.fft.irfft(spectrum, RATE)
    return sound / sound.std()


def speak(count: int, held_out: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spectrograms (count, 1, 32, 48) uint8 and which word each is, (count,) int64; one in four spoken by flite."""
    rng = np.random.default_rng(seed)
    accents, voices = (HELD_OUT_ACCENTS, HELD_OUT_VOICES) if held_out else (ACCENTS, VOICES)
    recorded = HELD_OUT_RECORDED if held_out else RECORDED
    sounds, answers = [], np.arange(count) % len(WORDS)
    for number, word in enumerate(WORDS[i] for i in answers):
        if number % 4 == 0:
            data = flite(word, str(rng.choice(recorded)), rng)
        else:
            data = espeak(word, str(rng.choice(accents)), str(rng.choice(voices)), rng)
        sounds.append(second(data, rng))
    pictures = np.concatenate([log_mel(np.array(sounds[i : i + 100], np.float32)) for i in range(0, count, 100)])
    return np.clip(np.rint(pictures * 100), 0, 255).astype(np.uint8), answers


def data() -> dict[str, np.ndarray]:
    """2,400 words to learn from, and 600 spoken with accents and by voices that are not among them."""
    x, y = speak(2400, held_out=False, seed=0)
    test_x, test_y = speak(600, held_out=True, seed=1)
    return {"train_x": x, "train_y": y, "test_x": test_x, "test_y": test_y}


def network(width: int = 64) -> nn.Module:
    """A DS-CNN (Zhang et al. 2017, Hello Edge): spectrograms (N, 1, 32, 48) float32 to logits (N, 10)."""

    def layer(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = layer(1, width, 5, 2)
    for stride in (1, 2, 1, 1):
        layers += [*layer(width, width, 3, stride, width), *layer(width, width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(width, 10))


def _masked(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SpecAugment (Park et al. 2019): some bands and frames of a batch are silent; and it is louder or softer."""
    x = x + torch.empty(len(x), 1, 1, 1).uniform_(-0.15, 0.15)
    for axis, most in ((2, 6), (3, 9)):
        long = int(torch.randint(most, ()))
        x.narrow(axis, int(torch.randint(x.shape[axis] - long + 1, ())), long).zero_()
    return x, y


def train(arrays: dict[str, np.ndarray]) -> nn.Module:
    """20 epochs on the 2,400."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(arrays["train_x"]).float() / 100, torch.from_numpy(arrays["train_y"])
    return fit(network(), (x,), y, loss=nn.functional.cross_entropy, epochs=20, augment=_masked)


if __name__ == "__main__":
    torch.set_num_threads(1)
    arrays = write("spoken_digits", data())
    ship(train(arrays), {"input": torch.zeros(2, 1, 32, 48)}, "spoken_digits")
    report("spoken_digits")
