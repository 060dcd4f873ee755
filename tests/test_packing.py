"""Several texts packed into a row are the texts one by one: outputs, gradients, positions, states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, model

V, D, N, T = 11, 8, 2, 12
DRAW = np.random.default_rng(0)
# A text is a run of one id; the last of the second row is padding that has the id of no text.
SEGMENTS = np.array([[3] * 5 + [1] * 4 + [7] * 3, [2] * 2 + [5] * 7 + [0] * 3])
VALID = SEGMENTS > 0
IDS = DRAW.integers(0, V, (2, T))
WEIGHT = DRAW.standard_normal((2, T, 4)).astype(np.float32)
PIECES = [(0, 0, 5), (0, 5, 9), (0, 9, 12), (1, 0, 2), (1, 2, 9)]
LONGEST = 7


def build(name, **changes):
    section = {"inputs": "tokens", "vocab_size": V, "num_classes": 4, "width": D, "ffn_width": 6}
    section |= {"pool": "none", "attention": attention.spec(name, num_heads=N), "token_types": 2}
    return model.build(model.spec(**section | {"max_length": T} | changes))


def draw(made):
    like = jax.eval_shape(lambda: made.init(jax.random.PRNGKey(0), IDS))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), like)


def unpacked(x, pieces=PIECES, longest=LONGEST):
    """[2, T, ...] as a text a row, [5, longest, ...], zeros behind it."""
    rows = np.zeros((len(pieces), longest, *x.shape[2:]), x.dtype)
    for i, (b, first, end) in enumerate(pieces):
        rows[i, : end - first] = x[b, first:end]
    return rows


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dense", {"positions": "learned", "causal": True, "conv": 3, "num_layers": 1}),
        ("window", {"positions": "rotary", "norm_place": "post", "num_layers": 1}),
        ("talking", {"positions": "relative", "scan": True}),
    ],
)
def test_packed_equals_unpacked(name, changes):
    made = build(name, **changes)
    params, types = draw(made), SEGMENTS % 2

    def run(ids, valid, types, weight, segment_ids=None):
        def loss(params):
            out = made.apply({"params": params}, ids, valid, types, segment_ids=segment_ids)
            return (jnp.sin(out) * weight).sum(), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return np.asarray(out), grads

    weight = WEIGHT * VALID[..., None]
    packed, grads = run(IDS, VALID, types, weight, SEGMENTS)
    alone, wanted = run(*map(unpacked, (IDS, VALID, types, weight)))
    kept = unpacked(VALID)
    np.testing.assert_allclose(unpacked(packed)[kept], alone[kept], atol=1e-5, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), grads, wanted)
    # Without segments they are one text.
    mixed = jax.jit(made.apply)({"params": params}, IDS, VALID, types)
    assert np.abs(mixed - packed)[VALID].max() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [{"positions": "learned", "norm_place": "post"}, {"positions": "rotary", "pointer": True}],
)
def test_packed_texts_with_answers_equal_unpacked(changes):
    """Which are of another length than what they answer, and in rows of another width."""
    sizes = {"decoder_layers": 1, "num_layers": 1, "num_classes": V, "token_types": 0}
    sizes |= {"shared_table": True, "tied_head": True}
    sizes |= {f"{x}_attention": attention.spec("dense", num_heads=N) for x in ("decoder", "cross")}
    made, rng = build("dense", **sizes | changes), np.random.default_rng(2)
    answered = np.array([[3] * 2 + [1] * 5 + [7] * 1, [2] * 3 + [5] * 4 + [0] * 1])
    pieces = [(0, 0, 2), (0, 2, 7), (0, 7, 8), (1, 0, 3), (1, 3, 7)]
    prefix, weight = rng.integers(0, V, (2, 8)), rng.standard_normal((2, 8, V)).astype(np.float32)
    weight *= (answered > 0)[..., None]
    given = {"inputs": IDS, "key_valid": VALID, "prefix": prefix}
    packed_given = {**given, "segment_ids": SEGMENTS, "prefix_segments": answered}
    like = jax.eval_shape(lambda: made.init(jax.random.PRNGKey(0), **given))["params"]
    params = jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), like)

    @jax.jit
    def run(given, weight):
        def loss(params):
            out = made.apply({"params": params}, **given)
            return (jnp.sin(out) * weight).sum(), out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return out, grads

    def apart(x):
        return unpacked(x, pieces, 5)

    packed, grads = run(packed_given, weight)
    alone = {"inputs": unpacked(IDS), "key_valid": unpacked(VALID), "prefix": apart(prefix)}
    wanted, wanted_grads = run(alone, apart(weight))
    kept = apart(answered > 0)
    close = {"atol": 2e-5, "rtol": 2e-5}
    np.testing.assert_allclose(apart(np.asarray(packed))[kept], wanted[kept], **close)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), grads, wanted_grads)
    # Without segments they are one text and its answer.
    assert np.abs(run(given, weight)[0] - packed)[answered > 0].max() > 1e-2


def test_positions_restart_with_each_run():
    assert model.restarts(jnp.asarray(SEGMENTS)).tolist() == [
        [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2],
        [0, 1, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2],
    ]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lsh", {}, "'lsh' cannot honour segments.*give each text a row"),
        ("linear", {"causal": True}, "'linear' cannot honour segments"),
        ("dense", {"pool": "mean"}, "segment_ids pack texts of tokens into a row"),
    ],
)
def test_what_would_mix_texts_is_refused(name, changes, message):
    made = build(name, **changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: made.init(jax.random.PRNGKey(0), IDS, segment_ids=SEGMENTS))
