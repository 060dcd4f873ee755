"""Sampling: what may be drawn is as the definitions say, and is drawn with its probability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, generate, model

P, V = 3, 7
DRAW = np.random.default_rng(0)
PROMPT = DRAW.integers(0, V, (1, P))
RNG = jax.random.PRNGKey(0)
MODEL = {"inputs": "tokens", "vocab_size": V, "num_classes": V, "width": 8, "ffn_width": 6}
MODEL |= {"causal": True, "pool": "none", "attention": attention.spec("dense", num_heads=2)}


def kept(logits, temperature, top_k, top_p):
    """The probabilities of one row that may be drawn, by the definitions."""
    p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    order = np.argsort(-p)
    if top_k:
        order = order[:top_k]
    p = p / p[order].sum()
    total, allowed = 0.0, []
    for i in order:
        if total < top_p:
            allowed.append(i)
        total += p[i]
    found = np.zeros_like(p)
    found[allowed] = p[allowed] / p[allowed].sum()
    return found


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, 0, 1.0), (1.0, 3, 1.0), (1.3, 0, 0.6), (0.9, 4, 0.8), (1.0, 1, 1.0), (1.0, 0, 1e-6)],
)
def test_what_may_be_drawn(temperature, top_k, top_p):
    logits = DRAW.standard_normal((5, 9))
    got = jax.nn.softmax(generate.filtered(jnp.asarray(logits), temperature, top_k, top_p))
    for row, want in zip(got, logits, strict=True):
        np.testing.assert_allclose(row, kept(want, temperature, top_k, top_p), atol=1e-6)


def test_what_is_drawn_has_its_probability():
    """The first token of many draws, and the second after it, against what may be drawn."""
    built = model.build(model.spec(**MODEL))
    like = jax.eval_shape(lambda: built.init(RNG, PROMPT))["params"]
    params = jax.tree.map(lambda x: 0.6 * DRAW.standard_normal(x.shape).astype(np.float32), like)
    options = {"temperature": 1.5, "top_k": 4, "top_p": 0.9}
    write = generate.sample(built, steps=2, **options)
    many = 3000
    row = np.repeat(PROMPT, many, axis=0)
    got = write(params, row, rng=jax.random.PRNGKey(1))
    again = write(params, row, rng=jax.random.PRNGKey(1))
    np.testing.assert_array_equal(got.ids, again.ids)
    first = int(np.bincount(got.ids[:, 0]).argmax())
    ids = np.append(PROMPT, [[first]], axis=1)
    exact = np.float64(jax.nn.log_softmax(jax.jit(built.apply)({"params": params}, ids)))[0]
    for drawn, place in ((got.ids[:, 0], P - 1), (got.ids[got.ids[:, 0] == first, 1], P)):
        want = kept(exact[place], *options.values())
        share = np.bincount(np.asarray(drawn), minlength=V) / len(drawn)
        bound = 5 * np.sqrt(want * (1 - want) / len(drawn))
        assert (np.abs(share - want) <= bound).all()
    # Scores are the model's own probabilities, whatever was left to draw from.
    own = got.ids[:, 0] == first
    pairs = exact[P - 1, first] + exact[P][np.asarray(got.ids[own, 1])]
    np.testing.assert_allclose(got.score[own], pairs, atol=1e-5, rtol=1e-5)
