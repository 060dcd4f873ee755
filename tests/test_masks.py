"""Masks: literal tables, combination, and exact counts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import masks
from tinyattn.masks import Mask


def table(mask, T, S, b=0):
    return np.asarray(mask.dense(T, S))[b].astype(int).tolist()


def test_causal_is_lower_triangular():
    assert table(masks.causal(), 3, 3) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_window_counts_the_token_itself_to_both_sides():
    assert table(masks.window(2), 4, 4) == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
    ]


def test_causal_window():
    assert table(masks.causal() & masks.window(2), 4, 4) == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


def test_padding_masks_columns_of_its_own_example():
    mask = masks.padding(jnp.array([[True, False, True], [False, False, False]]))
    assert table(mask, 2, 3) == [[1, 0, 1], [1, 0, 1]]
    assert table(mask, 2, 3, b=1) == [[0, 0, 0], [0, 0, 0]]


def test_segments_see_themselves():
    assert table(masks.segments(jnp.array([[5, 5, 7]])), 3, 3) == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_segments_of_two_sequences_and_of_two_kinds():
    mask = masks.segments(jnp.array([[0, 1]]), jnp.array([[1, 0, 0]]))
    assert table(mask, 2, 3) == [[0, 1, 1], [1, 0, 0]]
    both = mask & masks.segments(jnp.array([[3, 3]]), jnp.array([[3, 3, 4]]))
    assert table(both, 2, 3) == [[0, 1, 0], [1, 0, 0]]


def every_mask(T):
    rng = np.random.default_rng(0)
    return {
        "full": Mask(),
        "causal": masks.causal(),
        "window": masks.window(3),
        "wide": masks.window(100),
        "padding": masks.padding(jnp.array(rng.random((2, T)) > 0.4)),
        "segments": masks.segments(jnp.array(rng.integers(0, 3, (2, T)))),
    }


@pytest.mark.parametrize("T", [1, 2, 7, 12])
def test_counts_are_the_sums_of_the_array_for_every_combination(T):
    """In any order, as all of two are, below."""
    parts = every_mask(T)
    for chosen in itertools.combinations_with_replacement(parts, 3):
        mask = parts[chosen[0]] & parts[chosen[1]] & parts[chosen[2]]
        counted = np.asarray(mask.dense(T, T)).sum(2)
        np.testing.assert_array_equal(mask.seen(T, T), counted, err_msg=str(chosen))
        np.testing.assert_array_equal(mask.pairs(T, T), counted.sum(1), err_msg=str(chosen))


def test_pairs_of_two_lengths():
    for T, S in ((3, 8), (8, 3)):
        for mask in (masks.causal(), masks.window(2), Mask(lookback=1), Mask(lookahead=2)):
            assert mask.pairs(T, S).sum() == np.asarray(mask.dense(T, S)).sum()


def test_pairs_of_a_long_sequence_need_no_array():
    T = 1 << 17
    w = 64
    assert (masks.causal() & masks.window(w)).pairs(T, T) == [T * w - w * (w - 1) // 2]


def test_and_allows_what_both_allow():
    parts = every_mask(9)
    for a, b in itertools.product(parts.values(), repeat=2):
        np.testing.assert_array_equal((a & b).dense(9, 9), a.dense(9, 9) & b.dense(9, 9))


def test_allowed_masks_keys_outside_the_sequence():
    block = Mask().allowed(jnp.arange(2), jnp.arange(-1, 4), 3)
    assert np.asarray(block)[0].astype(int).tolist() == [[0, 1, 1, 1, 0]] * 2
    valid = masks.padding(jnp.array([[True, True, True]]))
    block = valid.allowed(jnp.arange(2), jnp.arange(-1, 4), 3)
    assert np.asarray(block)[0].astype(int).tolist() == [[0, 1, 1, 1, 0]] * 2


def test_kinds_name_what_a_mask_uses():
    assert Mask().kinds == frozenset()
    assert masks.causal().kinds == {"causal"}
    assert masks.window(2).kinds == {"window"}
    assert (masks.causal() & masks.window(2)).kinds == {"causal", "window"}
    mask = masks.padding(jnp.ones((1, 2), bool)) & masks.segments(jnp.zeros((1, 2), int))
    assert mask.kinds == {"padding", "segments"}


def test_a_mask_passes_through_jit():
    mask = masks.causal() & masks.padding(jnp.array([[True, False]]))
    np.testing.assert_array_equal(jax.jit(lambda m: m.dense(2, 2))(mask), mask.dense(2, 2))


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        masks.window(0)
    with pytest.raises(ValueError, match="dtype int32"):
        masks.padding(jnp.ones((1, 2), jnp.int32))
