"""From ids, images or frames to tokens: tables, patches, a convolutional tokeniser, positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import affine, axes, initializers
from tinyattn.model._config import Config, kinds, length


def rotate(x: jax.Array, base: float = 10_000.0, positions: jax.Array | None = None) -> jax.Array:
    """Turns pairs of features of [B, T, N, H] by angles that grow with the position.

    Source: Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864, equation 34.
    Differs: feature i pairs with i + H / 2 instead of its neighbour.

    Args:
      x: [B, T, N, H].
      base: The slowest pair turns by about 1 / base a position.
      positions: Integers [T] or [B, T]; None counts from 0.
    """
    half = x.shape[-1] // 2
    positions = jnp.arange(x.shape[1]) if positions is None else positions
    angles = positions[..., None] / base ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """What Vaswani et al. 2017, section 3.5, add at integer positions [...]: [..., width], sines first."""
    half = (width + 1) // 2
    angles = positions[..., None] / 10_000.0 ** (jnp.arange(half) / half)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :width]


def restarts(segment_ids: jax.Array) -> jax.Array:
    """The position of each token within its text, int [B, T]: a text is a run of equal ids [B, T].

    >>> restarts(jnp.array([[1, 1, 1, 2, 2, 0]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    at = jnp.arange(segment_ids.shape[1])
    new = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return at - jax.lax.cummax(jnp.where(new, at, 0), axis=1)


def dense(config: Config, features: int, name: str, x: jax.Array, init=None) -> jax.Array:
    return affine.dense(x, {name: features}, init or initializers.kernel(config.init))[0]


class Embedding(nn.Module):
    """Tokens, patches or frames and their positions, [B, T, D]."""

    config: Config

    @nn.compact
    def __call__(
        self, inputs, token_types=None, key_valid=None, positions=None, table=None, masked=None
    ):
        """
        Args:
          inputs: As the config says.
          token_types: int [B, T].
          key_valid: bool [B, frames], of frames, which a tokeniser must not see where it is False.
          positions: int [B, T]; None counts from 0.
          table: [V, embedding width] of another part of the model; None is a table of its own.
          masked: bool [B, T], the class token not counted: which tokens are hidden; None is none.
        """
        config, E = self.config, self.config.embedding
        dtype = jnp.dtype(config.dtype)
        normal = nn.initializers.truncated_normal(0.02)
        T = length(config, inputs)
        if token_types is not None and not config.token_types:
            raise ValueError("token types are given; set model.token_types to how many there are")
        if config.inputs == "patches+frames":
            parts = [self._pair(inputs, key_valid, normal)]
        elif config.inputs != "tokens":
            parts = [self._seen(inputs.astype(dtype), key_valid)]
        elif table is not None:
            parts = [table[inputs].astype(dtype)]
        else:
            names = ["tokens", *(f"tokens_{i}" for i in range(1, config.embeddings))]
            parts = [
                nn.Embed(config.vocab_size, E, embedding_init=normal, name=name)(inputs)
                for name in names
            ]
            parts = [x.astype(dtype) for x in parts]
        if masked is not None and not config.masked:
            raise ValueError("masked tokens are given; set model.masked=True")
        if config.masked:
            hidden = self.param("mask", normal, (len(parts), E)).astype(dtype)
            if masked is not None:
                axes.sizes(embedded=(parts[0], "BTD"), masked=(masked, "BT"))
                pairs = zip(parts, hidden, strict=True)
                parts = [jnp.where(masked[..., None], mask, x) for x, mask in pairs]
        added = []
        if config.token_types:
            types = jnp.zeros(inputs.shape, jnp.int32) if token_types is None else token_types
            embed = nn.Embed(config.token_types, E, embedding_init=normal, name="token_types")
            added.append(embed(types).astype(dtype))
        if config.pool == "cls":
            first = self.param("cls", normal, (1, 1, E)).astype(dtype)
        if config.inputs == "patches+frames":
            places = None  # each kind has its own, from 0
        elif config.positions == "learned":
            places = self.param("positions", normal, (config.max_length, E))
            places = (places[:T] if positions is None else places[positions]).astype(dtype)
        elif config.positions == "sinusoidal":
            places = sinusoids(jnp.arange(T) if positions is None else positions, E).astype(dtype)
        else:
            places = None
        for i, x in enumerate(parts):
            x = sum(added, x)
            if config.pool == "cls":
                x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, E)), x], axis=1)
            if config.inputs == "tokens" and config.positions == "sinusoidal":
                x = E**0.5 * x  # a table's rows start out short, and would be lost beside sinusoids
            parts[i] = x if places is None else x + places
        x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        return x if config.width == x.shape[-1] else dense(config, config.width, "project", x)

    def _pair(self, inputs, key_valid, normal):
        """Images and frames as tokens of one sequence, each with the embedding of its kind."""
        made, given = kinds(self.config), (None, key_valid)
        kind = self.param("kinds", normal, (len(made), self.config.embedding))
        parts = [
            Embedding(own, name=name)(x, key_valid=valid) + kind[i].astype(self.config.dtype)
            for i, ((name, own), x, valid) in enumerate(
                zip(made.items(), inputs, given, strict=True)
            )
        ]
        return jnp.concatenate(parts, axis=1)

    def _seen(self, x, key_valid):
        """Images or frames as tokens of the embedding's width."""
        config, E = self.config, self.config.embedding
        for i in range(config.tokeniser):
            if key_valid is not None:
                x = jnp.where(key_valid[..., None], x, 0.0)
            x = nn.relu(dense(config, E, f"tokeniser_{i}", neighbours(x)))
            if key_valid is not None:
                x = jnp.where(key_valid[..., None], x, 0.0)
                key_valid = key_valid[:, ::2]
            sides = x.ndim - 2
            x = nn.max_pool(x, (3,) * sides, (2,) * sides, ((1, 1),) * sides)
        if config.tokeniser:
            return x.reshape(x.shape[0], -1, E)
        if config.inputs == "frames":
            return dense(config, E, "frames", x)
        return dense(config, E, "patches", cut(x, config.patch))


def cut(images: jax.Array, patch: int) -> jax.Array:
    """[B, height, width, channels] to [B, T, patch * patch * channels], row by row."""
    B, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    x = images.reshape(B, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, rows * columns, patch * patch * channels)


def neighbours(x: jax.Array) -> jax.Array:
    """[B, sides..., channels] to [B, sides..., 3^n * channels]: what a convolution of 3 reads.

    Beyond the edges are zeros; the n sides count from the first on.
    """
    for axis in range(1, x.ndim - 1):
        ends = [(int(a == axis),) * 2 for a in range(x.ndim)]
        padded, size = jnp.pad(x, ends), x.shape[axis]
        shifted = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)]
        x = jnp.concatenate(shifted, axis=-1)
    return x
