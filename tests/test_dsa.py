"""DeepSeek sparse attention: the index and its loss by hand, what the indexer learns, and growth."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tinyattn import attention, cost, masks
from tinyattn.attention.sparse import dsa
from tinyattn.masks import Mask

B, T, N, K, H = 2, 11, 4, 2, 5
INDEX = ("index_query", "index_key", "index_weight")


def make(**fields):
    return dsa.Config(**{"num_heads": N, "num_kv_heads": K, "k": 3, "piece": 4, **fields})


def inputs(config, S=T, seed=0):
    rng = np.random.default_rng(seed)
    heads, width = config.index_heads, config.index_dim
    shapes = {"query": (B, T, N, H), "key": (B, S, K, H), "value": (B, S, K, H)}
    shapes |= {"index_query": (B, T, heads, width), "index_key": (B, S, 1, width)}
    shapes |= {"index_weight": (B, T, heads)}
    return {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}


@functools.cache
def program(name):
    def call(config, given, mask):
        return getattr(dsa, name)(config, **given, mask=mask)

    return jax.jit(call, static_argnums=0)


def attend(config, given, mask=Mask()):
    return np.asarray(program("attend")(config, given, mask))


@functools.cache
def divergence(config):
    def call(given, mask):
        each = dsa.auxiliary(config, **given, mask=mask)
        return each.sum(), each

    return jax.jit(jax.value_and_grad(call, has_aux=True))


def loss(config, given, mask):
    """KL of every query [B, T], and the gradients of its sum."""
    (_, each), grads = divergence(config)(given, mask)
    return jax.tree.map(np.asarray, (each, grads))


def softmax(x):
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def index(config, given, b, t, keys):
    """I_ts of one query, key by key."""
    scale = (config.index_heads * config.index_dim) ** -0.5
    query, key, weight = (given[name][b] for name in INDEX)
    return np.array(
        [
            sum(w * max(q @ key[s, 0], 0) for q, w in zip(query[t], weight[t], strict=True)) * scale
            for s in keys
        ]
    )


def best(config, given, b, t, keys):
    order = sorted(keys, key=lambda s: (-index(config, given, b, t, [s])[0], s))
    return order[: config.k]


def test_all_heads_attend_to_the_keys_of_the_best_index():
    config = make(index_heads=3, index_dim=2)
    given = inputs(config)
    got = attend(config, given, masks.causal())
    for b, t in np.ndindex(B, T):
        kept = best(config, given, b, t, range(t + 1))
        for n in range(N):
            query, key, value = (given[x][b] for x in ("query", "key", "value"))
            weights = softmax(key[kept, n // 2] @ query[t, n] / H**0.5)
            np.testing.assert_allclose(got[b, t, n], weights @ value[kept, n // 2], atol=1e-5)


def test_the_index_by_hand():
    """Weights may be negative, products below 0 count as 0, and the first of equal keys is kept."""
    config = dsa.Config(num_heads=1, k=1, index_heads=2, index_dim=1)
    given = {
        "query": np.ones((1, 3, 1, 1), np.float32),
        "key": np.ones((1, 4, 1, 1), np.float32),
        "value": np.array([10.0, 20, 30, 40], np.float32).reshape(1, 4, 1, 1),
        "index_key": np.array([-2.0, 1, 2, -2], np.float32).reshape(1, 4, 1, 1),
        "index_query": np.array([[1.0, -1], [1, -1], [1, 1]], np.float32)[None, :, :, None],
        "index_weight": np.array([[1.0, 2], [-1, -1], [-1, 0]], np.float32)[None],
    }
    # Of the keys -2, 1, 2, -2: (4, 1, 2, 4), (-2, -1, -2, -2), (0, -1, -2, 0).
    assert attend(config, given)[0, :, 0, 0].tolist() == [10, 20, 10]
    only = masks.padding(np.array([[False, True, True, True]]))
    assert attend(config, given, only)[0, :, 0, 0].tolist() == [40, 20, 40]
    other = given | {"index_weight": -given["index_weight"]}
    assert attend(config, other)[0, :, 0, 0].tolist() == [20, 10, 30]


def test_nan_of_the_index_stays_behind_the_mask():
    config = make()
    given, mask = inputs(config), masks.padding(np.arange(T)[None] < np.array([[7], [T]]))
    before = attend(config, given, mask)
    dirty = given | {"index_key": given["index_key"].copy()}
    dirty["index_key"][0, 8] = np.nan
    np.testing.assert_array_equal(attend(config, dirty, mask), before)
    np.testing.assert_array_equal(loss(config, dirty, mask)[0], loss(config, given, mask)[0])
    # A query that may see it cannot tell which keys are the best.
    dirty["index_key"][0, 2] = np.nan
    assert np.isnan(attend(config, dirty, mask)[0]).all()
    assert np.isnan(loss(config, dirty, mask)[0][0]).all()
    np.testing.assert_array_equal(attend(config, dirty, mask)[1], before[1])


@pytest.mark.parametrize("k", [3, 100], ids=["kept", "all"])
def test_the_loss_is_the_divergence_from_the_mean_of_the_heads(k):
    config = make(k=k)
    given = inputs(config)
    got, grads = loss(config, given, masks.causal())
    for b, t in np.ndindex(B, T):
        kept = best(config, given, b, t, range(t + 1))
        query, key = given["query"][b, t], given["key"][b]
        p = np.mean([softmax(key[kept, n // 2] @ query[n] / H**0.5) for n in range(N)], axis=0)
        q = softmax(index(config, given, b, t, kept))
        np.testing.assert_allclose(got[b, t], p @ np.log(p / q), atol=1e-5)
    assert got[:, 0].max() < 1e-6 < 1e-3 < got[:, 1:].min()
    # It moves the indexer and nothing else; attention moves the rest.
    for name, grad in grads.items():
        assert (np.abs(grad).max() > 1e-3) == (name in INDEX), name


def test_queries_that_see_nothing_have_no_loss_and_no_gradient():
    config = make()
    mask = masks.padding(np.broadcast_to(np.array([[False], [True]]), (B, T)))
    each, grads = loss(config, inputs(config), mask)
    assert (each[0] == 0).all() and (each[1] > 0).all()
    for grad in grads.values():
        assert np.isfinite(grad).all() and (grad[0] == 0).all()


class Layer(nn.Module):
    """Heads and an indexer, and the loss of the latter: how a model of one's own trains it."""

    config: dsa.Config

    @nn.compact
    def __call__(self, x):
        heads = attention.project(self.config, x)
        given = dsa.extras(self.config, x, kernel_init=nn.initializers.lecun_normal())
        return dsa.auxiliary(self.config, *heads, masks.causal(), **given).mean()


def test_the_loss_teaches_the_indexer_to_find_what_the_heads_attend_to():
    layer = Layer(dsa.Config(num_heads=1, k=64, index_heads=4, index_dim=8))
    optimizer = optax.adam(3e-2)
    # So large that the heads are sharp, and there is something to learn.
    x = 2 * np.random.default_rng(0).standard_normal((2, 24, 8)).astype(np.float32)

    @jax.jit
    def learn(rng):
        def step(carry, _):
            params, opt = carry
            value, (grads, dx) = jax.value_and_grad(layer.apply, (0, 1))(params, x)
            updates, opt = optimizer.update(grads, opt)
            return (optax.apply_updates(params, updates), opt), (value, dx)

        params = layer.init(rng, x)
        return params, *jax.lax.scan(step, (params, optimizer.init(params)), length=200)

    before, (after, _), (values, dx) = jax.tree.map(np.asarray, learn(jax.random.PRNGKey(0)))
    assert values[-1] < 0.1 * values[0]
    # Nothing below the indexer learns from it, nor beside it.
    assert (dx == 0).all()
    moved = jax.tree.map(lambda a, b: (a != b).any(), before["params"], after["params"])
    assert {name for name, leaves in moved.items() if any(leaves.values())} == set(INDEX)


def test_the_cache_counts_index_keys_and_says_when_it_is_full():
    config = make(k=2)
    given = {name: x[:, :1] for name, x in inputs(config).items()}
    state = dsa.init_state(config, B, 1, H, jnp.bfloat16)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held == B * dsa.state_bytes(config, D=N * H, length=1, itemsize=2)
    assert held == B * ((2 * K * H + config.index_dim) * 2 + 4)
    step = jax.jit(functools.partial(dsa.step, config))
    out, state = step(state, **given)
    assert np.isfinite(out).all()
    out, _ = step(state, **given, active=np.array([True, False]))
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_the_index_is_dense_and_attention_is_not(length):
    config = dsa.Config(num_heads=4, k=16, index_heads=2, index_dim=8, piece=128)
    parts = dsa.flops(config, masks.causal(), D=32, T=length, S=length)
    assert parts["index"].executed == 2 * 2 * (8 + 1) * length * length
    assert parts["index"].useful == 2 * 2 * (8 + 1) * length * (length + 1) // 2
    assert parts["scores"].executed == parts["mix"].executed == 2 * 32 * length * 16
    assert parts["mix"].useful == 2 * 32 * (length * 16 - 16 * 15 // 2)


@pytest.mark.cpu
@pytest.mark.parametrize("function", ["attend", "auxiliary"])
def test_no_table_of_all_pairs_is_held(function):
    def peak(length):
        config = dsa.Config(num_heads=1, k=8, index_heads=1, index_dim=4)
        found = attention.shapes(dsa, config, D=4, B=1, T=length)
        given = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in found.items()}

        def total(given):
            return getattr(dsa, function)(config, **given, mask=masks.causal()).sum()

        return cost.peak_bytes(jax.jit(jax.grad(total)).lower(given).compile())

    small, large = peak(2048), peak(8192)
    assert large < 3 * small
    assert large < 8192 * 8192 // 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k=0, index_heads=2 and index_dim=8 must be at least 1"),
        ({"index_heads": 0}, "index_heads=0 and index_dim=8 must be at least 1"),
        ({"index_dim": 0}, "index_dim=0 must be at least 1"),
        ({"piece": -1}, "piece=-1 positive, or 0"),
    ],
)
def test_illegal_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dsa.Config(**fields)
