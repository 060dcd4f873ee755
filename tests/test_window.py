"""Sliding windows: facts computed by hand, dilation, and growth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import masks
from tinyattn.attention.sparse import window
from tinyattn.masks import Mask

T = 8
VALUES = 2.0 ** np.arange(T).reshape(1, T, 1, 1)


def see(mask, **fields):
    """Equal scores: the mean of the values that a query sees."""
    config = window.Config(num_heads=1, **fields)
    attend = jax.jit(functools.partial(window.attend, config))
    same = jnp.ones((1, T, 1, 1))
    return np.asarray(attend(same, same, VALUES, mask)).ravel()


def means(rows):
    return [np.mean([2.0**s for s in row]) if row else 0.0 for row in rows]


def test_a_window_of_one_is_the_value():
    np.testing.assert_array_equal(see(Mask(), window=1, block=4), VALUES.ravel())


def test_every_third_token_to_both_sides_and_backwards():
    rows = [[0, 3], [1, 4], [2, 5], [0, 3, 6], [1, 4, 7], [2, 5], [3, 6], [4, 7]]
    np.testing.assert_allclose(see(Mask(), window=2, dilation=3), means(rows), rtol=1e-6)
    causal = [[s for s in row if s <= t] for t, row in enumerate(rows)]
    got = see(masks.causal(), window=2, dilation=3, block=1)
    np.testing.assert_allclose(got, means(causal), rtol=1e-6)


def test_dilation_under_a_band_of_the_mask_and_padding():
    valid = masks.padding(np.arange(T)[None] != 3)
    rows = [[0, 6], [1, 4, 7], [2, 5], [0, 6], [1, 4, 7], [2, 5], [0, 6], [1, 4, 7]]
    np.testing.assert_allclose(see(valid, window=3, dilation=3), means(rows), rtol=1e-6)
    # A band of less than the dilation leaves the token itself.
    np.testing.assert_allclose(see(masks.window(3), window=3, dilation=3), VALUES.ravel())
    got = see(masks.window(4) & masks.causal(), window=3, dilation=3)
    np.testing.assert_allclose(got, means([[t] if t < 3 else [t - 3, t] for t in range(T)]))


def test_a_dilation_longer_than_the_text_leaves_the_token_itself():
    np.testing.assert_array_equal(see(Mask(), window=4, dilation=100), VALUES.ravel())


@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_work_grows_linearly(causal, dilation):
    config = window.Config(num_heads=4, window=16, dilation=dilation)
    mask = masks.causal() if causal else Mask()
    for length in (1000, 2000, 4001):
        work = window.flops(config, mask, D=24, T=length, S=length)
        own = -(-length // dilation)
        # Blocks of 16 queries see 31 keys when causal and 46 when not.
        pairs = dilation * -(-own // 16) * 16 * (31 if causal else 46)
        assert work["scores"].executed == 2 * 24 * pairs
    useful = window.flops(config, masks.causal(), D=24, T=1000, S=1000)["scores"].useful
    rows = [min(16, t // dilation + 1) for t in range(1000)]
    assert useful == 2 * 24 * sum(rows)


def test_keys_that_fill_up_whole_vectors_are_not_seen():
    """Blocks of 40 queries see 79 keys, and 80 are read; of long windows more than the text is long."""
    rng = np.random.default_rng(0)
    for window_, length in ((40, 200), (40, 190), (90, 170)):
        config = window.Config(num_heads=1, window=window_, block=40)
        plan = window.plan(config, masks.causal(), length)
        assert plan.blocks > 1 and (plan.behind + plan.C) % 16 == 0 and plan.behind >= window_
        query, key, value = rng.standard_normal((3, 2, length, 1, 4)).astype(np.float32)
        both = [
            jax.jit(functools.partial(f, config))(query, key, value, masks.causal())
            for f in (window.attend, window.reference)
        ]
        np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize("fields", [{"window": 0}, {"dilation": 0}, {"block": -1}])
def test_illegal_sizes_are_named(fields):
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        window.Config(**fields)
