"""A pre-norm Transformer encoder classifier, built from a config.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; pre-norm as Xiong et al. 2020,
  https://arxiv.org/abs/2002.04745; patches as Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929;
  token types, pooler and sizes as Devlin et al. 2019, https://arxiv.org/abs/1810.04805; factorised
  embeddings as Lan et al. 2020, https://arxiv.org/abs/1909.11942, section 3.1.
Differs: BERT and ALBERT are post-norm; here the norm after the embeddings stands after the last block
  instead, with the same number of parameters (ALBERT's is as wide as the embedding, ours as the model).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import attention, initializers, masks, registry
from tinyattn.masks import Mask

INPUTS = ("tokens", "patches")
POSITIONS = ("learned", "sinusoidal", "rotary", "none")
POOLS = ("mean", "cls", "first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      inputs: `tokens` (ids [B, T]) or `patches` (images [B, height, width, channels]).
      patch: Side of a patch (pixels); 1 makes every pixel a token.
      vocab_size: Token ids (V).
      token_types: Kinds of token with an embedding of their own, as BERT's two sentences; 0 is none.
      max_length: Positions for which a learned embedding exists, the class token included.
      width: Of the model (D).
      embed_width: Of the embeddings, projected to `width`; 0 is `width` itself (not factorised).
      num_layers: L.
      ffn_width: Of the feed-forward layer (F).
      attention: Section of the variant, see `attention.spec`.
      positions: `learned`, `sinusoidal`, `rotary` (in every layer) or `none`.
      pool: `mean` over tokens, `cls` (a learned token put first) or `first` (the first token given).
      pooler: Whether a tanh layer follows the pool, as in BERT.
      num_classes: Of the head; 0 is no head, the pooled vector is returned.
      dropout: Rate, after the embeddings and before each residual sum.
      init: Name in `initializers.INITIALIZERS`.
      depth_scaling: Of the kernels that write to the residual stream, see `initializers.residual`.
      scan: Runs the layers as one `lax.scan`, which compiles faster; the numbers are the same.
      dtype: Of the computation, `float32` or `bfloat16`; parameters, softmax and logits are float32.
    """

    inputs: str = "patches"
    patch: int = 2
    vocab_size: int = 0
    token_types: int = 0
    max_length: int = 512
    width: int = 48
    embed_width: int = 0
    num_layers: int = 2
    ffn_width: int = 96
    attention: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: attention.spec("dense")
    )
    positions: str = "learned"
    pool: str = "mean"
    pooler: bool = False
    num_classes: int = 10
    dropout: float = 0.0
    init: str = "lecun_normal"
    depth_scaling: str = "none"
    scan: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        for name, valid in (
            ("inputs", INPUTS),
            ("positions", POSITIONS),
            ("pool", POOLS),
            ("init", tuple(initializers.INITIALIZERS)),
            ("depth_scaling", initializers.SCALINGS),
            ("dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in valid:
                value = getattr(self, name)
                raise ValueError(f"model.{name}={value!r}; {registry.nearest(value, valid)}")
        for name in ("patch", "max_length", "width", "num_layers", "ffn_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.inputs == "tokens" and self.vocab_size < 1:
            raise ValueError(f"model.vocab_size={self.vocab_size}: tokens need a vocabulary")
        if self.inputs == "patches" and self.token_types:
            raise ValueError(f"model.token_types={self.token_types}: patches have no token types")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout} must be a rate in [0, 1)")
        module, heads = attention.build(self.attention)
        if isinstance(heads, attention.Heads):
            head_width = heads.width(self.width)
            if self.positions == "rotary" and head_width % 2:
                raise ValueError(f"rotary positions turn pairs: head width {head_width} is odd")

    @property
    def embedding(self) -> int:
        """Width of the embeddings."""
        return self.embed_width or self.width


def build(section: Mapping[str, Any]) -> "Encoder":
    """The model of a config section.

    Raises:
      ValueError: Unknown fields or values; before anything is compiled.
    """
    return Encoder(registry.construct(Config, section, "model"))


def length(config: Config, inputs: jax.Array) -> int:
    """Number of tokens (T) that the layers see for these inputs."""
    if config.inputs == "tokens":
        T = inputs.shape[1]
    else:
        if inputs.ndim != 4:
            raise ValueError(f"patches need images [B, height, width, channels]: {inputs.shape}")
        height, width = inputs.shape[1:3]
        if height % config.patch or width % config.patch:
            raise ValueError(
                f"model.patch={config.patch} must divide the image's sides {height}x{width}"
            )
        T = (height // config.patch) * (width // config.patch)
    T += config.pool == "cls"
    if config.positions == "learned" and T > config.max_length:
        raise ValueError(f"{T} tokens; raise model.max_length={config.max_length}")
    return T


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


def _dense(config: Config, features: int, name: str, x: jax.Array, init=None) -> jax.Array:
    init = init or initializers.kernel(config.init)
    return nn.Dense(features, dtype=x.dtype, kernel_init=init, name=name)(x)


class Embedding(nn.Module):
    """Tokens or patches and their positions, [B, T, D]."""

    config: Config

    @nn.compact
    def __call__(self, inputs, token_types=None):
        config, E = self.config, self.config.embedding
        dtype = jnp.dtype(config.dtype)
        normal = nn.initializers.truncated_normal(0.02)
        T = length(config, inputs)
        if config.inputs == "tokens":
            x = nn.Embed(config.vocab_size, E, embedding_init=normal, name="tokens")(inputs)
            x = x.astype(dtype)
        else:
            x = _dense(config, E, "patches", cut(inputs, config.patch).astype(dtype))
        if config.pool == "cls":
            first = self.param("cls", normal, (1, 1, E)).astype(dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, E)), x], axis=1)
        if config.positions == "learned":
            x += self.param("positions", normal, (config.max_length, E))[:T].astype(dtype)
        elif config.positions == "sinusoidal":
            x += sinusoids(T, E).astype(dtype)
        if config.token_types:
            types = jnp.zeros(inputs.shape, jnp.int32) if token_types is None else token_types
            embed = nn.Embed(config.token_types, E, embedding_init=normal, name="token_types")
            x += embed(types).astype(dtype)
        return x if config.width == E else _dense(config, config.width, "project", x)


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
        hidden = nn.gelu(_dense(config, config.ffn_width, "up", x))
        return _dense(config, config.width, "down", hidden, out)


class Block(nn.Module):
    """One pre-norm layer."""

    config: Config

    @nn.compact
    def __call__(self, x, mask: Mask, rng=None):
        config = self.config
        variant, fields = attention.build(config.attention)
        rngs = (None, None) if rng is None else jax.random.split(rng)
        mix = variant.Attention(
            fields,
            kernel_init=initializers.kernel(config.init),
            out_init=initializers.residual(config.init, config.depth_scaling, config.num_layers),
            name="attention",
        )
        turn = rotate if config.positions == "rotary" else None
        y = mix(nn.LayerNorm(dtype=x.dtype, name="norm_attention")(x), mask=mask, rotate=turn)
        x += dropout(y, config.dropout, rngs[0])
        y = FeedForward(config, name="ffn")(nn.LayerNorm(dtype=x.dtype, name="norm_ffn")(x))
        return x + dropout(y, config.dropout, rngs[1])


class Encoder(nn.Module):
    """Embedding, L blocks, norm, pool, head."""

    config: Config

    @nn.compact
    def __call__(self, inputs, key_valid=None, token_types=None, rng=None):
        """Logits float32 [B, num_classes], or the pooled vector [B, D] without a head.

        Args:
          inputs: [B, T] ids or [B, height, width, channels] images.
          key_valid: bool [B, T], False at padding; None where there is none.
          token_types: int [B, T]; None is all zeros.
          rng: For dropout, in training; None is evaluation.
        """
        config = self.config
        if key_valid is not None and config.pool == "cls":
            key_valid = jnp.pad(key_valid, ((0, 0), (1, 0)), constant_values=True)
        mask = Mask() if key_valid is None else masks.padding(key_valid)
        rngs = (None,) * 2 if rng is None else jax.random.split(rng)
        x = Embedding(config, name="embedding")(inputs, token_types)
        x = dropout(x, config.dropout, rngs[0])
        x = self._layers(x, mask, rngs[1])
        x = nn.LayerNorm(dtype=x.dtype, name="norm")(x)
        pooled = pool(x, key_valid if config.pool == "mean" else None, config.pool)
        if config.pooler:
            pooled = jnp.tanh(_dense(config, config.width, "pooler", pooled))
        if not config.num_classes:
            return pooled
        return _dense(config, config.num_classes, "head", pooled.astype(jnp.float32))

    def _layers(self, x, mask, rng):
        config = self.config
        names = [f"block_{i}" for i in range(config.num_layers)]

        def layer_rng(i):
            return None if rng is None else jax.random.fold_in(rng, i)

        if not config.scan or self.is_initializing():
            for i, name in enumerate(names):
                x = Block(config, name=name)(x, mask, layer_rng(i))
            return x
        # Parameters stay one tree a layer, which is what weight schemes share and count.
        params = [self.variables["params"][name] for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        block = Block(config, parent=None)

        def body(x, layer):
            i, layer_params = layer
            return block.apply({"params": layer_params}, x, mask, layer_rng(i)), None

        return jax.lax.scan(body, x, (jnp.arange(config.num_layers), stacked))[0]


def pool(x: jax.Array, key_valid, how: str) -> jax.Array:
    """[B, T, D] to [B, D]: the mean over tokens that are not padding, or the first token."""
    if how != "mean":
        return x[:, 0]
    if key_valid is None:
        return x.mean(axis=1)
    weights = key_valid[..., None].astype(x.dtype)
    return (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def unneeded_flops(config: Config, T: int, mask: Mask = Mask()) -> float:
    """Executed less useful FLOPs of all layers for one example: pairs that no mask allows."""
    variant, fields = attention.build(config.attention)
    work = variant.flops(fields, mask, D=config.width, T=T, S=T).values()
    return config.num_layers * sum(part.executed - part.useful for part in work)
