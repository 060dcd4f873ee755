"""A pre-norm Transformer encoder that classifies texts, images or tokens, built from a config.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; pre-norm as Xiong et al. 2020,
  https://arxiv.org/abs/2002.04745; patches as Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929;
  token types, pooler and sizes as Devlin et al. 2019, https://arxiv.org/abs/1810.04805; factorised
  embeddings as Lan et al. 2020, https://arxiv.org/abs/1909.11942, section 3.1; `reuse` of keys and values
  as Brandon et al. 2024, "Cross-layer attention", https://arxiv.org/abs/2405.12981, section 3.1, and as
  the second half of Sun et al. 2024, "You only cache once", https://arxiv.org/abs/2405.05254, section 2,
  whose first half a `layout` gives a variant of its own, as it does local and global layers in turn, Gemma
  Team 2024, "Gemma 2", https://arxiv.org/abs/2408.00118, section 2; `reuse` of the attention map as Ying et
  al. 2021, "LazyFormer", https://arxiv.org/abs/2102.12702.
Differs: the shared keys and values of "You only cache once" have a norm of their own; here they are of what
  the queries of the first layer that has them read. A reused map is computed again from its queries and
  keys, which are what is kept: a table of all pairs is never held. BERT and ALBERT are post-norm; here the
  norm after the embeddings stands after the last block instead, with the same number of parameters
  (ALBERT's is as wide as the embedding, ours as the model).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import affine, axes, biases, masks, registry
from tinyattn.masks import Mask
from tinyattn.model._config import (
    BIASED,
    INPUTS,
    POOLS,
    POSITIONS,
    REUSE,
    Config,
    length,
    maker,
    mixers,
)
from tinyattn.model._layers import Block, Embedding, cut, dense, dropout, pool, rotate, sinusoids
from tinyattn.model._shrink import shrink

__all__ = [
    "INPUTS",
    "POOLS",
    "POSITIONS",
    "REUSE",
    "Block",
    "Config",
    "Embedding",
    "Encoder",
    "build",
    "cut",
    "dropout",
    "length",
    "mask",
    "pool",
    "rotate",
    "shrink",
    "simulated",
    "sinusoids",
    "spec",
    "state_bytes",
    "unneeded_flops",
]


# Of relative positions: T5's number.
BUCKETS = 32


def spec(**given: Any) -> dict[str, Any]:
    """A config section for the model, every field visible: `spec(width=48, num_layers=2)`."""
    return registry.defaults(Config) | registry.known(Config, given, "model")


def build(section: Mapping[str, Any]) -> "Encoder":
    """The model of a config section.

    Raises:
      ValueError: Unknown fields or values; before anything is compiled.
    """
    return Encoder(registry.construct(Config, section, "model"))


class Encoder(nn.Module):
    """Embedding, L blocks, norm, pool, head."""

    config: Config

    @nn.compact
    def __call__(self, inputs, key_valid=None, token_types=None, rng=None, auxiliary=False):
        """Logits float32 [B, num_classes], or the pooled vector [B, D] without a head.

        Without a pool they are those of every token, [B, T, num_classes] or [B, T, D]. With `auxiliary`
        a pair: these, and the sum over layers of what the variants add to the loss, float32 [B], each
        the mean over an example's tokens; None if no variant adds any.

        Args:
          inputs: [B, T] ids or [B, height, width, channels] images.
          key_valid: bool [B, T], False at padding; None where there is none.
          token_types: int [B, T]; None is all zeros.
          rng: For dropout, in training; None is evaluation.
          auxiliary: Whether the variants' own losses are asked for.

        Raises:
          ValueError: Shapes that do not fit together or the config, or token types it has none of.
        """
        config = self.config
        seen = mask(config, key_valid)
        rngs = (None,) * 2 if rng is None else jax.random.split(rng)
        x = Embedding(config, name="embedding")(inputs, token_types)
        if seen.key_valid is not None:
            axes.sizes(x=(x, "BTD"), key_valid=(seen.key_valid, "BT"))
        x = dropout(x, config.dropout, rngs[0])
        x, losses = self._layers(x, seen, self._bias(), rngs[1], auxiliary)
        x = nn.LayerNorm(dtype=x.dtype, name="norm")(x)
        out = pool(x, seen.key_valid, config.pool)
        if config.pooler:
            out = jnp.tanh(dense(config, config.width, "pooler", out))
        if config.num_classes:
            out = dense(config, config.num_classes, "head", out.astype(jnp.float32))
        return (out, losses) if auxiliary else out

    def _bias(self):
        """The bias of all layers' scores, with its one table of parameters where it has one."""
        config = self.config
        if config.positions not in BIASED:
            return None
        N = mixers(config)[0][1].num_heads
        if config.positions == "alibi":
            return biases.Linear(biases.slopes(N))
        normal = nn.initializers.truncated_normal(0.02)
        return biases.Relative(self.param("relative", normal, (N, BUCKETS)))

    def _layers(self, x, seen: Mask, bias, rng, auxiliary):
        """The tokens after all layers, and the layers' own losses [B], or None."""
        config = self.config
        names = [f"block_{i}" for i in range(config.num_layers)]

        def layer_rng(i):
            return None if rng is None else jax.random.fold_in(rng, i)

        if not config.scan or self.is_initializing():
            shared, losses = None, []
            for i, name in enumerate(names):
                given = None if maker(config, i) == i else shared
                x, heads = Block(config, layer=i, name=name)(x, seen, bias, layer_rng(i), given)
                if given is None:
                    shared = {name: heads[name] for name in REUSE[config.reuse]}
                losses.append(_own_loss(config, i, heads, seen) if auxiliary else None)
            own = [loss for loss in losses if loss is not None]
            return x, sum(own) if own else None
        # Parameters stay one tree a layer, which is what weight schemes share and count.
        params = [self.variables["params"][name] for name in names]
        if len({jax.tree.structure(layer) for layer in params}) > 1:
            params = affine.multiplied(params)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        block = Block(config, parent=None)

        def body(x, layer):
            i, layer_params = layer
            x, heads = block.apply({"params": layer_params}, x, seen, bias, layer_rng(i))
            return x, _own_loss(config, 0, heads, seen) if auxiliary else None

        x, losses = jax.lax.scan(body, x, (jnp.arange(config.num_layers), stacked))
        return x, None if losses is None else losses.sum(0)


def _own_loss(config: Config, layer: int, heads, seen: Mask) -> jax.Array | None:
    """What a layer's variant adds to the loss, the mean over an example's tokens [B]; None if nothing."""
    variant, fields = mixers(config)[layer]
    if not hasattr(variant, "auxiliary"):
        return None
    return pool(variant.auxiliary(fields, **heads, mask=seen)[..., None], seen.key_valid, "mean")[
        :, 0
    ]


def mask(config: Config, key_valid: jax.Array | None) -> Mask:
    """The mask of all layers: what is before, if causal, and padding, the class token always seen."""
    order = masks.causal() if config.causal else Mask()
    if key_valid is None:
        return order
    if config.pool == "cls":
        key_valid = jnp.pad(key_valid, ((0, 0), (1, 0)), constant_values=True)
    return order & masks.padding(key_valid)


def unneeded_flops(config: Config, T: int, seen: Mask = Mask()) -> float:
    """Executed less useful FLOPs of all layers for one example: pairs that no mask allows."""
    sizes = {"D": config.width, "T": T, "S": T}
    work = [variant.flops(fields, seen, **sizes).values() for variant, fields in mixers(config)]
    return sum(part.executed - part.useful for layer in work for part in layer)


def state_bytes(config: Config, T: int) -> int | None:
    """Bytes that all layers keep of one example after T tokens, what they share once.

    None if it cannot decode by tokens, or if layers share a part of what a variant keeps.
    """
    layers = mixers(config)
    decodes = all(hasattr(variant, "state_bytes") for variant, _ in layers)
    if not config.causal or not decodes or config.reuse == "query_key":
        return None
    itemsize = jnp.dtype(config.dtype).itemsize
    sizes = {"D": config.width, "length": T, "itemsize": itemsize}
    own = [layer for i, layer in enumerate(layers) if maker(config, i) == i]
    past = max(config.conv - 1, 0) * config.width * itemsize
    states = sum(variant.state_bytes(fields, **sizes) for variant, fields in own)
    return states + config.num_layers * past


def simulated(config: Config) -> bool:
    """Whether a layer only masks a dense product."""
    return any(variant.SIMULATED for variant, _ in mixers(config))
