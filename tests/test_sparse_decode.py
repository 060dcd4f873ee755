"""What sparse mechanisms promise of decoding: what they keep, what they read, and where they end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, cost, masks
from tinyattn.attention.full import dense

# Not a multiple of any block but that of `fixed`, which has room up to the end of one.
B, T, N, K, H = 2, 35, 4, 2, 3
D = N * H
# The second example is behind by so many tokens, and the first has one too many for its cache.
STARTS, LENGTHS = np.array([0, 9]), np.array([T + 1, T])
SETTINGS = {
    "longformer": {"window": 4, "global_tokens": 3, "global_projections": True},
    "blocks": {"block": 4, "layout": ("0001", "1111", "0100")},
    "fixed": {"stride": 5, "summary": 2},
    "moba": {"block": 4, "top": 3},
    "nsa": {"block": 4, "top": 3, "window": 6},
    "lsh": {"buckets": 4, "span": 3},
}
STATIC = ["longformer", "blocks", "fixed"]
# Where gradients go through a ring, a choice and sums; the others have no more ways than these.
GRADED = ["fixed", "nsa"]


def make(name, **fields):
    heads = {"num_heads": N, "num_kv_heads": K}
    return attention.build(attention.spec(name, **heads, **fields))


@functools.cache
def arrays(module, config, T=T):
    rng = np.random.default_rng(0)
    shapes = attention.shapes(module, config, D=D, B=B, T=T)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def decoded(module, config, given, starts, lengths, capacity):
    """Outputs [steps, B, N, H]; numbers that mean nothing are fed to an example that has no token."""
    single = attention.shapes(module, config, D=D, B=B, T=1)
    rest = {name: x for name, x in given.items() if x.shape == single[name]}

    def one(state, i):
        place = i - starts

        def token(x):
            return jnp.take_along_axis(x, place[:, None, None, None], 1, mode="fill", fill_value=9)

        own = {name: token(x) for name, x in given.items() if name not in rest}
        active = (place >= 0) & (place < lengths)
        out, state = module.step(config, state, **own, **rest, active=active)
        return state, out[:, 0]

    first = module.init_state(config, B, capacity, H)
    return jax.lax.scan(one, first, jnp.arange((starts + lengths).max()))[1]


@functools.cache
def both(name):
    """The setting decoded, and its reference: outputs, the one too many, gradients if `GRADED`."""
    module, config = make(name, **SETTINGS[name])
    weight = np.random.default_rng(1).standard_normal((B, T, N, H)).astype(np.float32)

    def decode(given):
        outs = decoded(module, config, given, STARTS, LENGTHS, T)
        return jnp.stack([outs[start : start + T, b] for b, start in enumerate(STARTS)]), outs[T, 0]

    def refer(given):
        return module.reference(config, **given, mask=masks.causal()), None

    def program(form):
        def run(given):
            out, pull, last = jax.vjp(form, given, has_aux=True)
            return out, last, pull(weight)[0] if name in GRADED else {}

        return jax.jit(run)

    return module, config, program(decode), program(refer)


def numbers(x):
    return jax.tree.map(np.asarray, x)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_example_is_at_a_place_of_its_own(name):
    """Beyond the capacity there is no number, unless the state is bounded."""
    module, config, decode, refer = both(name)
    given = arrays(module, config)
    got, last, grads = numbers(decode(given))
    want, _, exact = numbers(refer(given))
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    for key in exact:
        np.testing.assert_allclose(grads[key], exact[key], atol=2e-5, rtol=2e-5, err_msg=key)
    assert (np.isfinite if name == "longformer" else np.isnan)(last).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_not_a_number_is_seen_only_where_its_token_is(name):
    module, config, decode, _ = both(name)
    given = arrays(module, config)
    before = numbers(decode(given))[0]
    dirty = given | {name: given[name].copy() for name in ("key", "value")}
    dirty["key"][0, 6], dirty["value"][0, 20, :, 0] = np.nan, np.inf
    got = numbers(decode(dirty))[0]
    if name in STATIC:
        seen = np.asarray(module.effective(config, masks.causal(), T))[0][:, [6, 20]].any(-1)
    elif name == "nsa":
        seen = np.arange(T) >= 6  # Near, then in a compressed block.
    else:
        attend = jax.jit(functools.partial(module.attend, config, mask=masks.causal()))
        seen = np.isnan(attend(**dirty))[0, :, :, 0]
    bad = np.isnan(got).all(-1)
    assert seen.any() and not bad[1].any()
    np.testing.assert_array_equal(bad[0], np.broadcast_to(seen.reshape(T, -1), (T, N)))
    if name in STATIC:
        np.testing.assert_array_equal(got[~bad], before[~bad])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("longformer", {"global_tokens": 9, "global_projections": True}),
        ("fixed", {"stride": 8}),
        ("moba", {"block": 4, "top": 2}),
        ("nsa", {"block": 4, "top": 2, "window": 9}),
        ("lsh", {"span": 9, "buckets": 2}),
    ],
)
def test_capacities_of_less_than_is_seen(name, fields):
    module, config = make(name, **fields)
    given, few = arrays(module, config, 5), np.full(B, 5)

    @jax.jit
    def outputs(given):
        outs = decoded(module, config, given, 0 * few, few + 1, 5)
        return outs, module.reference(config, **given, mask=masks.causal())

    got, want = numbers(outputs(given))
    np.testing.assert_allclose(got[:5].swapaxes(0, 1), want, atol=1e-5, rtol=1e-5)
    assert np.isnan(got[5]).all()


def test_a_ring_smaller_than_the_window_says_when_it_is_full():
    module, config = make("window", window=3)
    given, few = arrays(module, config, 4), np.full(B, 4)
    outs = decoded(module, config, given, 0 * few, few, 2)
    assert np.isfinite(outs).all((1, 2, 3)).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "fields", "tokens", "more"),
    # Tokens that are kept of 64, and bytes beside them, with keys and values of two bytes a number.
    [
        ("longformer", {"window": 8, "global_tokens": 3}, 11, 0),
        ("longformer", SETTINGS["longformer"], 7 + 3, 0),
        ("fixed", {"stride": 8, "summary": 2}, 8 + 7 * 2, 0),
        ("fixed", {"stride": 8, "summary": 8}, 64, 0),
        ("bigbird", {"block": 8}, 64, 0),
        ("strided", {"stride": 8}, 64, 0),
        ("topk", {}, 64, 0),
        # Sums are in float32, of all blocks but the last; where all are seen there are none.
        ("moba", {"block": 8, "top": 7}, 64, 7 * K * H * 4),
        ("moba", {"block": 8, "top": 8}, 64, 0),
        ("nsa", {"block": 8}, 64, 8 * 2 * K * H * 4),
        # A bucket takes as few bytes as its number allows.
        ("lsh", {"buckets": 256, "rounds": 3}, 64, 64 * K * 3),
        ("lsh", {"buckets": 258, "rounds": 3}, 64, 64 * K * 3 * 2),
    ],
)
def test_bytes_by_hand(name, fields, tokens, more):
    module, config = make(name, **fields)
    want = tokens * 2 * K * H * 2 + 4 + more
    assert module.state_bytes(config, D=D, length=64, itemsize=2) == want
    init = functools.partial(module.init_state, config, B, 64, H, jnp.bfloat16)
    leaves = jax.tree.leaves(jax.eval_shape(init))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) == B * want
    assert (want < dense.state_bytes(config, D=D, length=64, itemsize=2)) == (tokens < 64)
    with pytest.raises(ValueError, match="capacity=0 must be at least 1"):
        module.init_state(config, B, 0, H)


def test_the_state_of_longformer_is_of_one_size_for_any_length():
    for name in ({}, {"global_projections": True}):
        module, config = make("longformer", window=5, global_tokens=2, **name)
        sizes = [module.state_bytes(config, D=D, length=n) for n in (6, 7, 8, 10**6)]
        assert sizes[0] < sizes[1] == sizes[2] == sizes[3]


@pytest.mark.parametrize(
    ("name", "fields", "products"),
    # In units of a key met and mixed by all heads, 4 N H, of P tokens.
    [
        ("longformer", {"window": 8, "global_tokens": 3}, lambda P: 11),
        ("longformer", SETTINGS["longformer"], lambda P: 7 + 3),
        # The block and the one before, the global one and three at random.
        ("bigbird", {"block": 8}, lambda P: 8 * (2 + 1 + 3)),
        ("blocks", {"block": 8, "layout": ("10", "01")}, lambda P: P / 2),
        ("strided", {"stride": 16}, lambda P: 16 + P / 16 - 1),
        ("fixed", {"stride": 16, "summary": 2}, lambda P: 16 + 2 * (P / 16 - 1)),
        ("topk", {"k": 8}, lambda P: P / 2 + 8),
        ("moba", {"block": 16, "top": 3}, lambda P: 3 * 16 + (P / 16 - 1) / 2),
        ("nsa", {"block": 16, "top": 3, "window": 8}, lambda P: 3 * 16 + 8 + P / 16),
        # Two rounds of spans; four axes that six heads are turned to.
        ("lsh", {"buckets": 8, "span": 16}, lambda P: 2 * 16 + 2 * 4 * (N + K) / (2 * N)),
    ],
)
def test_a_step_executes_what_the_mechanism_needs(name, fields, products):
    module, config = make(name, **fields)
    shapes = attention.shapes(module, config, D=D, B=1, T=1)
    token = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    for P in (256, 4096):
        state = jax.eval_shape(functools.partial(module.init_state, config, 1, P, H))
        step = functools.partial(module.step, config)
        counted = cost.count(lambda state, token, step=step: step(state, **token), state, token)
        assert counted.products == 4 * N * H * products(P)
