"""Arrays from a seed, the same bits on every machine and with every release.

NumPy promises the stream of its Philox bit generator, not that of its distributions, and JAX promises
neither across releases. So the raw 64-bit words are made into floats here, by integer operations and
one IEEE multiplication.
"""

import zlib

import numpy as np

# 24 bits fill the significand of a float32, so the conversion is exact.
_BITS = 24


def uniform(seed: np.ndarray, shape: tuple[int, ...], scale: np.float32) -> np.ndarray:
    """Uniform float32 numbers within +-scale.

    Args:
      seed: uint32 [2], the key of Philox 4x64.
      shape: Of the result.
      scale: Half the width of the interval.
    """
    key = int(seed[0]) << 32 | int(seed[1])
    count = int(np.prod(shape, dtype=np.int64))
    words = np.random.Philox(key=key).random_raw((count + 1) // 2)
    # Two 32-bit halves a word, low half first on machines of either byte order.
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=1).reshape(-1)
    # Odd numbers only: symmetric about zero, and never zero.
    centred = (halves[:count] >> np.uint64(32 - _BITS)).astype(np.int64) * 2 + 1 - (1 << _BITS)
    unit = centred.astype(np.float32) * np.float32(2.0**-_BITS)
    return (unit * np.float32(scale)).reshape(shape)


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the array's little-endian bytes."""
    return zlib.crc32(np.ascontiguousarray(array, "<f4").tobytes())
