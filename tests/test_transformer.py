"""Encoder-decoders, places of norms, gates, tied tables: equal to plain NumPy; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seq2seq import GIVEN, MODERN, ORIGINAL, RNG, SHARED, B, D, N, P, W, build, close, draw

from tinyattn import attention

# The model again, from the papers' formulas, in NumPy and float64.


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(config, x, p):
    if config.norm == "rmsnorm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def feed_forward(config, x, p):
    up = linear(x, p["up"])
    if config.ffn == "gelu":
        return linear(gelu(up), p["down"])
    gate = linear(x, p["gate"])
    gate = gelu(gate) if config.ffn == "geglu" else gate / (1 + np.exp(-gate))
    return linear(gate * up, p["down"])


def turned(x):
    half = x.shape[1] // 2
    w = 10_000.0 ** (-np.arange(half) / half)
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * np.arange(len(x))[:, None] * w)
    return np.concatenate([z.real, z.imag], axis=1)


def attended(x, memory, p, allowed, turn=np.asarray):
    query, key, value = (
        linear(y, p[name]) for name, y in (("query", x), ("key", memory), ("value", memory))
    )
    outs = []
    for own in (slice(n * D // N, (n + 1) * D // N) for n in range(N)):
        scores = turn(query[:, own]) @ turn(key[:, own]).T / np.sqrt(D // N)
        table = np.where(allowed, np.exp(scores), 0)
        outs.append(table / table.sum(1, keepdims=True) @ value[:, own])
    return linear(np.concatenate(outs, axis=1), p["out"])


def stack(config, p, x, allowed, memory=None, seen=None):
    """The tokens [T, D] of an encoder or decoder of embedded tokens [T, E], with the last norm."""
    if config.positions == "sinusoidal":
        E = x.shape[1]
        angles = np.arange(len(x))[:, None] / 10_000 ** (np.arange(E // 2) / (E // 2))
        x = np.sqrt(E) * x + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    if config.positions == "learned":
        x = x + p["embedding"]["positions"][: len(x)]
    if config.embed_width:
        x = linear(x, p["embedding"]["project"])
    turn = turned if config.positions == "rotary" else np.asarray
    post = config.norm_place == "post"
    x = norm(config, x, p["norm"]) if post else x
    layers = sorted(name for name in p if name.startswith("block"))
    for q in (p[name] for name in layers):
        parts = {"attention": lambda y, q=q: attended(y, y, q["attention"], allowed, turn)}
        if memory is not None:
            across = lambda y, q=q: attended(y, memory, q["cross_attention"], seen)  # noqa: E731
            parts["cross_attention"] = across
        parts["ffn"] = lambda y, q=q: feed_forward(config, y, q["ffn"])
        for name, part in parts.items():
            own = q[f"norm_{name}"]
            x = norm(config, x + part(x), own) if post else x + part(norm(config, x, own))
    return x if post else norm(config, x, p["norm"])


def expected(config, p, inputs, valid, prefix):
    """The logits of one example, [P, W]."""
    p = jax.tree.map(np.float64, p)
    table = p["embedding"]["tokens"]["embedding"]
    memory = stack(config, p, table[inputs], valid)
    own = table if config.shared_table else p["decoder"]["embedding"]["tokens"]["embedding"]
    causal = np.tril(np.ones((P, P), bool))
    x = stack(config, p["decoder"], own[prefix], causal, memory, valid)
    if not config.tied_head:
        return linear(x, p["head"])
    return (linear(x, p["head"]) if config.embed_width else x) @ own.T


@pytest.mark.parametrize("changes", [ORIGINAL, MODERN, SHARED], ids=["2017", "modern", "shared"])
def test_an_encoder_decoder_equals_numpy(changes):
    made = build(**changes)
    params = draw(made, **GIVEN)
    got = jax.jit(made.apply)({"params": params}, **GIVEN)
    assert got.shape == (B, P, W) and got.dtype == jnp.float32
    for b in range(B):
        close(got[b], expected(made.config, params, *(x[b] for x in GIVEN.values())))


def test_a_post_norm_encoder_equals_numpy_and_has_the_parameters_of_a_pre_norm_one():
    changes = {"decoder_layers": 0, "positions": "learned", "norm_place": "post"}
    made = build(**changes)
    given = {name: GIVEN[name] for name in ("inputs", "key_valid")}
    params = draw(made, **given)
    got = jax.jit(made.apply)({"params": params}, **given)
    for b in range(B):
        ids, valid = (x[b] for x in given.values())
        p = jax.tree.map(np.float64, params)
        x = stack(made.config, p, p["embedding"]["tokens"]["embedding"][ids], valid)
        close(got[b], linear(x, p["head"]))
    pre = draw(build(**changes | {"norm_place": "pre"}), **given)
    assert jax.tree.map(np.shape, pre) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("changes", [{"tied_head": True}, {"norm_place": "post", "ffn": "swiglu"}])
def test_a_loss_at_initialisation_is_that_of_guessing(changes):
    """Of all classes alike: ln(classes), and half the variance of small logits more."""
    made = build(**changes, init="truncated_normal", width=32, num_layers=1)
    logits = jax.jit(lambda: made.apply(made.init(RNG, **GIVEN), **GIVEN))()
    loss = -jax.nn.log_softmax(logits).mean()
    assert 0 <= loss - np.log(W) < 0.05


def test_gradients_reach_every_parameter():
    made = build(**MODERN)
    params = draw(made, **GIVEN)
    loss = lambda p: jnp.sin(made.apply({"params": p}, **GIVEN)).sum()  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        leaf = jax.tree_util.keystr(path, simple=True, separator="/")
        # A softmax does not see the key's bias, unless positions turn it.
        assert np.abs(grad).max() > 1e-5 or leaf.endswith("cross_attention/key/bias"), leaf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "group"}, "model.norm='group'; Valid names: batchnorm, layernorm, rmsnorm"),
        ({"ffn": "glu"}, "model.ffn='glu'; did you mean .*'geglu'"),
        ({"norm_place": "before"}, "model.norm_place='before'"),
        ({"decoder_layers": -1}, "model.decoder_layers=-1 must be at least 0"),
        ({"pool": "mean"}, "gives an output for every token of the prefix: set pool = 'none'"),
        ({"causal": True}, "model.causal=True is of a decoder without an encoder"),
        ({"cross_attention": attention.spec("window")}, "'window' cannot honour cross"),
        ({"decoder_attention": attention.spec("nystrom")}, "'nystrom' cannot honour causal"),
        (
            {"decoder_layers": 0, "tied_head": True},
            "model.tied_head reads logits off the one table",
        ),
        ({"shared_table": True}, "vocab_size = num_classes"),
        ({"tokeniser": 1}, "model.tokeniser=1 makes tokens of patches or frames"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_prefix_is_given_where_it_is_read():
    ids = GIVEN["inputs"]
    with pytest.raises(ValueError, match="no prefix is given"):
        jax.eval_shape(lambda: build().init(RNG, ids))
    with pytest.raises(ValueError, match="a prefix is given"):
        jax.eval_shape(lambda: build(decoder_layers=0).init(RNG, ids, prefix=ids))
    with pytest.raises(ValueError, match="decoder_layers=1 give both or neither"):
        jax.eval_shape(lambda: build().init(RNG, ids, prefix=ids, segment_ids=ids))
    with pytest.raises(ValueError, match="decoder_layers=1 give both or neither"):
        jax.eval_shape(lambda: build().init(RNG, ids, prefix=ids, prefix_segments=ids))
    with pytest.raises(ValueError, match="decoder_layers=0 give no prefix_segments"):
        jax.eval_shape(lambda: build(decoder_layers=0).init(RNG, ids, prefix_segments=ids))
