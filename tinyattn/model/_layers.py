"""The parts of the encoder: embeddings, blocks, pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import affine, initializers
from tinyattn.masks import Mask
from tinyattn.model._config import Config, length, mixers


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x and scales up the rest; without an rng, x itself."""
    if rng is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Turns pairs of features of [B, T, N, H] by angles that grow with the position.

    Source: Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864, equation 34.
    Differs: feature i pairs with i + H / 2 instead of its neighbour.
    """
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / base ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def sinusoids(T: int, width: int) -> jax.Array:
    """The fixed table [T, width] of Vaswani et al. 2017, section 3.5, sines first."""
    half = (width + 1) // 2
    angles = jnp.arange(T)[:, None] / 10_000.0 ** (jnp.arange(half) / half)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :width]


def dense(config: Config, features: int, name: str, x: jax.Array, init=None) -> jax.Array:
    return affine.dense(x, {name: features}, init or initializers.kernel(config.init))[0]


class Embedding(nn.Module):
    """Tokens or patches and their positions, [B, T, D]."""

    config: Config

    @nn.compact
    def __call__(self, inputs, token_types=None):
        config, E = self.config, self.config.embedding
        dtype = jnp.dtype(config.dtype)
        normal = nn.initializers.truncated_normal(0.02)
        T = length(config, inputs)
        if token_types is not None and not config.token_types:
            raise ValueError("token types are given; set model.token_types to how many there are")
        if config.inputs == "tokens":
            x = nn.Embed(config.vocab_size, E, embedding_init=normal, name="tokens")(inputs)
            x = x.astype(dtype)
        else:
            x = dense(config, E, "patches", cut(inputs, config.patch).astype(dtype))
        if config.token_types:
            types = jnp.zeros(inputs.shape, jnp.int32) if token_types is None else token_types
            embed = nn.Embed(config.token_types, E, embedding_init=normal, name="token_types")
            x += embed(types).astype(dtype)
        if config.pool == "cls":
            first = self.param("cls", normal, (1, 1, E)).astype(dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, E)), x], axis=1)
        if config.positions == "learned":
            x += self.param("positions", normal, (config.max_length, E))[:T].astype(dtype)
        elif config.positions == "sinusoidal":
            x += sinusoids(T, E).astype(dtype)
        return x if config.width == E else dense(config, config.width, "project", x)


def cut(images: jax.Array, patch: int) -> jax.Array:
    """[B, height, width, channels] to [B, T, patch * patch * channels], row by row."""
    B, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    x = images.reshape(B, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, rows * columns, patch * patch * channels)


class FeedForward(nn.Module):
    """Up, GELU (tanh form), down."""

    config: Config

    @nn.compact
    def __call__(self, x):
        config = self.config
        out = initializers.residual(config.init, config.depth_scaling, config.num_layers)
        hidden = nn.gelu(dense(config, config.ffn_width, "up", x))
        return dense(config, config.width, "down", hidden, out)


class Convolution(nn.Module):
    """A short causal convolution, every feature for itself: y_t = Σ_i w_i x_(t-i) over `size` tokens.

    Source: Poli et al. 2023, "Hyena Hierarchy", https://arxiv.org/abs/2302.10866, algorithm 1.
    Differs: it stands before the projections, so that it is one for all of a variant's inputs.
    """

    size: int

    @nn.compact
    def __call__(self, x, key_valid=None):
        T, D = x.shape[1:]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, D))
        if key_valid is not None:
            x = jnp.where(key_valid[..., None], x, 0.0)
        past = jnp.pad(x, ((0, 0), (self.size - 1, 0), (0, 0)))
        # A product over shifted copies: a grouped convolution is four times as slow on a CPU.
        shifted = [past[:, self.size - 1 - i :][:, :T] for i in range(self.size)]
        return jnp.einsum("btid,id->btd", jnp.stack(shifted, axis=2), kernel.astype(x.dtype))


class Block(nn.Module):
    """One pre-norm layer, of the variant that the config's layout gives to the layer of this number.

    Returns its tokens, and all that its `attend` took by name, which layers to come may share.
    """

    config: Config
    layer: int = 0

    @nn.compact
    def __call__(self, x, mask: Mask, bias=None, rng=None, shared=None):
        config = self.config
        variant, fields = mixers(config)[self.layer]
        rngs = (None, None) if rng is None else jax.random.split(rng)
        mix = variant.Attention(
            fields,
            kernel_init=initializers.kernel(config.init),
            out_init=initializers.residual(config.init, config.depth_scaling, config.num_layers),
            name="attention",
        )
        turn = rotate if config.positions == "rotary" else None
        y = nn.LayerNorm(dtype=x.dtype, name="norm_attention")(x)
        if config.conv:
            y = Convolution(config.conv, name="conv")(y, mask.key_valid)
        options = {"mask": mask, "rotate": turn, "bias": bias}
        y, heads = mix(y, **options, shared=shared, return_heads=True)
        x += dropout(y, config.dropout, rngs[0])
        y = FeedForward(config, name="ffn")(nn.LayerNorm(dtype=x.dtype, name="norm_ffn")(x))
        return x + dropout(y, config.dropout, rngs[1]), heads


def pool(x: jax.Array, key_valid, how: str) -> jax.Array:
    """[B, T, D] to [B, D]: the mean over tokens that are not padding, or the first token; or all of x."""
    if how == "none":
        return x
    if how != "mean":
        return x[:, 0]
    if key_valid is None:
        return x.mean(axis=1)
    weights = key_valid[..., None].astype(x.dtype)
    return (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)
