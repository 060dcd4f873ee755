"""The synthesizer: facts by hand, tables that make it dense attention, parameters and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import biases, cost, masks
from tinyattn.attention._core import pieces
from tinyattn.attention.full import dense, synthesizer
from tinyattn.masks import Mask

B, T, N, H = 2, 13, 4, 3
BIAS = biases.Linear(np.linspace(0.1, 1, N, dtype=np.float32))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_gradients(function, *args):
    """Outputs and gradients against all args under one weight."""

    def loss(*args):
        out = function(*args)
        return (out * normal(9, *out.shape)).sum(), out

    both = jax.value_and_grad(loss, tuple(range(len(args))), has_aux=True)
    (_, out), grads = jax.jit(both)(*args)
    return out, *grads


def test_synthesised_scores_that_are_products_of_queries_and_keys_are_dense_attention():
    query, key, value = (normal(i, 1, T, N, H) for i in range(3))
    query, mask = np.abs(query), masks.causal()
    want = dense.reference(dense.Config(), query, key, value, mask, BIAS)
    rows, columns = query[0].transpose(1, 2, 0) / H**0.5, key[0].transpose(1, 2, 0)
    table = rows.swapaxes(1, 2) @ columns
    nothing = np.zeros_like(query)
    for config, given in (
        (synthesizer.Config(length=T), (query, columns / H**0.5)),
        (synthesizer.Config(length=T, kind="random"), (nothing, table)),
        (synthesizer.Config(length=T, kind="random", rank=H), (nothing, columns, rows)),
    ):
        query, *made = given
        call = functools.partial(synthesizer.attend, config, query, value, value, mask, *made)
        np.testing.assert_allclose(jax.jit(call)(bias=BIAS), want, atol=1e-5)


def test_a_token_makes_its_own_scores_from_its_positive_features():
    query = np.array([[1, -1], [-2, -3], [0, 2]], np.float32).reshape(1, 3, 1, 2)
    columns = np.log(np.array([[[1, 2, 1, 9], [1, 1, 3, 9]]], np.float32))
    value = np.array([8.0, 16, 32], np.float32).reshape(1, 3, 1, 1).repeat(2, 3)
    config = synthesizer.Config(num_heads=1, length=4)
    attend = jax.jit(functools.partial(synthesizer.attend, config))
    got = attend(query, value, value, Mask(), columns)[0, :, 0, 0]
    np.testing.assert_allclose(got, [(8 + 32 + 32) / 4, 56 / 3, (8 + 16 + 9 * 32) / 11], rtol=1e-6)


def test_a_table_in_several_pieces(monkeypatch):
    monkeypatch.setattr(synthesizer, "SCORES", 5 * T)
    monkeypatch.setattr(pieces, "FEWEST", 1)
    config = synthesizer.Config(num_kv_heads=2, kind="random", length=T + 2)
    query, value = normal(0, B, T, N, H), normal(2, B, T, 2, H)
    given = value, normal(7, N, T + 2, T + 2)
    valid = np.random.default_rng(3).random((B, T)) > 0.3
    mask = masks.causal() & masks.window(6) & masks.padding(valid)

    def both(function):
        call = functools.partial(function, config, query, value)
        return with_gradients(lambda value, table: call(value, mask, table, bias=BIAS), *given)

    for got, want in zip(both(synthesizer.attend), both(synthesizer.reference), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)
    layer, x = synthesizer.Attention(config), jax.ShapeDtypeStruct((1, T, 8), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.PRNGKey(0), x)
    declared = synthesizer.flops(config, Mask(), D=8, T=T, S=T).values()
    assert cost.count(layer.apply, params, x).products == sum(part.executed for part in declared)


@pytest.mark.parametrize(
    ("fields", "layers", "made"),
    [
        ({}, {"query", "value", "out"}, {"columns": (N, 2, 20)}),
        ({"kind": "random"}, {"value", "out"}, {"columns": (N, 20, 20)}),
        (
            {"kind": "random", "rank": 3},
            {"value", "out"},
            dict.fromkeys(("rows", "columns"), (N, 3, 20)),
        ),
    ],
    ids=["dense", "random", "factored"],
)
def test_there_is_no_parameter_without_a_gradient(fields, layers, made):
    layer, x = synthesizer.Attention(synthesizer.Config(length=20, **fields)), normal(4, B, T, 8)
    params = jax.jit(layer.init)(jax.random.PRNGKey(0), x)["params"]
    assert set(params) == layers | {"scores"}
    assert {name: leaf.shape for name, leaf in params["scores"].items()} == made
    grads = jax.jit(jax.grad(lambda p: jnp.square(layer.apply({"params": p}, x)).sum()))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 1e-4, path


@pytest.mark.parametrize("length", [512, 8192])
def test_work_is_of_all_pairs_and_a_table_needs_no_scores(length):
    def parts(**fields):
        config = synthesizer.Config(num_heads=2, **fields)
        work = synthesizer.flops(config, Mask(), D=8, T=length, S=length)
        return {name: part.executed for name, part in work.items() if not part.projection}

    pair = 2 * 2 * length * length
    assert parts() == {"scores": 4 * pair, "mix": 4 * pair}
    assert parts(kind="random") == {"mix": 4 * pair}
    assert parts(kind="random", rank=3) == {"scores": 3 * pair, "mix": 4 * pair}


@pytest.mark.cpu
def test_weights_of_a_table_are_not_held_for_every_example():
    length, examples = 2048, 8
    config = synthesizer.Config(num_heads=1, kind="random", length=length)
    x = jax.ShapeDtypeStruct((examples, length, 1, H), jnp.float32)
    table = jax.ShapeDtypeStruct((1, length, length), jnp.float32)

    def loss(value, table):
        return synthesizer.attend(config, value, value, value, masks.causal(), table).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1))).lower(x, table).compile()
    assert cost.peak_bytes(gradient) < examples * 4 * length**2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "dens"}, "kind='dens' must be one of dense, random"),
        ({"length": 0}, "length=0 must be at least 1"),
        ({"kind": "random", "rank": -1}, "rank=-1 positive"),
        ({"rank": 2}, "rank=2 is of a random table"),
    ],
)
def test_illegal_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        synthesizer.Config(**fields)


def test_illegal_inputs_are_named():
    config, columns = synthesizer.Config(length=12), normal(0, N, H, 12)
    x, short = normal(0, B, T, N, H), normal(0, B, 5, N, H)
    with pytest.raises(ValueError, match="sequence of 13 tokens does not fit length=12"):
        synthesizer.attend(config, x, x, x, Mask(), columns)
    with pytest.raises(ValueError, match="sequence of 13 tokens does not fit length=12"):
        synthesizer.init_state(config, B, 13, H)
    with pytest.raises(ValueError, match="of one sequence: T=5, S=13"):
        synthesizer.attend(config, short, x, x, Mask(), columns)
    layer, tokens = synthesizer.Attention(config), normal(0, B, 5, 8)
    with pytest.raises(ValueError, match="no keys to rotate"):
        layer.init(jax.random.PRNGKey(0), tokens, rotate=lambda x: x)
