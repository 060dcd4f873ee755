"""Layers of different variants: hybrids by layout, their costs, and one cache for a second half."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from tinyattn import attention, config, cost, masks, model
from tinyattn.attention.sparse import window

B, T, V, D, F, L = 2, 9, 11, 16, 8, 4
SIZES = {
    "inputs": "tokens",
    "vocab_size": V,
    "patch": 1,
    "width": D,
    "ffn_width": F,
    "num_layers": L,
    "num_classes": 3,
    "max_length": T,
    "causal": True,
}
IDS = np.random.default_rng(0).integers(0, V, (B, T))
RNG = jax.random.PRNGKey(0)
DENSE = attention.spec("dense", num_heads=4)
LOCAL = attention.spec("window", num_heads=4, window=2)
RECURRENT = attention.spec("linear", num_heads=4)
CACHED_ONCE = {
    "also": (LOCAL,),
    "layout": "1100",
    "reuse": "key_value",
    "reuse_from": 2,
    "reuse_every": 2,
}


def build(**changes):
    return model.build(model.spec(**{**SIZES, "attention": DENSE, **changes}))


@functools.cache
def shapes(name):
    made = {
        "dense": build,
        "local": lambda: build(attention=LOCAL),
        "hybrid": lambda: build(also=(RECURRENT, LOCAL), layout="0121"),
        "cached once": lambda: build(**CACHED_ONCE),
    }[name]()
    return made, jax.eval_shape(made.init, RNG, IDS)["params"]


def draw(like):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), like)


def value_and_grads(apply, params):
    def loss(params):
        out = apply(params)
        return jnp.square(out).sum(), out

    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss, has_aux=True))(params))


def test_every_layer_mixes_by_its_own_variant():
    """The model is what its parts are, each taken from a model whose layers are all alike."""
    sections = (DENSE, RECURRENT, LOCAL)
    made = build(also=sections[1:], layout="012", num_layers=3)
    like = jax.eval_shape(made.init, RNG, IDS)["params"]

    def by_hand(params):
        x = model.Embedding(made.config).apply({"params": params["embedding"]}, IDS)
        for i, section in enumerate(sections):
            block = model.Block(build(attention=section).config)
            x = block.apply({"params": params[f"block_{i}"]}, x, masks.causal()).tokens
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
        return x.mean(1) @ params["head"]["kernel"] + params["head"]["bias"]

    params = draw(like)
    got = value_and_grads(lambda p: made.apply({"params": p}, IDS), params)
    want = value_and_grads(by_hand, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), got, want)


def test_a_layout_of_one_section_twice_is_the_same_program():
    made, like = shapes("dense")
    twice = build(also=(DENSE,), layout="01")
    one, other = (str(jax.make_jaxpr(m.apply)({"params": like}, IDS)) for m in (made, twice))
    assert one == other


def counted(name):
    made, like = shapes(name)
    return cost.count(
        made.apply, {"params": like}, jax.ShapeDtypeStruct((1, T), jnp.int32)
    ).products


@pytest.mark.parametrize("name", ["hybrid", "cached once"])
def test_declared_equals_counted_flops(name):
    made, _ = shapes(name)
    declared = L * 2 * (2 * T * D * F) + 2 * D * 3  # feed-forward layers and the head
    for variant, fields in model.mixers(made.config):
        work = variant.flops(fields, masks.causal(), D=D, T=T, S=T).values()
        declared += sum(part.executed for part in work)
    if name == "cached once":
        declared -= 2 * (2 * T * D * D)  # the last layer's keys and values
    assert counted(name) == declared


def test_costs_are_sums_over_layers(monkeypatch):
    dense, local, once = (shapes(name)[0].config for name in ("dense", "local", "cached once"))
    unneeded = [model.unneeded_flops(c, T, masks.causal()) for c in (dense, local, once)]
    assert unneeded[2] == (unneeded[0] + unneeded[1]) / 2 and unneeded[0] != unneeded[1]
    # Two windows of two tokens, and one cache of all tokens for the two layers after them.
    assert model.state_bytes(once, T) == 2 * (2 * 2 * D * 4 + 4) + (2 * T * D * 4 + 4)
    # A layer that cannot decode is enough.
    monkeypatch.delattr(attention.load("fixed"), "state_bytes")
    fixed = attention.spec("fixed", num_heads=4)
    assert model.state_bytes(build(also=(fixed,), layout="01").config, T) is None


def test_one_simulated_layer_makes_a_simulated_model(monkeypatch):
    dense, once = (shapes(name)[0].config for name in ("dense", "cached once"))
    assert not model.simulated(once)
    monkeypatch.setattr(window, "SIMULATED", True)
    assert model.simulated(once) and not model.simulated(dense)


def test_what_is_cached_once_is_made_by_the_first_layer_of_the_second_half():
    _, like = shapes("cached once")
    names = [set(like[f"block_{i}"]["attention"]) for i in range(L)]
    every = {"query", "key", "value", "out"}
    assert names == [every, every, every, every - {"key", "value"}]


def test_a_config_file_takes_sections_and_their_leaves():
    base = digits.get_config()
    local = attention.spec("window", window=2)
    row = config.override(base, {"model.also": (local,), "model.layout": "10"})
    assert row.model.also[0]["window"] == 2
    made = model.build(row.model)
    assert [v.__name__.rpartition(".")[2] for v, _ in model.mixers(made.config)] == [
        "window",
        "dense",
    ]
    assert config.digest(row) != config.digest(base)
    wider = config.override(row, {"model.also[0].window": 3})
    assert model.mixers(model.build(wider.model).config)[0][1].window == 3


ODD = attention.spec("window", num_heads=4, head_dim=3)
LATENT = attention.spec("mla", num_heads=4)
NO_CAUSAL = attention.spec("nystrom", num_heads=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "01"}, "layout='01' must be .* digits from '0': 0 is model.attention"),
        ({"also": (LOCAL,), "layout": "0x"}, "layout='0x' must be .* digits from '01'"),
        ({"also": (LOCAL,), "layout": "01010"}, "must be at most num_layers=4 digits"),
        ({"also": (LOCAL,)}, "layout='' gives no layer the section 1"),
        ({"also": (LOCAL,), "layout": "1"}, "layout='1' gives no layer the section 0"),
        ({"also": (LOCAL,) * 10, "layout": "01"}, "also has 10 sections"),
        ({"also": (LOCAL,), "layout": "01", "scan": True}, "layout='01' .* cannot be scanned"),
        ({"also": ("window",), "layout": "01"}, "'window' is no section"),
        ({"also": (NO_CAUSAL,), "layout": "01"}, "'nystrom' cannot honour causal"),
        ({"also": (ODD,), "layout": "01", "positions": "rotary"}, "head width 3 is odd"),
        (
            {"also": (RECURRENT,), "layout": "01", "positions": "alibi"},
            "attention 'linear' has not",
        ),
        (
            {
                "also": (attention.spec("dense", num_heads=2),),
                "layout": "01",
                "positions": "alibi",
            },
            "attention 'dense' has num_heads=2 and model.attention 4",
        ),
        (
            {"also": (LOCAL,), "layout": "10", "reuse": "key_value"},
            "layer 1 takes heads from layer 0, which has another variant by the layout '1010'",
        ),
        (
            {"also": (LATENT,), "layout": "0011", "reuse": "key_value"},
            "'mla' makes its heads its own way",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_layers_that_share_nothing_may_make_their_heads_their_own_way():
    build(**CACHED_ONCE | {"also": (LATENT,)})
