"""Small encoder-decoders, their inputs and parameters, for tests."""

import jax
import numpy as np

from tinyattn import attention, model

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
