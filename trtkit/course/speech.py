"""One second of sound as a picture for a network: how loud each band of frequencies is over time."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from trtkit.errors import DataError

RATE = 16_000  # samples per second
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BANDS, FRAMES = 32, 48
_WINDOW, _HOP = 512, 320  # 32 ms, every 20 ms
_QUIETEST = -11.5  # natural logarithm of the power that counts as silence


def log_mel(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """The spectrogram of one second at 16 kHz in 32 mel bands, 0 is silence, loud is 1: (N, 16000) to (N, 1, 32, 48).

    Each value is the logarithm of the power in one band during 32 ms, shifted so that silence is 0, and divided by ten.
    Band edges are equally far apart in mel(f) = 2595 log10(1 + f / 700), as in S. Davis and P. Mermelstein 1980.

    >>> tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)[None].astype(np.float32)
    >>> log_mel(tone).shape, int(log_mel(tone)[0, 0, :, 20].argmax())
    ((1, 1, 32, 48), 5)
    """
    sound = np.asarray(sound, np.float32)
    if sound.ndim != 2 or sound.shape[1] != RATE:
        raise DataError(f"log_mel() wants one second at {RATE} Hz, (N, {RATE}), got {sound.shape}.")
    starts = np.arange(FRAMES) * _HOP
    frames = sound[:, starts[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=2)) ** 2 / _WINDOW
    loud = np.log(power @ _mel_filters().T + np.exp(_QUIETEST)) - _QUIETEST
    return np.ascontiguousarray(loud.transpose(0, 2, 1)[:, None] / 10, np.float32)


@cache
def _mel_filters() -> NDArray[np.float64]:
    """Triangles, (bands, frequencies), each from its lower neighbour's peak to its upper one's."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2)
    peaks = 700 * (10 ** (mel / 2595) - 1)
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    low, middle, high = (peaks[i : i + BANDS, None] for i in range(3))
    rise, fall = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.clip(np.minimum(rise, fall), 0, None)
