"""The softmax core where it streams: above 128 queries or keys on a CPU, block by block of queries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, cost, masks
from tinyattn.attention._core import softmax
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

pytestmark = [pytest.mark.optimised, pytest.mark.cpu]  # which alone streams

B, N, H = 2, 4, 6
LENGTH = 129  # one more key than stays in one block


def draws(T, S, K=N, B=B, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def padded(S):
    """Two keys in three, the first of example 1 hidden, so that some causal rows see nothing."""
    valid = np.random.default_rng(1).random((B, S)) > 0.3
    valid[1, :3] = False
    return masks.padding(valid)


def segmented(T, B=B):
    return masks.segments(np.random.default_rng(2).integers(0, 3, (B, T)))


def graded(attend, query, key, value, weight, mask):
    """Outputs and the gradients of query, key and value for this weight of the outputs."""
    out, pull = jax.vjp(lambda *heads: attend(dense.Config(), *heads, mask), query, key, value)
    return out, pull(weight.astype(out.dtype))


value_and_grads = jax.jit(graded, static_argnums=0)
# The formula to compare with need not be compiled as users do.
PLAINLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
expected = functools.partial(
    jax.jit(graded, static_argnums=0, compiler_options=PLAINLY), dense.reference
)


CASES = {
    "one key too many": (LENGTH, LENGTH, N, Mask()),
    "causal": (LENGTH, LENGTH, 2, masks.causal()),
    "causal and padding": (300, 300, 1, masks.causal() & padded(300)),
    "window": (300, 300, N, masks.window(140)),
    "segments of one batch row": (150, 150, 2, segmented(150, B=1)),
    "all": (300, 300, 2, masks.causal() & masks.window(90) & padded(300) & segmented(300)),
    "few queries": (5, 200, 2, padded(200)),
    "other keys": (200, 150, 1, Mask()),
    "few keys": (200, 7, 2, padded(7)),
    "few keys, in several blocks": (1100, 7, 4, padded(7)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_reference_in_outputs_and_gradients(case):
    T, S, K, mask = CASES[case]
    assert softmax.streams(T, S)
    out, grads = value_and_grads(dense.attend, *draws(T, S, K), mask)
    exact, exact_grads = expected(*draws(T, S, K), mask)
    assert out.shape == (B, T, N, H)
    np.testing.assert_allclose(out, exact, atol=1e-5, rtol=1e-5)
    for name, got, want in zip(("query", "key", "value"), grads, exact_grads, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5, err_msg=name)


def test_rows_that_see_nothing_are_zero_with_finite_gradients():
    """Causal rows before the first key, and a whole example of padding; scores are far from 0."""
    valid = np.ones((B, LENGTH), bool)
    valid[0] = valid[1, :70] = False
    query, key, value, weight = draws(LENGTH, LENGTH, 2)
    mask = masks.causal() & masks.padding(valid)
    out, grads = jax.tree.map(
        np.asarray, value_and_grads(dense.attend, 50 * query, 50 * key, value, weight, mask)
    )
    assert not out[0].any() and not out[1, :70].any()
    assert np.abs(out[1, 70:]).max(axis=(1, 2)).min() > 0.1
    for grad in grads:
        assert np.isfinite(grad).all()
        assert not grad[0].any() and not grad[1, :70].any()
    assert np.isfinite(out).all() and grads[2][1, 70:].any()


def test_hidden_keys_and_other_examples_change_no_bit():
    query, key, value, weight = draws(LENGTH, LENGTH)
    mask = masks.causal() & padded(LENGTH)
    run = functools.partial(value_and_grads, dense.attend, weight=weight, mask=mask)
    before, grads = jax.tree.map(np.asarray, run(query, key, value))
    hidden = ~mask.key_valid[:, :, None, None]
    dirty = [np.where(hidden, np.float32(1e4), x) for x in (key, value)]
    out, dirty_grads = run(query, *dirty)
    np.testing.assert_array_equal(out, before)
    np.testing.assert_array_equal(dirty_grads[0], grads[0])
    late = [x.copy() for x in (query, key, value)]
    for x in late:
        x[:, 100:], x[0] = 7.0, 3.0
    out = np.asarray(run(*late)[0])
    np.testing.assert_array_equal(out[1, :100], before[1, :100])
    assert (out[1, 100:] != before[1, 100:]).any() and (out[0] != before[0]).any()


def test_bfloat16_stays_within_its_rounding():
    heads = draws(LENGTH, LENGTH, 2, dtype=jnp.bfloat16)
    out, grads = value_and_grads(dense.attend, *heads, masks.causal())
    assert {x.dtype for x in (out, *grads)} == {jnp.dtype("bfloat16")}
    wide = [x.astype(np.float32) for x in heads]
    exact = expected(*wide, masks.causal())
    for got, want in zip((out, *grads), (exact[0], *exact[1]), strict=True):
        error = np.abs(np.asarray(got, np.float32) - want).max()
        assert error < 0.02 * np.abs(want).max()


def test_vmap_over_heads_and_masks_equals_a_loop():
    """As many seeds in one program have it: every one with its own padding."""
    pair = [draws(LENGTH, LENGTH, 2, seed=seed) for seed in (0, 1)]
    valid = np.stack([padded(LENGTH).key_valid, ~padded(LENGTH).key_valid])

    def run(query, key, value, weight, valid):
        mask = masks.causal() & masks.padding(valid)
        return value_and_grads(dense.attend, query, key, value, weight, mask)

    stacked = [np.stack(x) for x in zip(*pair, strict=True)]
    together = jax.vmap(run)(*stacked, valid)
    for i in range(2):
        alone = run(*pair[i], valid[i])
        for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(np.asarray(got)[i], want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("mask", [Mask(), masks.causal(), Mask(lookback=90), masks.window(90)])
@pytest.mark.parametrize(("T", "S"), [(1409, 1409), (301, 150), (150, 301), (5, 200)])
def test_declared_equals_counted_flops(T, S, mask):
    """1409 queries make blocks with padding, which is executed as well; a band leaves keys out."""
    D, config = N * H, dense.Config(num_heads=N, num_kv_heads=2)
    declared = dense.flops(config, mask, D=D, T=T, S=S)
    executed, useful = softmax.pairs(T, S, mask), mask.pairs(T, S).item()
    assert declared["mix"] == attention.Work(2 * D * executed, 2 * D * useful)
    make = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    heads = make((1, T, N, H)), make((1, S, 2, H)), make((1, S, 2, H))
    counted = cost.count(functools.partial(dense.attend, config, mask=mask), *heads)
    assert counted.products == declared["scores"].executed + declared["mix"].executed
    assert useful <= executed <= softmax.pairs(T, S) < 1.02 * T * S
    assert T < 1024 or not mask.kinds or executed < 0.7 * T * S


def test_memory_grows_with_the_length_and_not_with_its_square():
    """Neither pass holds one [T, S] array, for any example or head; the plain formula holds several."""

    def temporary(attend, T):
        heads = [jax.ShapeDtypeStruct((B, T, 1, H), jnp.float32)] * 4
        compiled = value_and_grads.lower(attend, *heads, masks.causal()).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    table = 4 * 2048 * 2048
    assert temporary(dense.reference, 2048) > 2 * B * table
    ours = temporary(dense.attend, 2048)
    assert ours < table / 2
    # Most of it are the scores of one block of queries, as many times as keys.
    assert temporary(dense.attend, 4096) < 2.2 * ours
