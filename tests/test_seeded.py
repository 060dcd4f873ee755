"""Arrays from a seed: the same bits for ever, of the published generator, and refused when damaged."""

import dataclasses
import math
import zlib

import jax
import numpy as np
import pytest
from schemes import RNG, params_of, scheme

from tinyattn import weights

# These never change: files that keep seeds alone depend on them.
GOLDEN = (
    ("0x1.7a7a0c0000000p-3", "-0x1.5d71560000000p-2", "-0x1.882b140000000p-3"),
    ("0x1.5b91840000000p-3", "0x1.5d1a380000000p-4", "0x1.b754980000000p-4"),
)
GOLDEN_WORDS = (0x3E3D3D06, 0xBEAEB8AB, 0xBE44158A, 0x3E2DC8C2, 0x3DAE8D1C, 0x3DDBAA4C)
GOLDEN_CRC = 0x687DB4DA
GOLDEN_PLACES = [0x12FFEEC1, 0xCA48BAB9]  # of a mask and of slots


def draw(shape, scale=0.5, kind="uniform"):
    return weights.Seeded.make(np.array([1, 2**32 - 5], np.uint32), shape, scale, kind)


def test_seeded_arrays_equal_the_stored_bits():
    leaf = draw((2, 3))
    assert leaf.value.dtype == np.float32
    assert tuple(tuple(float(x).hex() for x in row) for row in leaf.value) == GOLDEN
    assert tuple(leaf.value.view(np.uint32).reshape(-1)) == GOLDEN_WORDS
    large = draw((64, 48), 0.1)
    assert zlib.crc32(large.value.astype("<f4").tobytes()) == int(large.checksum) == GOLDEN_CRC


def philox(key, words):
    """Philox 4x64-10 in Python's integers.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3.
    """
    low, found = 2**64 - 1, []
    for counter in range(1, words // 4 + 2):  # NumPy counts before it draws
        c, k = [counter, 0, 0, 0], [key & low, key >> 64]
        for _ in range(10):
            p, q = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(q >> 64) ^ c[1] ^ k[0], q & low, (p >> 64) ^ c[3] ^ k[1], p & low]
            k = [(k[0] + 0x9E3779B97F4A7C15) & low, (k[1] + 0xBB67AE8584CAA73B) & low]
        found += c
    return found[:words]


def test_seeded_arrays_follow_the_published_generator():
    bits = [
        half >> 8
        for word in philox(1 << 32 | (2**32 - 5), 8)
        for half in (word & 0xFFFFFFFF, word >> 32)
    ]
    want = [(2 * b + 1 - 2**24) / 2**24 * 0.5 for b in bits][:15]
    np.testing.assert_array_equal(draw((5, 3)).value.reshape(-1), want)


def test_seeded_arrays_are_uniform_symmetric_and_never_zero():
    x = draw((400, 500), 2.0).value.astype(np.float64)
    assert np.abs(x).max() < 2 and (x != 0).all()
    assert len(np.unique(x)) > 0.98 * x.size
    n = x.size
    assert abs(x.mean()) < 4 * 2 / math.sqrt(3 * n)
    assert np.sqrt((x**2).mean()) == pytest.approx(2 / math.sqrt(3), rel=5e-3)
    counts = np.histogram(x, bins=50, range=(-2, 2))[0]
    assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 100  # chi-squared of 49 degrees: p < 1e-5
    grid = x / 2 * 2**24
    assert (grid % 2 == 1).all()  # odd numbers only, so that each has its mirror image


def test_a_damaged_seed_or_checksum_is_refused():
    leaf = weights.strip({"a": draw((4, 3))})["a"]
    np.testing.assert_array_equal(weights.regenerate(leaf).value, draw((4, 3)).value)
    for damage in (
        {"checksum": leaf.checksum ^ np.uint32(1)},
        {"seed": leaf.seed + np.uint32(1)},
        {"seed": leaf.seed[::-1]},
        {"scale": np.nextafter(leaf.scale, np.float32(1))},
        {"shape": (4, 2)},
    ):
        with pytest.raises(ValueError, match=r"checksum 0x.* was stored: the seed or the checksum"):
            weights.regenerate({"a": dataclasses.replace(leaf, **damage)})


def test_a_seeded_base_keeps_the_size_of_the_leaf_it_replaces():
    params = params_of("conv")
    parts = scheme(weights.presets.both(leaves="kernel$", w0="seed"))
    theta, other = (weights.leaves(parts.init(rng, params)) for rng in (RNG, jax.random.key(7)))
    bases = [path for path, leaf in theta.items() if isinstance(leaf, weights.Seeded)]
    assert len(bases) == len([path for path in weights.leaves(params) if path.endswith("kernel")])
    seeds = {tuple(theta[path].seed.tolist()) for path in bases}
    assert len(seeds) == len(bases)
    for path in bases:
        kernel = np.asarray(weights.leaves(params)[path.removesuffix("/w0")], np.float64)
        got = float(theta[path].scale)
        assert got == pytest.approx(math.sqrt(3 * (kernel**2).mean()), rel=1e-6)
        # A typed key picks the same seeds as the raw key it wraps.
        np.testing.assert_array_equal(other[path].value, theta[path].value)


def test_seeded_masks_and_slots_follow_the_same_words():
    words = np.array(philox(1 << 32 | (2**32 - 5), 15), np.uint64)
    mask = draw((5, 3), 4, "mask").value
    assert mask.dtype == bool and set(np.flatnonzero(mask)) == set(np.argsort(words)[:4])
    halves = [half for word in map(int, words) for half in (word & 0xFFFFFFFF, word >> 32)][:15]
    want = [(1 - 2 * (h & 1)) * ((h >> 1) * 7 // 2**31 + 1) for h in halves]
    slots = draw((5, 3), 7, "slots").value
    assert slots.dtype == np.int32 and slots.reshape(-1).tolist() == want
    large = draw((100, 90), 7, "slots").value
    assert set(np.unique(np.abs(large))) == set(range(1, 8)) and abs(np.sign(large).mean()) < 0.05
    sums = [int(draw((64, 48), *given).checksum) for given in ((500, "mask"), (9, "slots"))]
    assert sums == GOLDEN_PLACES


def test_a_seed_of_a_mask_stores_four_words_and_counts_no_numbers():
    leaf = weights.strip({"a": draw((64, 48), 500, "mask")})
    assert weights.sizes(leaf) == (0, 0, 16)
    assert weights.regenerate(leaf)["a"].value.sum() == 500
