"""Pruning of heads and FFN columns: the model that is left is really smaller, and gives the same."""

import functools

import jax
import numpy as np
import pytest

from configs import digits
from tinyattn import attention, config, cost, masks, model, sweep, train, weights
from tinyattn.attention.full import dense

RNG = jax.random.PRNGKey(3)
IDS = np.array([[0, 3, 6, 1, 2], [5, 4, 0, 6, 3]], np.int32)


def spec(**fields):
    return weights.spec("prune", **fields)


HEADS = spec(pattern="heads", units=2)
COLUMNS = spec(pattern="ffn", sparsity=0.25)


@functools.cache
def network():
    """An encoder, and its params, none of them zero."""
    heads = attention.spec("dense", num_heads=4, num_kv_heads=2, gate=True, sink="learned")
    sizes = {"width": 8, "num_layers": 2, "ffn_width": 12, "num_classes": 3, "max_length": 5}
    encoder = model.build(model.spec(inputs="tokens", vocab_size=7, attention=heads, **sizes))
    params, rng = jax.jit(encoder.init)(RNG, IDS)["params"], np.random.default_rng(0)

    # By NumPy: JAX would compile a sum for every shape.
    def noisy(x):
        return np.asarray(x) + (0.1 * rng.standard_normal(x.shape)).astype(x.dtype)

    return encoder, jax.tree.map(noisy, params)


# In one program, where a product of each shape would be one.
fold = jax.jit(weights.fold)


compiled = {}


def outputs(encoder, params):
    name = repr(encoder.config)
    if name not in compiled:
        compiled[name] = jax.jit(lambda params: encoder.apply({"params": params}, IDS))
    return compiled[name](params)


def resized(encoder, theta):
    """The model without what theta prunes whole, and its params."""
    small = fold(weights.removed(theta))
    return model.Transformer(model.shrink(encoder.config, fold(theta), small)), small


def test_heads_and_columns_are_really_removed():
    encoder, params = network()
    theta = weights.build([HEADS, COLUMNS]).init(RNG, params)
    smaller, small = resized(encoder, theta)
    _, fields = attention.build(smaller.config.attention)
    assert (fields.num_heads, fields.num_kv_heads, fields.head_dim) == (2, 1, 2)
    assert smaller.config.ffn_width == 9
    masked = outputs(encoder, fold(theta))
    np.testing.assert_allclose(outputs(smaller, small), masked, atol=5e-7, rtol=0)
    for i in range(2):
        block, left = params[f"block_{i}"], small[f"block_{i}"]
        value, out = (block["attention"][name]["kernel"] for name in ("value", "out"))
        norms = [np.linalg.norm(value[:, 2 * k : 2 * k + 2]) for k in range(2)]
        norms = [norms[k] * np.linalg.norm(out[4 * k : 4 * k + 4]) for k in range(2)]
        k = int(np.argmax(norms))
        kept = {"query": (1, 4), "key": (1, 2), "value": (1, 2), "gate": (1, 4), "out": (0, 4)}
        for name, (axis, wide) in kept.items():
            want = np.take(
                block["attention"][name]["kernel"], range(k * wide, k * wide + wide), axis
            )
            np.testing.assert_array_equal(left["attention"][name]["kernel"], want)
        up, down = (block["ffn"][name]["kernel"] for name in ("up", "down"))
        best = np.argsort(np.linalg.norm(up, axis=0) * np.linalg.norm(down, axis=1))[3:]
        np.testing.assert_array_equal(left["ffn"]["down"]["kernel"], down[np.sort(best)])

    def executed(encoder, params):
        one = lambda params: encoder.apply({"params": params}, IDS[:1])  # noqa: E731
        return cost.count(one, params).products

    work = dense.flops(fields, masks.Mask(), D=8, T=5, S=5).values()
    declared = 2 * (sum(part.executed for part in work) + 2 * 2 * 5 * 8 * 9) + 2 * 8 * 3
    assert executed(smaller, small) == declared < executed(encoder, params)
    sizes = weights.sizes(theta)
    assert sizes.params == sum(x.size for x in jax.tree.leaves(small))
    assert sizes.trainable == sum(x.size for x in jax.tree.leaves(params))
    # A bit a head and a column, in each of two layers.
    assert sizes.bytes == 4 * sizes.params + 2 * (1 + 2)


@pytest.mark.parametrize("first", [True, False])
def test_shared_layers_are_pruned_and_stored_once_in_either_order(first):
    encoder, params = network()
    share = weights.spec("share", keep="norm")
    single = spec(leaves="embedding/positions", sparsity=0.9)
    parts = [HEADS, single, spec(pattern="ffn", sparsity=0.25, score="movement", end=1), share]
    scheme = weights.build(parts if first else parts[-1:] + parts[:-1])
    theta = scheme.update(scheme.init(RNG, params), 1)
    smaller, small = resized(encoder, theta)
    masked = outputs(encoder, fold(theta))
    np.testing.assert_allclose(outputs(smaller, small), masked, atol=5e-7, rtol=0)
    jax.tree.map(np.testing.assert_array_equal, fold(weights.compact(theta)), fold(theta))
    kept = sum(x.size for x in jax.tree.leaves(small))
    norms = {k: v.size for k, v in weights.leaves(small["block_1"]).items() if "norm" in k}
    once = kept - sum(x.size for x in jax.tree.leaves(small["block_1"])) + sum(norms.values())
    assert weights.sizes(theta).params == once
    assert weights.sizes(theta).bytes == 4 * (once - 36) + 5 + 1 + 2


TINY = {
    "model.patch": 4,
    "model.width": 8,
    "model.num_layers": 1,
    "model.ffn_width": 8,
    "train.batch_size": 16,
    "train.steps": 8,
    "optim.warmup_steps": 0,
}


def test_costs_are_those_of_the_model_that_is_left():
    gradual = [
        spec(pattern="heads", units=4, sparsity=0.75, begin=2, end=6, every=2),
        spec(pattern="ffn", sparsity=0.5, score="movement", end=8 - 1),
    ]
    resolved = config.override(digits.get_config(), TINY | {"weights": gradual})
    program = train.make(resolved)
    state = program.init(0)
    found = train.costs(program, state, train.forward(program, state))
    want = config.override(
        digits.get_config(),
        TINY
        | {"model.ffn_width": 4, "model.attention.num_heads": 1, "model.attention.head_dim": 2},
    )
    less = train.make(want)
    alone = less.init(0)
    few = jax.tree.map(lambda x: x[:1], program.task.test)
    apply = lambda params: less.model.apply({"params": params}, few.inputs, few.key_valid)  # noqa: E731
    assert found["executed_flops"] == cost.count(apply, alone.theta).products
    assert found["executed_flops"] == sweep.price(resolved, "executed_flops")
    assert found["params"] == weights.sizes(alone.theta).params
    assert found["stored_bytes"] == 4 * found["params"] + 1 + 1
    full = weights.partition(state.theta)[0]
    assert found["trainable_params"] == sum(x.size for x in jax.tree.leaves(full))


def test_heads_that_are_not_alike_are_not_removed():
    """ALiBi gives each head a slope by its number."""
    heads = [spec(pattern="heads", units=4, score="random")]
    program = train.make(
        config.override(digits.get_config(), TINY | {"weights": heads, "model.positions": "alibi"})
    )
    with pytest.raises(ValueError, match="not alike"):
        train.forward(program, program.init(0))


def test_what_is_no_whole_unit_is_refused_with_the_reason():
    encoder, params = network()
    few = weights.spec("share", leaves="attention/value")
    inner = spec(pattern="heads", units=2, outputs="weight$")
    for specs, message in (
        ([spec(pattern="heads", units=2, sparsity=0.1)], "prunes 0: at least one must stay"),
        ([spec(pattern="heads", units=3)], "does not fall into units=3"),
        ([few, HEADS], "share all or none"),
        ([spec(leaves="value/kernel$"), inner], "prune first"),
        ([spec(pattern="ffn", judges="norm")], "is found in none of"),
        ([spec(pattern="ffn", layers=r"layer_(\d+)")], "no layer as"),
        ([spec(pattern="ffn", outputs="fc1")], "no leaf matches"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.build(specs).init(RNG, params)
    theta = weights.build([spec(pattern="heads", units=4, sparsity=0.25)]).init(RNG, params)
    with pytest.raises(ValueError, match="prune in units=2"):
        resized(encoder, theta)
