"""Layers that take heads from one before them: cross-layer attention, reused maps, one cache for many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, cost, model

B, T, V = 2, 9, 11
SIZES = {
    "inputs": "tokens",
    "vocab_size": V,
    "patch": 1,
    "width": 16,
    "ffn_width": 8,
    "num_layers": 4,
    "num_classes": 3,
    "max_length": T,
}
IDS = np.random.default_rng(0).integers(0, V, (B, T))
RNG = jax.random.PRNGKey(0)


def build(variant="dense", **changes):
    section = attention.spec(variant, num_heads=4)
    return model.build(model.spec(attention=section, **SIZES | changes))


def layers(made):
    """The names of what each layer's attention projects."""
    params = jax.eval_shape(made.init, RNG, IDS)["params"]
    return [set(params[f"block_{i}"]["attention"]) for i in range(4)]


ALL = {"query", "key", "value", "out"}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"reuse": "key_value"}, [set(), {"key", "value"}] * 2),
        ({"reuse": "query_key", "reuse_every": 4}, [set(), *[{"query", "key"}] * 3]),
        # One cache for the second half, as in a decoder-decoder.
        (
            {"reuse": "key_value", "reuse_from": 2},
            [set(), set(), set(), {"key", "value"}],
        ),
        ({"reuse": "key_value", "reuse_every": 1}, [set()] * 4),
    ],
)
def test_what_is_taken_is_not_projected(changes, missing):
    assert layers(build(**changes)) == [ALL - gone for gone in missing]


def draw(made):
    rng = np.random.default_rng(1)
    like = jax.eval_shape(made.init, RNG, IDS)["params"]
    return jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), like)


def apply(made, params):
    return np.asarray(jax.jit(made.apply)({"params": params}, IDS))


def heads_of(made, params):
    """What each layer's attention takes."""

    @jax.jit
    def run(params):
        x = model.Embedding(made.config).apply({"params": params["embedding"]}, IDS)
        shared, found = None, []
        for i in range(made.config.num_layers):
            given = None if i % made.config.reuse_every == 0 else shared
            block = model.Block(made.config)
            mask = model.mask(made.config, None)
            x, heads, *_ = block.apply({"params": params[f"block_{i}"]}, x, mask, shared=given)
            if given is None:
                shared = {name: heads[name] for name in model.REUSE[made.config.reuse]}
            found.append(heads)
        return found

    return run(params)


@pytest.mark.parametrize("reuse", ["key_value", "query_key"])
@pytest.mark.parametrize("variant", ["dense", "linear"])
def test_the_heads_are_those_of_the_layer_before(reuse, variant):
    made = build(variant, reuse=reuse, num_layers=2)
    params = draw(made)
    before, after = heads_of(made, params)
    for name in ("query", "key", "value"):
        same = np.array_equal(before[name], after[name])
        assert same == (name in model.REUSE[reuse]), name
    # They matter: the model differs from one whose layers all project, given the same parameters.
    whole = build(variant, num_layers=2)
    full = draw(whole)
    for i in range(2):
        full[f"block_{i}"]["attention"] |= params[f"block_{i}"]["attention"]
    rest = {name: x for name, x in params.items() if not name.startswith("block")}
    for i in range(2):
        kept = {n: x for n, x in params[f"block_{i}"].items() if n != "attention"}
        full[f"block_{i}"] |= kept
    assert np.abs(apply(whole, full | rest) - apply(made, params)).max() > 1e-3


def test_gradients_reach_the_one_projection_through_all_layers_that_use_it():
    made = build(reuse="key_value", reuse_every=4)
    params = draw(made)

    def loss(params, shared):
        x = model.Embedding(made.config).apply({"params": params["embedding"]}, IDS)
        mask = model.mask(made.config, None)
        for i in range(4):
            block = model.Block(made.config)
            x, heads, *_ = block.apply(
                {"params": params[f"block_{i}"]}, x, mask, shared=shared if i else None
            )
            if i == 0:
                made_here = {name: heads[name] for name in ("key", "value")}
                shared = made_here if shared is None else shared
        return jnp.square(x).sum()

    grad = jax.jit(jax.grad(lambda p: loss(p, None)))(params)
    fixed = heads_of(made, params)[0]
    fixed = {name: fixed[name] for name in ("key", "value")}
    alone = jax.jit(jax.grad(lambda p: loss(p, fixed)))(params)
    for name in ("key", "value"):
        one, other = (g["block_0"]["attention"][name]["kernel"] for g in (grad, alone))
        assert np.abs(one - other).max() > 1e-3


def test_it_saves_products():
    def counted(**changes):
        made = build(**changes)
        like = jax.eval_shape(made.init, RNG, IDS)

        return cost.count(made.apply, like, jax.ShapeDtypeStruct((1, T), jnp.int32)).products

    saved = counted() - counted(reuse="key_value")
    assert saved == 2 * 2 * (2 * T * 16 * 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reuse": "keys"}, "model.reuse='keys'; .*key_value"),
        ({"reuse": "key_value", "scan": True}, "cannot be scanned"),
        ({"reuse": "key_value", "reuse_every": 0}, "model.reuse_every=0 must be at least 1"),
        ({"reuse": "key_value", "reuse_from": -1}, "model.reuse_from=-1 must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_variant_that_makes_its_heads_its_own_way_is_refused():
    with pytest.raises(ValueError, match="'mla' makes its heads its own way"):
        build("mla", reuse="key_value")


def test_layers_that_share_keys_and_values_share_their_cache():
    bytes_of = {
        reuse: model.state_bytes(build(causal=True, pool="none", reuse=reuse).config, T)
        for reuse in model.REUSE
    }
    # Keys and values of T tokens in four layers, and the length that each cache keeps.
    assert bytes_of["none"] == 4 * (2 * T * 16 * 4 + 4)
    assert bytes_of["key_value"] == bytes_of["none"] / 2
    assert bytes_of["query_key"] is None
