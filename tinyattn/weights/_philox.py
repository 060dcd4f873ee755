"""Arrays from a seed, the same bits on every machine and with every release.

NumPy promises the stream of its Philox bit generator, not that of its distributions, and JAX promises
neither across releases. So the raw 64-bit words are made into numbers here, by integer operations and, for
floats, one IEEE multiplication.
"""

import zlib

import numpy as np

# 24 bits fill the significand of a float32, so the conversion is exact.
_BITS = 24


def _halves(seed: np.ndarray, count: int) -> np.ndarray:
    """`count` words of 32 bits, as uint64."""
    words = _words(seed, (count + 1) // 2)
    # Two 32-bit halves a word, low half first on machines of either byte order.
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=1)
    return halves.reshape(-1)[:count]


def _words(seed: np.ndarray, count: int) -> np.ndarray:
    return np.random.Philox(key=int(seed[0]) << 32 | int(seed[1])).random_raw(count)


def uniform(seed: np.ndarray, shape: tuple[int, ...], scale: np.float32) -> np.ndarray:
    """Uniform float32 numbers within +-scale.

    Args:
      seed: uint32 [2], the key of Philox 4x64.
      shape: Of the result.
      scale: Half the width of the interval.
    """
    halves = _halves(seed, int(np.prod(shape, dtype=np.int64)))
    # Odd numbers only: symmetric about zero, and never zero.
    centred = (halves >> np.uint64(32 - _BITS)).astype(np.int64) * 2 + 1 - (1 << _BITS)
    unit = centred.astype(np.float32) * np.float32(2.0**-_BITS)
    return (unit * np.float32(scale)).reshape(shape)


def mask(seed: np.ndarray, shape: tuple[int, ...], scale: np.float32) -> np.ndarray:
    """A bool array of which `scale` entries, a whole number, are True: any ones, equally likely."""
    words = _words(seed, int(np.prod(shape, dtype=np.int64)))
    found = np.zeros(words.size, bool)
    found[np.argsort(words, kind="stable")[: int(scale)]] = True
    return found.reshape(shape)


def slots(seed: np.ndarray, shape: tuple[int, ...], scale: np.float32) -> np.ndarray:
    """int32 numbers s in 1..scale, a whole number, or -s: a place in a pool, and a random sign."""
    halves = _halves(seed, int(np.prod(shape, dtype=np.int64)))
    # The high bits of a product of 31 bits with the size are a place; the lowest bit is the sign.
    place = ((halves >> np.uint64(1)) * np.uint64(int(scale))) >> np.uint64(31)
    sign = 1 - 2 * (halves & np.uint64(1)).astype(np.int32)
    return ((place.astype(np.int32) + 1) * sign).reshape(shape)


DRAWS = {"uniform": uniform, "mask": mask, "slots": slots}


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the array's little-endian bytes."""
    little = array.dtype.newbyteorder("<")
    return zlib.crc32(np.ascontiguousarray(array, little).tobytes())
