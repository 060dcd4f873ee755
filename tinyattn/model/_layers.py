"""A layer of the model and its parts: norm, feed-forward, convolution, self- and cross-attention."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import affine, attention, initializers
from tinyattn.masks import Mask
from tinyattn.model._config import Config
from tinyattn.model._embedding import dense, rotate
from tinyattn.model._layout import mixers
from tinyattn.model._norm import Batch, norm

ACTIVATIONS = {"gelu": nn.gelu, "geglu": nn.gelu, "swiglu": nn.silu}


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x and scales up the rest; without an rng, x itself."""
    if rng is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


class FeedForward(nn.Module):
    """Up, GELU (tanh form), down; or a gate's activation times up, down.

    Source: Shazeer 2020, "GLU variants improve Transformer", https://arxiv.org/abs/2002.05202,
      equation 6, for `geglu` and `swiglu`.
    Differs: its layers have biases.
    """

    config: Config

    @nn.compact
    def __call__(self, x):
        config = self.config
        out = initializers.residual(config.init, config.depth_scaling, config.num_layers)
        gated = config.ffn != "gelu"
        names = ("gate", "up") if gated else ("up",)
        widths = dict.fromkeys(names, config.ffn_width)
        first, *rest = affine.dense(x, widths, initializers.kernel(config.init))
        hidden = ACTIVATIONS[config.ffn](first)
        if gated:
            hidden *= rest[0]
        return dense(config, config.width, "down", hidden, out)


class Convolution(nn.Module):
    """A short causal convolution, every feature for itself: y_t = Σ_i w_i x_(t-i) over `size` tokens.

    Source: Poli et al. 2023, "Hyena Hierarchy", https://arxiv.org/abs/2302.10866, algorithm 1.
    Differs: it stands before the projections, so that it is one for all of a variant's inputs.
    """

    size: int

    @nn.compact
    def __call__(self, x, key_valid=None, segment_ids=None, past=None):
        """[B, T, D] to the same.

        Args:
          x: [B, T, D].
          key_valid: bool [B, T], False at tokens that count as zeros.
          segment_ids: int [B, T]; tokens of another segment count as zeros.
          past: [B, size - 1, D], the tokens before; None is zeros.
        """
        T, D = x.shape[1:]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, D))
        if key_valid is not None:
            x = jnp.where(key_valid[..., None], x, 0.0)

        def behind(x):
            """What stands i tokens before each token, for every i."""
            return [x[:, self.size - 1 - i :][:, :T] for i in range(self.size)]

        ends = ((0, 0), (self.size - 1, 0))
        past = jnp.pad(x, (*ends, (0, 0))) if past is None else jnp.concatenate([past, x], axis=1)
        # A product over shifted copies: a grouped convolution is four times as slow on a CPU.
        shifted = jnp.stack(behind(past), axis=2)
        if segment_ids is not None:
            same = jnp.stack(behind(jnp.pad(segment_ids, ends)), axis=2) == segment_ids[..., None]
            shifted = jnp.where(same[..., None], shifted, 0.0)
        return jnp.einsum("btid,id->btd", shifted, kernel.astype(x.dtype))


class Memory(NamedTuple):
    """What a decoder's layers attend to.

    Attributes:
      tokens: The encoder's, [B, S, D]; with `held`, any.
      mask: Which of them may be seen.
      held: Arrays that a layer's cross-attention has made of them before, by name.
    """

    tokens: jax.Array
    mask: Mask
    held: dict[str, jax.Array] | None = None


class LayerState(NamedTuple):
    """What decoding keeps of a layer.

    Attributes:
      mixer: The variant's own state; None in a layer that reads another's.
      past: [B, conv - 1, D], the last tokens that the convolution read; None without one.
    """

    mixer: Any
    past: jax.Array | None


class Mixed(NamedTuple):
    """What a layer gives.

    Attributes:
      tokens: [B, T, D].
      heads: All that its `attend` took by name, which layers to come may share.
      crossed: The same of its cross-attention; None without one.
      state: In decoding, after this token.
    """

    tokens: jax.Array
    heads: dict[str, jax.Array]
    crossed: dict[str, jax.Array] | None = None
    state: LayerState | None = None


class Block(nn.Module):
    """One layer, of the variant that the config's layout gives to the layer of this number."""

    config: Config
    layer: int = 0

    @nn.compact
    def __call__(
        self,
        x,
        mask: Mask,
        bias=None,
        rng=None,
        shared=None,
        *,
        positions=None,
        memory: Memory | None = None,
        batch: Batch | None = None,
        state: LayerState | None = None,
        active=None,
    ) -> Mixed:
        """
        Args:
          x: [B, T, D].
          mask: Who may see whom.
          bias: Of the scores.
          rng: For dropout; None is evaluation.
          shared: Heads of a layer before, by name.
          positions: int [B, T]; None counts from 0.
          memory: What cross-attention attends to; None is a layer without one.
          batch: What a batch norm's statistics are taken over; None is evaluation.
          state: In decoding, of the tokens before this one, where T is 1.
          active: bool [B], examples whose state takes this token.
        """
        config = self.config
        variant, fields = mixers(config)[self.layer]
        rngs = (None,) * 3 if rng is None else jax.random.split(rng, 2 + (memory is not None))
        turn = functools.partial(rotate, positions=positions)
        options = {"rotate": turn if config.positions == "rotary" else None, "shared": shared}

        y = self._before("attention", x, batch)
        past = None if state is None else state.past
        if config.conv:
            ids = mask.segments[0][0] if mask.segments else None
            convolution = Convolution(config.conv, name="conv")
            y, past = convolution(y, mask.key_valid, ids, past), _moved(past, y, active)
        if config.qkv == "ffn":
            y = nn.gelu(dense(config, config.width, "qkv", y))
        mix = self._mix(variant, fields, "attention")
        if state is None:
            y, heads = mix(y, **options, mask=mask, bias=bias, return_heads=True)
        else:
            y, heads, mixer = mix(y, **options, bias=bias, state=state.mixer, active=active)
            state = LayerState(mixer, past)
        x = self._after("attention", x, y, rngs[0], batch)

        crossed = None
        if memory is not None:
            y = self._before("cross_attention", x, batch)
            mix = self._mix(*attention.build(config.cross_attention), "cross_attention")
            tokens, mask, held = memory
            y, crossed = mix(y, tokens, mask=mask, held=held, return_heads=True)
            x = self._after("cross_attention", x, y, rngs[2], batch)

        y = FeedForward(config, name="ffn")(self._before("ffn", x, batch))
        x = self._after("ffn", x, y, rngs[1], batch)
        return Mixed(x, heads, crossed, state)

    def _mix(self, variant, fields, name: str) -> nn.Module:
        config = self.config
        out = initializers.residual(config.init, config.depth_scaling, config.num_layers)
        return variant.Attention(
            fields, kernel_init=initializers.kernel(config.init), out_init=out, name=name
        )

    def _before(self, name: str, x, batch):
        """What a part of the layer reads."""
        pre = self.config.norm_place == "pre"
        return norm(self.config, f"norm_{name}", x, batch) if pre else x

    def _after(self, name: str, x, y, rng, batch):
        """The residual sum of what a part reads and gives."""
        x += dropout(y, self.config.dropout, rng)
        post = self.config.norm_place == "post"
        return norm(self.config, f"norm_{name}", x, batch) if post else x


def _moved(past: jax.Array | None, y: jax.Array, active) -> jax.Array | None:
    """The last tokens [B, conv - 1, D], with one more for each example that is active."""
    if past is None:
        return None
    return jnp.where(active[:, None, None], jnp.concatenate([past, y], axis=1)[:, 1:], past)


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
