"""cuDNN's kernels themselves against the reference, on a device that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import masks
from tinyattn.attention._core import vendor
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

B, N = 2, 4
# Roundings of half precision from queries to gradients: probabilities, the output, gradients of
# probabilities and of scores, the result.
ROUNDINGS = 5
# T, S
CASES = {
    "no mask": (64, 96, Mask()),
    "odd multiples of 2": (66, 34, Mask()),
    "causal": (130, 130, masks.causal()),
    "causal window": (134, 134, Mask(lookback=16, lookahead=0)),
    "itself only": (34, 34, Mask(lookback=0, lookahead=0)),
}


@pytest.fixture(autouse=True)
def _kernel():
    if (vendor.capability() or (0, 0)) < vendor.OLDEST:
        pytest.skip("no device with the kernels")


def both(attend, config, mask):
    def run(query, key, value, dout):
        out, pull = jax.vjp(lambda *heads: attend(config, *heads, mask), query, key, value)
        return out, *pull(dout)

    return run


def draws(T, S, K, H, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def near(got, want):
    """In norms of the largest, for a query that sees one key has no gradient."""
    step = float(jnp.finfo(got[0].dtype).eps) / 2
    got, want = ([np.asarray(x, np.float32) for x in xs] for xs in (got, want))
    most = max(np.linalg.norm(x) for x in want)
    for a, b in zip(got, want, strict=True):
        assert np.linalg.norm(a - b) <= ROUNDINGS * step * most


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_equals_reference_in_outputs_and_gradients(case, dtype):
    T, S, mask = CASES[case]
    for K, H in ((2, 8), (4, 64), (1, 128)):
        config, given = dense.Config(num_kv_heads=K), draws(T, S, K, H, dtype)
        assert vendor.applies(*given[:3], mask, vendor.capability())
        exact = jax.jit(both(dense.reference, config, mask))
        near(jax.jit(both(dense.attend, config, mask))(*given), exact(*map(jnp.float32, given)))


@pytest.mark.optimised
def test_many_seeds_are_each_alone():
    config, mask = dense.Config(num_kv_heads=2), masks.causal()
    seeds = [draws(32, 32, 2, 64, jnp.bfloat16, seed) for seed in range(3)]
    run = both(dense.attend, config, mask)
    many = jax.jit(jax.vmap(run))(*map(jnp.stack, zip(*seeds, strict=True)))
    for i, given in enumerate(seeds):
        near([x[i] for x in many], jax.jit(run)(*given))


@pytest.mark.optimised
def test_nan_is_read_by_those_that_see_it():
    query, key, value, dout = draws(32, 32, 2, 64, jnp.bfloat16)
    run = jax.jit(both(dense.attend, dense.Config(num_kv_heads=2), masks.causal()))
    clean, got = run(query, key, value, dout), run(query, key.at[0, 5, 1].set(jnp.nan), value, dout)
    assert np.isnan(got[0][0, 5:, 2:]).all()
    for part in (np.s_[1], np.s_[0, :5], np.s_[0, :, :2]):
        np.testing.assert_array_equal(*(np.asarray(x[0][part], np.float32) for x in (clean, got)))
