"""Differential attention: by hand, its limits, how pairs share keys, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, biases, cost, masks
from tinyattn.attention.full import dense, differential
from tinyattn.masks import Mask

B, T, N, H, D = 2, 9, 4, 6, 24


def config(**fields):
    return differential.Config(**{"num_heads": N} | fields)


def arrays(made, T=T, seed=0):
    rng = np.random.default_rng(seed)
    shapes = attention.shapes(differential, made, D=D, B=B, T=T)
    return {name: rng.standard_normal(x).astype(np.float32) for name, x in shapes.items()}


@functools.cache
def program(made):
    return jax.jit(lambda given, mask: differential.attend(made, **given, mask=mask))


def attend(made, given, mask=Mask()):
    return np.asarray(program(made)(given, mask))


def normed(x):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)


def off(given):
    """The arrays with vectors that leave λ at its start, and no gain."""
    return given | {"lambdas": np.zeros((4, H), np.float32), "norm": np.ones(2 * H, np.float32)}


@pytest.mark.parametrize("how", ["vectors", "start"])
def test_one_pair_by_hand(how):
    """Weights (1/4, 3/4) less half of (1/2, 1/2) of values (8, 0) and (0, 8): (0, 4), normed (0, √2)."""
    query = np.array([np.log(3.0), 0.0]).reshape(1, 1, 2, 1)
    key = np.array([[0.0, 5.0], [1.0, -5.0]]).reshape(1, 2, 2, 1)
    value = np.array([[8.0, 0.0], [0.0, 8.0]]).reshape(1, 2, 2, 1)
    # exp(1 · ln 1.5) - exp(0 · 2) = 1/2.
    lambdas = np.array([1.0, np.log(1.5), 0.0, 2.0])[:, None]
    share = {"vectors": 0.0, "start": 0.5}[how]
    given = {"query": query, "key": key, "value": value, "norm": np.array([1.0, 3.0])}
    given["lambdas"] = lambdas if how == "vectors" else np.zeros((4, 1))
    given = {name: x.astype(np.float32) for name, x in given.items()}
    out = attend(differential.Config(num_heads=2, lambda_init=share), given).reshape(2)
    np.testing.assert_allclose(out, [0.0, (1 - share) * 3 * np.sqrt(2)], atol=1e-5)


def test_without_the_second_map_it_is_plain_attention_normed():
    made = config(lambda_init=0.0)
    given = off(arrays(made))
    mask = masks.causal() & masks.padding(np.arange(T)[None] != np.array([[0], [3]]))
    wide = given["value"].reshape(B, T, N // 2, 2 * H)
    first = {name: given[name][:, :, ::2] for name in ("query", "key")}
    plain = jax.jit(lambda x: dense.reference(made, **x, mask=mask))(first | {"value": wide})
    got = attend(made, given, mask).reshape(wide.shape)
    np.testing.assert_allclose(got, normed(np.asarray(plain)), atol=1e-5)
    # Switched on, it is not.
    assert np.abs(attend(config(lambda_init=0.5), given, mask).reshape(got.shape) - got).max() > 0.1


def test_the_second_map_counts_by_its_share():
    given = off(arrays(config()))
    other = given | {"query": given["query"].copy()}
    other["query"][:, :, 1::2] += 1.0
    for share in (0.0, 0.2):
        made = config(lambda_init=share)
        moved = np.abs(attend(made, given) - attend(made, other)).max()
        assert moved == 0 if share == 0 else moved > 1e-2


def test_two_equal_maps_leave_the_sign_of_what_is_left():
    """(1 - λ) A V, normed: plain attention for λ < 1, its opposite for λ > 1."""
    made = config()
    given = off(arrays(made))
    for name in ("query", "key"):
        given[name] = given[name][:, :, ::2].repeat(2, axis=2)
    before = attend(made, given)
    # λ = exp(2) - 1 + 0.2.
    given["lambdas"] = np.zeros((4, H), np.float32)
    given["lambdas"][:2, 0] = 2.0, 1.0
    np.testing.assert_allclose(attend(made, given), -before, atol=1e-3)
    assert np.abs(before).max() > 0.5


def test_pairs_in_a_group_read_the_same_two_keys():
    made = config(num_heads=8, num_kv_heads=4, head_dim=H)
    given, whole = arrays(made), config(num_heads=8, head_dim=H)
    repeated = {
        name: given[name].reshape(B, T, 2, 2, H).repeat(2, axis=2).reshape(B, T, 8, H)
        for name in ("key", "value")
    }
    want = attend(whole, given | repeated)
    np.testing.assert_allclose(attend(made, given), want, atol=1e-5)
    in_a_row = {name: given[name].repeat(2, axis=2) for name in ("key", "value")}
    assert np.abs(attend(whole, given | in_a_row) - want).max() > 0.1


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_bias_is_of_each_map(share):
    """That of a second map counts where the map does."""
    made = config(lambda_init=share)
    given = off(arrays(made))

    @jax.jit
    def biased(slopes):
        bias = biases.Linear(slopes)
        return differential.attend(made, **given, mask=masks.causal(), bias=bias)

    plain = attend(made, given, masks.causal())
    second = [2, 3] if share else []
    for slopes, heads in (([0, 0, 0, 1], second), ([0, 0, 1, 0], [2, 3]), ([1, 0, 0, 0], [0, 1])):
        moved = np.abs(biased(np.array(slopes, np.float32)) - plain).max((0, 1, 3)) > 1e-2
        assert np.flatnonzero(moved).tolist() == heads


def test_maps_near_each_other_are_not_rounded_before_their_difference():
    """In bfloat16 with λ = 1 and second queries a little off: relative to float32, of the same inputs."""
    made = config(lambda_init=0.0)
    given = off(arrays(made))
    for name in ("query", "key"):
        given[name] = given[name][:, :, ::2].repeat(2, axis=2)
    given["query"][:, :, 1::2] *= 1.03
    given["lambdas"][:2, 0], given["lambdas"][2, 0] = (1.0, np.log(2.0)), 0.0
    narrow = {name: x.astype(jnp.bfloat16) for name, x in given.items()}
    # λ = exp(1 · ln 2) - 1, of which bfloat16 holds three digits.
    exact = attend(made, {name: x.astype(np.float32) for name, x in narrow.items()})
    got = attend(made, narrow)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), exact, rtol=2**-7, atol=1e-3)


def test_parameters_and_flops_beside_those_of_plain_attention():
    """As many kernels; products of maps and values twice, of which the difference needs half."""
    made, x = config(num_heads=8, num_kv_heads=4), jnp.ones((1, T, 48))

    def size(module):
        made_of = jax.eval_shape(module.init, jax.random.PRNGKey(0), x)
        return sum(leaf.size for leaf in jax.tree.leaves(made_of))

    plain = dense.Config(num_heads=8, num_kv_heads=4)
    assert size(differential.Attention(made)) - size(dense.Attention(plain)) == 4 * H + 2 * H
    mask = masks.causal()
    work = differential.flops(made, mask, D=48, T=T, S=T)
    want = dense.flops(plain, mask, D=48, T=T, S=T)
    assert work.keys() == want.keys()
    for name, part in want.items():
        twice = 2 if name == "mix" else 1
        assert work[name] == part._replace(executed=twice * part.executed)


def test_the_vectors_start_small_and_the_gain_at_one():
    layer = differential.Attention(config(num_heads=2, head_dim=2000))
    params = jax.jit(layer.init)(jax.random.PRNGKey(0), np.ones((1, 2, 3)))["params"]["difference"]
    assert sorted(params) == ["lambda_k1", "lambda_k2", "lambda_q1", "lambda_q2", "norm"]
    assert (np.asarray(params.pop("norm")) == np.ones(4000)).all()
    for vector in params.values():
        assert vector.shape == (2000,)
        assert np.std(vector) == pytest.approx(0.1, rel=0.1)
    assert len({float(vector[0]) for vector in params.values()}) == 4


@pytest.mark.cpu
def test_memory_grows_with_the_length_and_not_its_square():
    def peak(length):
        shapes = attention.shapes(differential, config(), D=D, B=1, T=length)
        given = {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in shapes.items()}
        # Causal, the core would be four programs; that they hold no table either is its own test.
        loss = jax.grad(lambda x: differential.attend(config(), **x, mask=Mask()).sum())
        return cost.peak_bytes(jax.jit(loss).lower(given).compile())

    assert peak(4096) < 2.2 * peak(2048)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 and num_kv_heads=0 must be even"),
        ({"num_kv_heads": 1}, "num_heads=4 and num_kv_heads=1 must be even"),
        ({"lambda_init": 1.0}, r"lambda_init=1.0 must be in \[0, 1\)"),
        ({"lambda_init": -0.1}, "lambda_init=-0.1 must be in"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_arrays_that_do_not_fit_are_refused():
    made = config()
    given = arrays(made)
    for changes in (
        {"lambdas": given["lambdas"][:, :1]},
        {"lambdas": given["lambdas"][:3]},
        {"norm": given["norm"][:H]},
        {name: given[name][:, :, :1] for name in ("key", "value")},
    ):
        with pytest.raises(ValueError, match="must be even in number, with lambdas"):
            differential.attend(made, **given | changes, mask=Mask())
