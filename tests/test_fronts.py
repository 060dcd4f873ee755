"""Frames, convolutional tokenisers of images and speech, and the Beats encoder's two tables and Q, K, V."""

import jax
import numpy as np
import pytest

from tinyattn import attention, cost, model

B, T, MELS, D, N, F, L = 3, 11, 5, 8, 2, 6, 1
DRAW = np.random.default_rng(0)
FRAMES = DRAW.standard_normal((B, T, MELS)).astype(np.float32)
LENGTHS = np.array([5, 11, 8])
VALID = np.arange(T) < LENGTHS[:, None]
IMAGES = DRAW.standard_normal((B, 7, 6, 2)).astype(np.float32)
IDS = DRAW.integers(0, 9, (B, T))
SIZES = {"width": D, "ffn_width": F, "num_layers": L, "num_classes": 4, "max_length": 16}
SIZES |= {"attention": attention.spec("dense", num_heads=N)}
SPEECH = {"inputs": "frames"}
BEATS = {"inputs": "tokens", "vocab_size": 9, "embeddings": 2, "qkv": "ffn"}


def build(**changes):
    return model.build(model.spec(**SIZES | changes))


def draw(made, inputs):
    like = jax.eval_shape(lambda: made.init(jax.random.PRNGKey(0), inputs))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), like)


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def halved(x, p):
    """A convolution of 3 places a side, ReLU, and the maximum over 3 places at every second, by loops."""
    sides = x.shape[:-1]
    around = list(np.ndindex(*[3] * len(sides)))

    def at(x, place, fill):
        inside = all(0 <= i < n for i, n in zip(place, sides, strict=True))
        return x[place] if inside else np.full(x.shape[-1], fill)

    def near(x, place, fill):
        return [
            at(x, tuple(i + j - 1 for i, j in zip(place, step, strict=True)), fill)
            for step in around
        ]

    seen = np.zeros((*sides, p["bias"].size))
    for place in np.ndindex(*sides):
        # The first side varies slowest in neither: kernels list the places of the last side outermost.
        parts = near(x, place, 0.0)
        if len(sides) == 2:
            parts = [parts[3 * i + j] for j in range(3) for i in range(3)]
        seen[place] = np.maximum(linear(np.concatenate(parts), p), 0)
    out = np.zeros((*[-(-n // 2) for n in sides], p["bias"].size))
    for place in np.ndindex(*out.shape[:-1]):
        out[place] = np.max(near(seen, tuple(2 * i for i in place), -np.inf), axis=0)
    return out


@pytest.mark.parametrize("kind", ["images", "frames"])
def test_a_tokeniser_is_convolution_relu_and_maximum(kind):
    inputs = {"images": IMAGES, "frames": FRAMES}[kind]
    changes = {"tokeniser": 2, "positions": "none"} | (SPEECH if kind == "frames" else {})
    made = build(**changes)
    params = draw(made, inputs)["embedding"]
    got = jax.jit(model.Embedding(made.config).apply)({"params": params}, inputs)
    assert got.shape[1] == model.length(made.config, inputs) == (4 if kind == "images" else 3)
    for b in range(B):
        x = np.float64(inputs[b])
        for i in range(2):
            x = halved(x, jax.tree.map(np.float64, params[f"tokeniser_{i}"]))
        close(got[b], x.reshape(-1, D))


@pytest.mark.parametrize("tokeniser", [0, 2])
def test_padding_of_frames_is_not_seen(tokeniser):
    made = build(**SPEECH, tokeniser=tokeniser)
    params = draw(made, FRAMES)
    apply = jax.jit(made.apply)
    got = apply({"params": params}, FRAMES, VALID)
    assert got.shape == (B, 4)
    dirty = np.where(VALID[..., None], FRAMES, 50.0)
    np.testing.assert_array_equal(apply({"params": params}, dirty, VALID), got)
    close(apply({"params": params}, FRAMES[:1, : LENGTHS[0]])[0], got[0])
    # What could not change cannot fail.
    other = FRAMES.copy()
    other[0, LENGTHS[0] - 1] += 1
    assert (apply({"params": params}, other, VALID)[0] != got[0]).any()


def test_frames_are_projected_and_what_the_mask_lets_through_is_counted():
    made = build(**SPEECH, positions="none")
    params = draw(made, FRAMES)["embedding"]
    got = model.Embedding(made.config).apply({"params": params}, FRAMES)
    close(got, linear(FRAMES, params["frames"]))
    halves = build(**SPEECH, tokeniser=1)
    seen = model.mask(halves.config, VALID)
    assert seen.key_valid.sum(1).tolist() == [3, 6, 4]
    counted = cost.count(halves.apply, {"params": draw(halves, FRAMES)}, FRAMES[:1]).products
    layer = 2 * 6 * (4 * D * D + 2 * D * F) + 4 * 6 * 6 * D
    assert counted == 2 * T * 3 * MELS * D + L * layer + 2 * D * 4


@pytest.mark.parametrize("embed_width", [D // 2, 3])
def test_the_beats_encoder_by_its_parts(embed_width):
    """Two tables, positions added to each; queries, keys and values of a feed-forward layer's units."""
    made = build(**BEATS, embed_width=embed_width)
    params = draw(made, IDS)
    p = params["embedding"]
    both = [p[name]["embedding"][IDS] + p["positions"][:T] for name in ("tokens", "tokens_1")]
    x = np.concatenate(both, axis=-1)
    x = x if embed_width == D // 2 else linear(x, p["project"])
    close(model.Embedding(made.config).apply({"params": p}, IDS), x)
    assert ("project" in p) == (embed_width != D // 2)

    block, mask = params["block_0"], model.mask(made.config, VALID)
    _, heads, *_ = jax.jit(model.Block(made.config).apply)({"params": block}, x, mask)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = y * block["norm_attention"]["scale"] + block["norm_attention"]["bias"]
    hidden = jax.nn.gelu(linear(y, block["qkv"]))
    for name in ("query", "key", "value"):
        close(heads[name].reshape(B, T, D), linear(hidden, block["attention"][name]))
    costs = [
        cost.count(encoder.apply, {"params": params}, IDS[:1]).products
        for encoder in (
            made,
            build(**BEATS | {"qkv": "linear"}, embed_width=embed_width),
        )
    ]
    assert costs[0] - costs[1] == 2 * T * D * D


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        (SPEECH, FRAMES[0], r"frames need features \[B, T, features\]: \(11, 5\)"),
        (SPEECH | {"max_length": 10}, FRAMES, "11 tokens; raise model.max_length=10"),
        (SPEECH | {"embeddings": 2}, FRAMES, "embeddings=2 are tables of token ids, which frames"),
        (SPEECH | {"token_types": 2}, FRAMES, "token_types=2: frames have no token types"),
        (BEATS | {"embeddings": 0}, IDS, "model.embeddings=0 must be at least 1"),
        (BEATS | {"qkv": "mlp"}, IDS, "model.qkv='mlp'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, inputs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: build(**changes).init(jax.random.PRNGKey(0), inputs))
