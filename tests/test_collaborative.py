"""Collaborative heads: multi-head by blocks of ones, the formula by hand, and a key that is held once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import biases, cost, masks, model
from tinyattn.attention._core import softmax
from tinyattn.attention.full import collaborative, dense
from tinyattn.masks import Mask

B, T, S, N, H = 2, 7, 9, 4, 6
D = N * H
RNG = jax.random.PRNGKey(0)
DRAW = np.random.default_rng(0)
X, Y = (DRAW.standard_normal((B, n, D)).astype(np.float32) for n in (T, S))


def close(got, want, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=atol), got, want)


def params_of(layer, *inputs, seed=1):
    """Parameters none of which is 0 or 1."""
    draw = np.random.default_rng(seed)
    like = jax.eval_shape(layer.init, RNG, *inputs)["params"]
    return jax.tree.map(lambda x: 0.4 * draw.standard_normal(x.shape).astype(np.float32), like)


def value_and_grads(layer, mask):
    def both(params, x):
        def loss(params, x):
            out = layer.apply({"params": params}, x, mask=mask)
            return jnp.sin(out).sum(), out

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    return jax.jit(both)


@pytest.mark.parametrize("K", [N, 2])
def test_blocks_of_ones_are_multi_head_attention(K):
    """Head n has the features n H to n H + H; with fewer values, those of multi-head keys all the same."""
    layer = collaborative.Attention(collaborative.Config(num_heads=N, num_kv_heads=K))
    blocks = np.repeat(np.eye(N, dtype=np.float32), H, axis=1)
    params = params_of(layer, X) | {"mixing": {"vectors": blocks}}
    assert {n: p["kernel"].shape for n, p in params.items() if n != "mixing"} == {
        "query": (D, D),
        "key": (D, D),
        "value": (D, K * H),
        "out": (D, D),
    }
    (_, out), (grads, dx) = value_and_grads(layer, masks.causal())(params, X)
    del params["mixing"], grads["mixing"]

    def repeated(value):
        """Each value head for as many query heads as it serves."""
        x = value.reshape(*value.shape[:-1], K, H)
        return jnp.repeat(x, N // K, axis=-2).reshape(*value.shape[:-1], D)

    def whole(params):
        return params | {"value": {name: repeated(x) for name, x in params["value"].items()}}

    multi = dense.Attention(dense.Config(num_heads=N))

    def loss(params, x):
        want = multi.apply({"params": whole(params)}, x, mask=masks.causal())
        return jnp.sin(want).sum(), want

    both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, want), (want_grads, want_dx) = both(params, X)
    close(out, want)
    close((grads, dx), (want_grads, want_dx), 2e-5)


def softmaxed(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_a_score_by_hand():
    """(x W_Q) diag(m) (y W_K)^T / sqrt(R / N), from the keys of another sequence."""
    R = 5
    layer = collaborative.Attention(collaborative.Config(num_heads=N, shared_dim=R))
    params = params_of(layer, X, Y)
    got = jax.jit(layer.apply)({"params": params}, X, Y)
    p = jax.tree.map(np.float64, params)
    query, key, value = (
        x @ p[name]["kernel"] + p[name]["bias"]
        for name, x in (("query", X), ("key", Y), ("value", Y))
    )
    heads = []
    for n in range(N):
        mixed = query @ np.diag(p["mixing"]["vectors"][n])
        weights = softmaxed(mixed @ key.swapaxes(1, 2) / np.sqrt(R / N))
        heads.append(weights @ value[..., n * H : (n + 1) * H])
    want = np.concatenate(heads, axis=-1) @ p["out"]["kernel"] + p["out"]["bias"]
    close(got, want)


def test_mixing_starts_as_the_authors_draw_it():
    layer = collaborative.Attention(collaborative.Config(num_heads=N, shared_dim=500))
    vectors = jax.jit(layer.init)(RNG, X)["params"]["mixing"]["vectors"]
    assert vectors.shape == (N, 500)
    assert abs(vectors.std() - 0.2) < 0.01 and abs(vectors.mean()) < 0.02


@pytest.mark.parametrize("length", [12, 150], ids=["one block", "streamed"])
def test_values_with_a_key_in_common_are_as_if_it_were_copied(length):
    """Of the core: three keys' heads, two values each, two queries each, with all that it can do."""
    draw = np.random.default_rng(2)
    shapes = (B, length, 12, H), (B, length, 3, H), (B, length, 6, 5), (B, length, 12, 5)
    *heads, weight = (draw.standard_normal(shape).astype(np.float32) for shape in shapes)
    sink = draw.standard_normal(12).astype(np.float32)
    valid = draw.random((B, length)) > 0.3
    options = {"mask": masks.causal() & masks.padding(valid), "cap": 2.0}
    options |= {"bias": biases.Linear(jnp.linspace(0.1, 1.0, 12))}

    @functools.partial(jax.jit, static_argnums=0)
    def run(copied, query, key, value, sink):
        def attend(query, key, value, sink):
            key = jnp.repeat(key, 2, axis=2) if copied else key
            return softmax.attend(query, key, value, sink=sink, **options)

        out, pull = jax.vjp(attend, query, key, value, sink)
        return out, pull(weight)

    got, want = (run(copied, *heads, sink) for copied in (False, True))
    close(got[0], want[0])
    close(got[1], want[1], 2e-5)


@pytest.mark.cpu
def test_the_shared_key_is_not_copied_for_the_heads():
    heads, R, S = 32, 512, 1024
    shapes = (1, 8, heads, R), (1, S, 1, R), (1, S, heads, 2)
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    config = collaborative.Config(num_heads=heads, shared_dim=R)

    def total(*given):
        return collaborative.attend(config, *given, masks.causal()).sum()

    peak = cost.peak_bytes(jax.jit(jax.grad(total, (0, 1, 2))).lower(*given).compile())
    assert peak < 8 * (S * R * 4)


def test_rotary_scores_depend_on_differences():
    layer = collaborative.Attention(collaborative.Config(num_heads=N, shared_dim=10))
    params = params_of(layer, X)
    shifted = np.pad(X, ((0, 0), (2, 0), (0, 0)))
    valid = np.pad(np.ones((B, T), bool), ((0, 0), (2, 0)))

    @jax.jit
    def both(params):
        here = layer.apply({"params": params}, X, rotate=model.rotate)
        later = layer.apply(
            {"params": params}, shifted, rotate=model.rotate, mask=masks.padding(valid)
        )
        return here, later[:, 2:], layer.apply({"params": params}, X)

    here, later, without = both(params)
    close(here, later)
    assert np.abs(here - without).max() > 1e-2
    odd = collaborative.Attention(collaborative.Config(num_heads=N, shared_dim=5))
    with pytest.raises(ValueError, match="shared_dim=5 is odd"):
        jax.eval_shape(lambda: odd.init(RNG, X, rotate=model.rotate))


def test_a_cache_holds_one_key_a_token():
    config = collaborative.Config(num_heads=N, num_kv_heads=2, shared_dim=10)
    state = collaborative.init_state(config, B, 3, H, jnp.bfloat16)
    assert state.key.shape == (B, 3, 1, 10) and state.value.shape == (B, 3, 2, H)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held == B * collaborative.state_bytes(config, D=D, length=3, itemsize=2)
    assert held == B * (3 * (10 + 2 * H) * 2 + 4)


def test_illegal_values_are_named():
    with pytest.raises(ValueError, match="shared_dim=-1 must be positive, or 0"):
        collaborative.Config(shared_dim=-1)
    query, key, value = jnp.ones((B, T, N, 8)), jnp.ones((B, S, 1, 8)), jnp.ones((B, S, N, H))
    config = collaborative.Config(num_heads=N, shared_dim=8)
    for given, message in (
        ((query, jnp.ones((B, S, 2, 8)), value), "all heads share one key: 2 are given"),
        ((query, key, value[:, :, :3]), "3 value heads must divide 4 query heads"),
        ((query, key[..., :7], value), "rank is 7 in key but 8 in query"),
    ):
        with pytest.raises(ValueError, match=message):
            collaborative.attend(config, *given, Mask())
