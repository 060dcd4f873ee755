"""Speech as frames: a recording's samples, and the logarithm of its energies in bands of the mel scale."""

import io
from typing import Any

import numpy as np
import scipy.signal
import soundfile

# 25 ms, of which the next begins 10 ms later.
WINDOW, HOP = 0.025, 0.010
# Of full scale; what is more silent is as silent.
FLOOR = 1e-5


def samples(audio: Any, rate: int, where: str) -> np.ndarray:
    """float32 [n], -1 to 1 in one channel at `rate` Hz, of a sound file, or of a row that has its bytes.

    Raises:
      ValueError: It is no sound file, or has no samples, or is silent throughout.
    """
    source = io.BytesIO(audio["bytes"]) if isinstance(audio, dict) and audio.get("bytes") else audio
    try:
        found, own = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where} is no sound file that can be read: {error}") from error
    mono = found.mean(axis=1)
    if not np.abs(mono).max(initial=0.0) > 0:
        raise ValueError(f"{where} is silent: {len(mono)} samples, none other than 0")
    if own != rate:
        both = np.gcd(own, rate)
        mono = scipy.signal.resample_poly(mono, rate // both, own // both)
    return mono.astype(np.float32)


def mel(frequency):
    """Hz to mel.

    Source: O'Shaughnessy 1987, "Speech communication", page 150; as HTK has it.
    """
    return 2595.0 * np.log10(1.0 + np.asarray(frequency) / 700.0)


def bands(count: int, size: int, rate: int) -> np.ndarray:
    """[size // 2 + 1, count], triangles over the frequencies of a transform, evenly apart in mel.

    Each is 1 at its middle, which is where its neighbours are 0.

    Source: Davis & Mermelstein 1980, https://doi.org/10.1109/TASSP.1980.1163420, figure 1.
    """
    edges = np.linspace(0.0, mel(rate / 2), count + 2)
    at = mel(np.arange(size // 2 + 1) * rate / size)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def log_mel(sound: np.ndarray, rate: int, count: int) -> np.ndarray:
    """float32 [frames, count], natural logarithms of energies; at least one frame."""
    window, hop = round(WINDOW * rate), round(HOP * rate)
    size = 1 << (window - 1).bit_length()
    sound = np.pad(sound, (0, max(0, window - len(sound))))
    starts = np.arange(0, len(sound) - window + 1, hop)
    frames = sound[starts[:, None] + np.arange(window)] * scipy.signal.get_window("hann", window)
    energy = np.abs(np.fft.rfft(frames, size)) ** 2 / window
    return np.log(energy @ bands(count, size, rate) + FLOOR).astype(np.float32)
