"""Affine layers that read int8: values, gradients, and nobody else's scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import report
from tests.fake_results import captions, frame
from tinyattn import activations, affine, attention, cost, model, weights

RNG = jax.random.PRNGKey(0)
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(2, 3, 5)).astype(np.float32) * [[[1], [1e3], [1e-3]]]
X = X.astype(np.float32)
X[1, 2] = 0


def by_hand(x, largest):
    """Token by token, in float64."""
    wide = np.float64(x).reshape(-1, x.shape[-1])
    for i, token in enumerate(wide):
        if token.any():
            step = np.abs(token).max() / largest
            wide[i] = [step * round(float(feature / step)) for feature in token]
    return wide.reshape(x.shape)


@pytest.mark.parametrize(("kind", "largest"), [("int8", 127), ("int4", 7)])
def test_a_token_is_whole_numbers_of_a_scale_of_its_own(kind, largest):
    with activations.kept_as(kind):
        got = activations.rounded(X)
        half = activations.rounded(X.astype(jnp.bfloat16))
    np.testing.assert_allclose(got, by_hand(X, largest), rtol=1e-5)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half[0].astype(np.float32), got[0], rtol=0.02, atol=1.2 / largest)
    assert np.abs(got - X)[0, 0].max() > 1e-4
    assert activations.rounded(X) is X


def test_the_gradient_passes_as_if_nothing_were_rounded():
    kernel, dy = DRAW.normal(size=(5, 4)), DRAW.normal(size=(2, 3, 4))
    kernel, dy = kernel.astype(np.float32), dy.astype(np.float32)

    def dense(x, kernel):
        with activations.kept_as("int8"):
            x = activations.rounded(x)
        return affine.affine(x, kernel, jnp.zeros(4))

    y, back = jax.vjp(dense, X, kernel)
    dx, dkernel = back(dy)
    np.testing.assert_allclose(y, by_hand(X, 127) @ kernel, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, dy @ kernel.T, rtol=1e-5, atol=1e-6)
    want = np.einsum("bti,bto->io", by_hand(X, 127), dy)
    np.testing.assert_allclose(dkernel, want, rtol=1e-4, atol=1e-3)


IDS = DRAW.integers(1, 9, (3, 6))
VALID = np.arange(6) < np.array([[6], [2], [4]])
FIELDS = {"inputs": "tokens", "vocab_size": 9, "width": 8, "ffn_width": 6, "num_classes": 3}
FIELDS |= {"max_length": 6, "embed_width": 4}


def built(**changes):
    return model.build(model.spec(**FIELDS | changes))


def params_of(made, *given, **named):
    like = jax.eval_shape(lambda: made.init(RNG, *given, **named))["params"]
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.6 * draw.standard_normal(x.shape).astype(np.float32), like)


def test_neither_padding_nor_another_example_moves_a_scale():
    made = built(activations="int8")
    params = params_of(made, IDS)
    run, plain = (
        jax.jit(lambda ids, made=made: made.apply({"params": params}, ids, VALID))
        for made in (made, built())
    )
    before = run(IDS)
    np.testing.assert_array_equal(run(np.where(VALID, IDS, 5)), before)
    others = IDS.copy()
    others[1:] = 9 - others[1:]
    np.testing.assert_array_equal(run(others)[0], before[0])
    assert np.abs(run(others)[1:] - before[1:]).min() > 0
    assert 1e-4 < np.abs(plain(IDS) - before).max() < 0.5


DELTANET = attention.spec("deltanet", gated=True)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        # Project, then queries to values, out, up and down in each of two layers, and the head.
        ({}, 1 + 2 * 4 + 1),
        ({"scan": True}, 1 + 4 + 1),
        ({"tied_head": True, "num_classes": 9, "embed_width": 0}, 2 * 4 + 1),
        ({"attention": DELTANET, "num_layers": 1, "pooler": True}, 1 + 4 + 2 + 1 + 1),
        (
            {"decoder_layers": 1, "num_layers": 1, "pool": "none", "embed_width": 0},
            4 + (4 + 3) + 1,
        ),
    ],
)
def test_every_affine_layer_reads_it_and_no_product_is_saved(changes, layers, monkeypatch):
    given = {"inputs": IDS} | ({"prefix": IDS % 3} if "decoder_layers" in changes else {})
    params = params_of(built(**changes), **given)

    def products(kind):
        made = built(activations=kind, **changes)
        return cost.count(lambda params: made.apply({"params": params}, **given), params).products

    assert products("int8") == products("float")
    read, own = [], activations._rounded
    monkeypatch.setattr(
        activations, "_rounded", lambda x, largest: read.append(x) or own(x, largest)
    )
    products("float")
    assert not read
    products("int8")
    assert len(read) == layers


def test_it_trains_with_weights_of_few_bits():
    """The same numbers from kernels in factors, as they are trained, as from those that are stored."""
    made = built(activations="int8", num_layers=1)
    lora = weights.presets.lora(2, leaves="kernel$")
    int8 = weights.spec("quantize", leaves="kernel/w0$")
    theta = weights.build([lora, int8]).init(RNG, params_of(made, IDS))
    takes = affine.takes(made, IDS)
    trainable, rest = weights.partition(jax.tree.map(jnp.asarray, theta))

    @jax.jit
    def step(trainable):
        def loss(trainable):
            params = weights.layers(weights.combine(trainable, rest), takes)
            logits = affine.apply(made, params, IDS, VALID)
            return jnp.sin(logits).sum(), logits

        return jax.grad(loss, has_aux=True)(trainable)

    grads, logits = step(trainable)
    stored = weights.fold(weights.compact(theta))
    want = jax.jit(lambda params: made.apply({"params": params}, IDS, VALID))(stored)
    np.testing.assert_allclose(logits, want, atol=1e-5, rtol=1e-5)
    norms = [float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)]
    assert np.isfinite(norms).all() and np.mean(np.array(norms) > 0) > 0.5


def test_rows_that_round_are_marked_and_explained():
    runs = frame(dense=[0.97, 0.96], W8A8=[0.95, 0.94])
    runs["config.model.activations"] = "float"
    assert "‡" not in report.markdown(report.summarise(runs))
    runs.loc[runs["row"] == "W8A8", "config.model.activations"] = "int8"
    summary = report.summarise(runs)
    text = report.markdown(summary)
    assert "| W8A8 ‡" in text and "- ‡ activations rounded to" in text and "dense ‡" not in text
    assert "‡ activations rounded to" in captions(report.figure(summary))


def test_a_kind_that_there_is_not():
    with pytest.raises(ValueError, match=r"model\.activations='int3'; did you mean 'int"):
        built(activations="int3")
