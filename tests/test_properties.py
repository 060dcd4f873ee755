"""Whatever the lengths, the mask and the settings: what may not be seen changes nothing.

One program an example gives outputs and gradients; everything else is NumPy on what goes in and out.
"""

import functools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyattn import attention, masks
from tinyattn.masks import Mask

B, N, D = 2, 4, 24
# Variants in which heads talk to one another, or choose keys together.
TOGETHER = {"talking", "differential", "nsa", "dsa"}
KINDS = ("causal", "window", "padding", "segments")


@st.composite
def problems(draw, module):
    """Fields of the variant, a length from one token up, a mask of kinds it honours, and a seed."""
    fields = draw(st.sampled_from(module.CASES))
    T = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = Mask()
    made = {
        "causal": lambda: masks.causal(),
        "window": lambda: masks.window(int(rng.integers(1, T + 1))),
        "padding": lambda: masks.padding(rng.random((B, T)) > 0.4),
        "segments": lambda: masks.segments(rng.integers(0, 3, (B, T))),
    }
    for kind in KINDS:
        if kind in module.SUPPORTS and draw(st.booleans()):
            mask &= made[kind]()
    return fields, T, mask, rng


@functools.cache
def program(module):
    def both(config, inputs, mask, weight):
        def attend(inputs):
            return module.attend(config, **inputs, mask=mask)

        out, pull = jax.vjp(attend, inputs)
        return out, pull(weight)[0]

    compiled = jax.jit(both, static_argnums=0)
    return lambda *args: jax.tree.map(np.asarray, compiled(*args))


@pytest.mark.parametrize("name", attention.names())
def test_what_may_not_be_seen_changes_nothing(name):
    module = attention.load(name)

    @settings(
        max_examples=2,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(problems(module))
    def check(problem):
        fields, T, mask, rng = problem
        _, config = attention.build(attention.spec(name, **{"num_heads": N, **fields}))
        shapes = attention.shapes(module, config, D=D, B=B, T=T)
        inputs = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        # Of the reference, which is traced in less time; that shapes agree is seen below.
        out_like = jax.eval_shape(lambda x: module.reference(config, **x, mask=mask), inputs)
        weight = rng.standard_normal(out_like.shape).astype(np.float32)
        run = functools.partial(program(module), config)

        # It equals the slow formula, here too.
        out, _ = run(inputs, mask, weight)
        want = reference(module)(config, inputs, mask)
        np.testing.assert_allclose(out, want, atol=2e-5, rtol=2e-5)

        # One key, with anything and with NaN in it, for the queries that may not see it.
        s = int(rng.integers(T))
        blind = ~np.broadcast_to(np.asarray(mask.dense(T, T)), (B, T, T))[:, :, s]
        shown = np.where(blind[:, :, None, None], weight, 0)
        clean_out, clean = run(inputs, mask, shown)
        for filling in (37.0, np.nan):
            dirty = {n: put(x, n, s, filling) for n, x in inputs.items()}
            dirty_out, grads = run(dirty, mask, shown)
            np.testing.assert_array_equal(dirty_out[blind], clean_out[blind])
            # A query that sees NaN has no gradient, whatever it weighs.
            quiet = np.isfinite(filling) | blind.all(1)
            for n in ("key", "value"):
                assert (grads[n][quiet, s] == 0).all(), n
            np.testing.assert_array_equal(grads["query"][blind], clean["query"][blind])

        # Examples do not see each other.
        alone = run({n: put_example(x, T) for n, x in inputs.items()}, mask, weight)[0]
        np.testing.assert_array_equal(alone[0], out[0])

        # Nor do heads.
        K = inputs["value"].shape[2]
        if name not in TOGETHER and K > 1 and config.kv_heads == K:
            other = {
                n: np.concatenate([x[:, :, :1], x[:, :, 1:] + 3], 2) if n in ("key", "value") else x
                for n, x in inputs.items()
            }
            group = out.shape[2] // K
            got = run(other, mask, weight)[0]
            np.testing.assert_array_equal(got[:, :, :group], out[:, :, :group])
            if T > 1 and not blind_everywhere(mask, T):
                assert not np.array_equal(got[:, :, group:], out[:, :, group:])

    check()


def blind_everywhere(mask, T):
    return not np.asarray(mask.dense(T, T)).any()


def put(x, name, s, filling):
    if name not in ("key", "value"):
        return x
    x = x.copy()
    x[:, s] = filling
    return x


def put_example(x, T):
    if x.shape[:2] != (B, T):
        return x
    x = x.copy()
    x[1] = 5.0
    return x


@functools.cache
def reference(module):
    compiled = jax.jit(
        lambda config, inputs, mask: module.reference(config, **inputs, mask=mask), static_argnums=0
    )
    return lambda *args: np.asarray(compiled(*args))
