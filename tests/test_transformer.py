"""Encoder-decoders, places of norms, gates, tied tables: equal to NumPy, counted, shrunk, scanned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, cost, masks, model, weights

# All different, so that no transposition can hide.
B, S, P, N, D, F, L, M, V, W = 3, 7, 5, 2, 8, 10, 2, 1, 11, 9
DRAW = np.random.default_rng(0)
GIVEN = {
    "inputs": DRAW.integers(0, W, (B, S)),
    "key_valid": np.arange(S) < np.array([[4], [7], [6]]),
    "prefix": DRAW.integers(0, W, (B, P)),
}
RNG = jax.random.PRNGKey(0)
HEADS = attention.spec("dense", num_heads=N)
SIZES = {"inputs": "tokens", "vocab_size": V, "num_classes": W, "width": D, "ffn_width": F}
SIZES |= {"num_layers": L, "decoder_layers": M, "max_length": 8, "pool": "none", "attention": HEADS}
SIZES |= {"decoder_attention": HEADS, "cross_attention": HEADS}
ORIGINAL = {"norm_place": "post", "tied_head": True, "positions": "sinusoidal"}
MODERN = {"norm": "rmsnorm", "ffn": "swiglu", "positions": "rotary"}
SHARED = {
    "vocab_size": W,
    "shared_table": True,
    "tied_head": True,
    "embed_width": 6,
    "ffn": "geglu",
}


def build(**changes):
    return model.build(model.spec(**SIZES | changes))


def draw(made, **given):
    """Parameters none of which is 0 or 1."""
    like = jax.eval_shape(lambda: made.init(RNG, **given))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), like)


def close(got, want, atol=1e-5):
    np.testing.assert_allclose(got, want, atol=atol, rtol=atol)


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
        x = x + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
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


def test_scan_changes_no_number_of_an_encoder_decoder():
    """With dropout, in outputs and gradients."""
    weight = DRAW.standard_normal((B, P, W))

    def both(scan):
        made = build(dropout=0.3, scan=scan, decoder_layers=2)
        params = draw(made, **GIVEN)

        def loss(params):
            return (weight * made.apply({"params": params}, **GIVEN, rng=RNG)).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    jax.tree.map(functools.partial(close, atol=1e-4), both(True), both(False))


VARIANTS = {
    "decoder_attention": attention.spec("window", num_heads=N, window=2),
    "cross_attention": attention.spec("mla", num_heads=N, latent=3, rope_dim=0),
}


@pytest.mark.parametrize("changes", [{}, VARIANTS], ids=["dense", "variants"])
def test_declared_flops_are_those_counted(changes):
    made = build(**changes)
    params = draw(made, **GIVEN)
    counted = cost.count(
        lambda p: made.apply({"params": p}, **{k: x[:1] for k, x in GIVEN.items()}), params
    ).products
    parts = [("attention", masks.Mask(), S, S)] * L
    parts += [("decoder_attention", masks.causal(), P, P), ("cross_attention", masks.Mask(), P, S)]
    ffn = 2 * 2 * D * F * (L * S + M * P)
    declared, unneeded = ffn + 2 * P * D * W, 0
    valid = GIVEN["key_valid"]
    for field, seen, t, s in parts:
        variant, fields = attention.build(getattr(made.config, field))
        seen = seen if field == "decoder_attention" else masks.padding(valid)
        work = variant.flops(fields, seen, D=D, T=t, S=s).values()
        declared += sum(part.executed for part in work)
        unneeded += sum(part.executed - part.useful for part in work)
    assert counted == declared
    seen = model.mask(made.config, valid)
    assert model.unneeded_flops(made.config, S, seen, P) == pytest.approx(unneeded)
    if not changes:
        dense = 4 * D * (L * (S * S - S * valid.sum(1).mean()) + P * P - P * (P + 1) // 2)
        assert unneeded == pytest.approx(dense + 4 * D * (P * S - P * valid.sum(1).mean()))


def test_state_of_a_decoder_and_of_what_it_attends_to():
    found = model.state_bytes(build().config, S, P)
    assert found == M * (2 * P * D * 4 + 4 + 2 * S * D * 4)
    assert model.state_bytes(build(**VARIANTS).config, S, P) == 2 * 2 * D * 4 + 4 + S * 3 * 4


def test_a_tied_table_counts_once_and_trains_from_both_ends():
    made = build(**SHARED)
    params = draw(made, **GIVEN)
    assert "embedding" in params["decoder"] and "tokens" not in params["decoder"]["embedding"]
    untied = draw(build(**SHARED | {"tied_head": False, "shared_table": False}), **GIVEN)
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    # The decoder's table goes, and of the head what is from the embedding's width to the classes.
    head = D * W + W - (D * 6 + 6)
    assert size(untied) - size(params) == W * 6 + head
    theta = weights.build([weights.spec("share")]).init(RNG, params)
    assert weights.sizes(theta).params < size(params)


PRUNED = {
    "encoder and decoder": ({"pattern": "heads", "units": N}, ("attention", "decoder_attention")),
    "cross": (
        {
            "pattern": "heads",
            "units": N,
            "outputs": r"/cross_attention/(query|key|value)/kernel$",
            "inputs": r"/cross_attention/((query|key|value)/bias|out/kernel)$",
            "judges": r"/cross_attention/(value|out)/kernel$",
        },
        ("cross_attention",),
    ),
    "columns": ({"pattern": "ffn", "sparsity": 0.3}, ()),
}


@pytest.mark.parametrize("name", PRUNED)
def test_what_is_pruned_whole_is_gone_from_both_stacks(name):
    fields, fewer = PRUNED[name]
    made = build(ffn="swiglu")
    params = draw(made, **GIVEN)
    theta = weights.build([weights.spec("prune", **fields)]).init(RNG, params)
    masked, small = weights.fold(theta), weights.fold(weights.removed(theta))
    left = model.Transformer(model.shrink(made.config, masked, small))
    for field in ("attention", "decoder_attention", "cross_attention"):
        heads = getattr(left.config, field)["num_heads"]
        assert heads == (1 if field in fewer else N), field
    assert left.config.ffn_width == (7 if name == "columns" else F)
    want = jax.jit(made.apply)({"params": masked}, **GIVEN)
    close(jax.jit(left.apply)({"params": small}, **GIVEN), want)


@pytest.mark.parametrize("changes", [{"tied_head": True}, {"norm_place": "post", "ffn": "swiglu"}])
def test_a_loss_at_initialisation_is_that_of_guessing(changes):
    """Of all classes alike: ln(classes), and half the variance of small logits more."""
    made = build(**changes, init="truncated_normal", width=32, num_classes=W, embed_width=0)
    params = jax.jit(lambda: made.init(RNG, **GIVEN))()["params"]
    loss = -jax.nn.log_softmax(jax.jit(made.apply)({"params": params}, **GIVEN)).mean()
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
        ({"norm": "batch"}, "model.norm='batch'; Valid names: layernorm, rmsnorm"),
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
    with pytest.raises(ValueError, match="segment_ids pack texts of tokens"):
        jax.eval_shape(lambda: build().init(RNG, ids, prefix=ids, segment_ids=ids))
