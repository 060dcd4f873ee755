"""Attention within hash buckets: facts computed by hand, and growth."""

import functools

import jax
import numpy as np
import pytest

from tinyattn import cost, masks
from tinyattn.attention.full import dense
from tinyattn.attention.sparse import lsh
from tinyattn.masks import Mask

# One number a head and two buckets: the sign is the hash, whichever way the rotation points.
SIGNS = np.array([1, -1, 1, 1, -1, 1], np.float32).reshape(1, 6, 1, 1)
VALUES = 2 ** np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1)

attend = jax.jit(lsh.attend, static_argnums=0)


def signs(mask, query=1.0, **fields):
    """What queries of one sign see of keys of both signs."""
    fields = {"num_heads": 1, "buckets": 2, "rounds": 1, "span": 2} | fields
    out = attend(lsh.Config(**fields), np.full_like(SIGNS, query), SIGNS, VALUES, mask)
    return np.ravel(out)


def means(places):
    """All keys seen have the same score."""
    return [np.mean([2.0**place for place in row]) for row in places]


def test_rotations_are_pinned_and_nearly_normal():
    found = lsh.rotations(lsh.Config(buckets=256, rounds=8, seed=3), 64)
    assert found.shape == (8, 64, 128)
    assert abs(found.mean()) < 0.01
    assert abs(found.std() - 1) < 0.01
    small = lsh.rotations(lsh.Config(buckets=4, rounds=1, seed=3), 2)
    np.testing.assert_array_equal(small.ravel(), [1.375, -2.125, -1.875, 0.625])


def test_a_hash_is_of_the_direction():
    config = lsh.Config(buckets=8, rounds=3)
    x = np.random.default_rng(0).standard_normal((2, 50, 4, 6)).astype(np.float32)
    hashes = jax.jit(functools.partial(lsh.hashes, config))
    found = np.asarray(hashes(x))
    assert set(np.unique(found)) == set(range(8))
    np.testing.assert_array_equal(hashes(5 * x), found)
    np.testing.assert_array_equal(hashes(-x), (found + 4) % 8)
    assert not np.array_equal(found[:, :, 0], found[:, :, 1])


def test_the_nearest_past_keys_of_the_bucket_by_hand():
    seen = [[0], [0], [0, 2], [2, 3], [2, 3], [3, 5]]
    np.testing.assert_allclose(signs(masks.causal()), means(seen), rtol=1e-6)


def test_keys_to_both_sides_by_hand():
    seen = [[0, 2], [0, 2], [2, 3], [3, 5], [3, 5], [3, 5]]
    np.testing.assert_allclose(signs(Mask()), means(seen), rtol=1e-6)


def test_a_query_alone_in_its_bucket_gives_zeros():
    got = signs(masks.causal(), query=-1.0)
    np.testing.assert_allclose(got, [0, 2, 2, 2, *means([[1, 4], [1, 4]])], rtol=1e-6)


def test_padding_is_in_no_bucket_and_fills_no_span():
    valid = np.array([[True, True, True, False, True, True]])
    got = signs(masks.causal() & masks.padding(valid))
    seen = [[0], [0], [0, 2], [0, 2], [0, 2], [2, 5]]
    np.testing.assert_allclose(got, means(seen), rtol=1e-6)


def test_rounds_that_find_the_same_change_nothing():
    got = signs(masks.causal(), rounds=3)
    np.testing.assert_allclose(got, signs(masks.causal()), rtol=1e-6)


def test_one_bucket_is_a_window():
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((2, 11, 2, 4)).astype(np.float32) for _ in range(3)]
    config = lsh.Config(num_heads=2, buckets=1, span=4, rounds=2, piece=3)
    plain = jax.jit(functools.partial(dense.reference, dense.Config(num_heads=2)))
    want = plain(*inputs, Mask(lookback=3, lookahead=0))
    np.testing.assert_allclose(attend(config, *inputs, masks.causal()), want, atol=1e-6)


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_work_grows_linearly(length):
    config = lsh.Config(num_heads=2, buckets=16, span=32, rounds=4)
    parts = lsh.flops(config, masks.causal(), D=8, T=length, S=length)
    assert parts["scores"].executed == parts["mix"].executed == 2 * 8 * length * 4 * 32
    # Queries and keys, to eight axes in each of four rounds.
    assert parts["hash"].executed == 2 * (2 * 8 * length * 4 * 8)


@pytest.mark.cpu
def test_no_copies_of_all_keys_are_held():
    config, x = lsh.Config(num_heads=1, rounds=4), jax.ShapeDtypeStruct((1, 4096, 1, 4), "float32")
    loss = jax.grad(lambda *x: lsh.attend(config, *x, masks.causal()).sum(), (0, 1, 2))
    assert cost.peak_bytes(jax.jit(loss).lower(x, x, x).compile()) < 4096 * 4096 // 4


@pytest.mark.parametrize("buckets", [0, 3])
def test_an_odd_number_of_buckets_is_refused(buckets):
    with pytest.raises(ValueError, match=f"buckets={buckets} must be an even number"):
        lsh.Config(buckets=buckets)
