"""Talking heads and sigmoid attention: facts by hand, limits, growth and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import biases, cost, masks
from tinyattn.attention.full import dense, sigmoid, talking
from tinyattn.masks import Mask

B, T, N, H = 2, 13, 4, 3
EYE = np.eye(N, dtype=np.float32)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def heads(K=N, T=T):
    return normal(0, B, T, N, H), normal(1, B, T, K, H), normal(2, B, T, K, H)


def everything():
    """Every kind of mask at once."""
    valid = np.random.default_rng(3).random((B, T)) > 0.3
    ids = np.arange(T)[None] // 9 * np.ones((B, 1), int)
    return masks.causal() & masks.window(6) & masks.padding(valid) & masks.segments(ids)


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def run(module, config, *args, **kwargs):
    return jax.jit(functools.partial(module.attend, config))(*args, **kwargs)


def with_gradients(function, *args):
    """Outputs and gradients against all args under one weight."""

    def loss(*args):
        out = function(*args)
        return (out * normal(9, *out.shape)).sum(), out

    both = jax.value_and_grad(loss, tuple(range(len(args))), has_aux=True)
    (_, out), grads = jax.jit(both)(*args)
    return out, *grads


def same(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)


def peak(module, config, length, *more):
    """Bytes of a gradient under a causal mask."""
    x = jax.ShapeDtypeStruct((1, length, 1, H), jnp.float32)

    def loss(*given):
        return module.attend(config, *given[:3], masks.causal(), *given[3:]).sum()

    gradient = jax.jit(jax.grad(loss, tuple(range(3 + len(more)))))
    return cost.peak_bytes(gradient.lower(x, x, x, *more).compile())


def parts(module, length, **fields):
    """Executed FLOPs of each part that is no projection; two heads of four."""
    work = module.flops(module.Config(num_heads=2, **fields), Mask(), D=8, T=length, S=length)
    return {name: part.executed for name, part in work.items() if not part.projection}


@pytest.mark.parametrize("mask", [Mask(), everything()], ids=["full", "all"])
def test_identities_are_dense_attention(mask):
    bias = biases.Linear(np.linspace(0.1, 1, N, dtype=np.float32))
    config, plain = talking.Config(num_kv_heads=2, piece=5), dense.Config(num_kv_heads=2)
    got = with_gradients(lambda *x: talking.attend(config, *x, mask, EYE, EYE, bias), *heads(2))
    same(got, with_gradients(lambda *x: dense.reference(plain, *x, mask, bias), *heads(2)))


def test_heads_are_mixed_from_row_to_column_on_both_sides():
    query, key, value = (x[:, :, :2] for x in heads())
    before = np.array([[1, 2], [0, -1]], np.float32)
    after = np.array([[0, 3], [1, 0.5]], np.float32)
    s = np.einsum("btnh,bsnh->nbts", query, key) / H**0.5
    first, second = softmax(s[0]), softmax(2 * s[0] - s[1])
    want = [second @ value[:, :, 0], (3 * first + 0.5 * second) @ value[:, :, 1]]
    got = run(talking, talking.Config(num_heads=2), query, key, value, Mask(), before, after)
    np.testing.assert_allclose(got, np.stack(want, axis=2), atol=1e-5)


def test_a_bias_joins_the_mixed_scores():
    """Without scores the weights are the softmax of the bias, whatever mixes the scores."""
    bias = biases.Linear(np.linspace(0.1, 1, N, dtype=np.float32))
    query, key, value = heads()
    got = run(talking, talking.Config(), query, key, value, Mask(), 0 * EYE, EYE, bias=bias)
    weights = softmax(np.asarray(bias.dense(N, T, T)))
    np.testing.assert_allclose(got, np.einsum("nts,bsnh->btnh", weights, value), atol=1e-5)


def test_the_module_starts_as_dense_attention():
    x = normal(4, B, T, 8)
    layer = talking.Attention(talking.Config())
    params = jax.jit(layer.init)(jax.random.PRNGKey(0), x)["params"]
    np.testing.assert_array_equal(params["heads"]["before"], EYE)
    plain = {name: leaf for name, leaf in params.items() if name != "heads"}
    want = jax.jit(dense.Attention(dense.Config()).apply)({"params": plain}, x)
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x), want, atol=1e-5)


@pytest.mark.parametrize("module", [talking, sigmoid])
def test_what_is_not_finite_behind_a_mask_reaches_no_gradient(module):
    """Nor those of bias and mixtures, which sum over all pairs; 3e38 overflows in the scores only."""
    matrices = [normal(5, N, N), normal(6, N, N)] if module is talking else []
    valid = masks.padding(np.arange(T)[None] < np.array([[7], [T]]))
    query, key, value = heads()

    @jax.jit
    def gradients(filling):
        attend = functools.partial(module.attend, module.Config())
        given = 4 * query, jnp.asarray(key).at[0, 9].set(filling), value, normal(7, N), *matrices

        def biased(q, k, v, slopes, *m):
            return attend(q, k, v, valid, *m, bias=biases.Linear(slopes))

        return with_gradients(biased, *given)

    for bad in (np.nan, np.inf, 3e38):
        same(gradients(bad), gradients(0.0))


def test_equal_scores_have_a_weight_of_one_over_n_plus_one():
    """sigmoid(-log n) = 1 / (1 + n), where n is how many keys the query sees, or `length`."""
    query, key, value = heads()
    ones = np.ones_like(value)
    padded = masks.padding(np.arange(T)[None] < np.array([[7], [0]]))
    seen = np.arange(1, T + 1)[None, :, None, None]
    for mask, n in (
        (Mask(), T),
        (masks.causal(), seen),
        (padded, np.array([7, 0]).reshape(2, 1, 1, 1)),
    ):
        for length in (0, 6):
            got = run(sigmoid, sigmoid.Config(length=length), 0 * query, key, ones, mask)
            want = np.broadcast_to(n / (1 + (length or n)), got.shape)
            np.testing.assert_allclose(got, want, rtol=1e-6)


def test_one_key_is_passed_by_its_own_sigmoid():
    query, key, value = heads(T=1)
    s = (query * key).sum(-1, keepdims=True) / H**0.5
    got = run(sigmoid, sigmoid.Config(), query, key, value, Mask())
    np.testing.assert_allclose(got, value / (1 + np.exp(-s)), rtol=1e-5)


def test_padding_changes_no_offset():
    short = heads()
    long = [np.pad(x, ((0, 0), (0, 5), (0, 0), (0, 0)), constant_values=9) for x in short]
    seen = masks.padding(np.broadcast_to(np.arange(T + 5) < T, (B, T + 5)))
    got = run(sigmoid, sigmoid.Config(), *long, seen)[:, :T]
    np.testing.assert_allclose(got, run(sigmoid, sigmoid.Config(), *short, Mask()), atol=1e-6)


@pytest.mark.parametrize("length", [512, 8192])
def test_work_of_all_pairs_and_of_their_mixtures(length):
    pair = 2 * 2 * length * length
    heads = {"heads before": 2 * pair, "heads after": 2 * pair}
    both = {"scores": 4 * pair, "mix": 4 * pair}
    assert parts(sigmoid, length) == both
    assert parts(talking, length) == both | heads


@pytest.mark.cpu
def test_no_table_of_all_pairs_is_held():
    length, one = 4096, np.ones((1, 1), np.float32)
    for module, more in ((talking, (one, one)), (sigmoid, ())):
        assert peak(module, module.Config(num_heads=1), length, *more) < length * length


@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        (talking, {"piece": -1}, "piece=-1 must be positive"),
        (sigmoid, {"piece": -1}, "piece=-1 positive"),
        (sigmoid, {"length": -2}, "length=-2 must be positive"),
    ],
)
def test_illegal_fields_are_named(module, fields, message):
    with pytest.raises(ValueError, match=message):
        module.Config(**fields)
