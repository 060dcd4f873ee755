"""The model: an encoder, a decoder, or an encoder and a decoder that attends to it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import activations, affine, attention, axes, biases, masks, weights
from tinyattn.masks import Mask
from tinyattn.model._checks import check_given
from tinyattn.model._config import Config, decoder, length
from tinyattn.model._embedding import Embedding, dense, restarts
from tinyattn.model._layers import Block, Memory, Mixed, dropout, pool
from tinyattn.model._layout import REUSE, maker, mixers
from tinyattn.model._norm import Batch, norm
from tinyattn.model._pointer import Pointed, mixed, pointed

# Of relative positions: T5's number.
BUCKETS = 32


class Transformer(nn.Module):
    """Embedding, L blocks, norm; then pool and head, or a decoder that attends to it and its head."""

    config: Config

    @nn.compact
    @activations.of_config
    def __call__(
        self,
        inputs,
        key_valid=None,
        token_types=None,
        rng=None,
        auxiliary=False,
        *,
        segment_ids=None,
        prefix=None,
        prefix_segments=None,
        masked=None,
        at=None,
        memory: Memory | None = None,
        table=None,
        axis: str | None = None,
    ):
        """Logits float32 [B, num_classes], or the pooled vector [B, D] without a head.

        Without a pool they are those of every token, [B, T, num_classes] or [B, T, D], or of those `at` A
        places alone, [B, A, ...]; of an encoder-decoder those of every token of the prefix, [B, P,
        num_classes]. With `auxiliary` a pair:
        these, and the sum over layers of what the variants add to the loss, float32 [B], each the mean
        over an example's tokens; None if no variant adds any.

        Args:
          inputs: [B, T] ids, [B, height, width, channels] images or [B, T, features] frames, or a pair of
            images and frames.
          key_valid: bool [B, T], False at padding, of a pair in its frames; None where there is none.
          token_types: int [B, T]; None is all zeros.
          rng: For dropout, in training, where a batch norm reads the batch, and puts what its running
            averages become into the collection `weights.MOVED`, if that is mutable; None is evaluation.
          auxiliary: Whether the variants' own losses are asked for.
          segment_ids: int [B, T]: several texts packed into a row, each a run of equal ids, which do not
            see each other and whose positions count from 0; None is one text.
          prefix: int [B, P], the ids that the decoder reads.
          prefix_segments: int [B, P], of which segment a token of the prefix is an answer's.
          masked: bool [B, T], which tokens, patches or frames are hidden; None is none.
          at: int [B, A], 0 to T - 1, the tokens whose outputs are asked for; None is all.
          memory: What the layers of a decoder attend to, [B, S, D].
          table: Of tokens, where a decoder shares the encoder's.
          axis: Of the devices that a batch is split over in training, by name; None is one.

        Raises:
          ValueError: Shapes that do not fit together or the config, a prefix too many or too few, or
            token types, segments, masked tokens or places that the config has no place for.
        """
        config = self.config
        check_given(config, segment_ids, prefix, prefix_segments, at)
        seen = mask(config, key_valid, segment_ids, length(config, inputs))
        rngs, batch = (None,) * 3, None
        if rng is not None:
            batch = Batch(seen.key_valid, axis)
            rngs = jax.random.split(rng, 2 + bool(config.decoder_layers))
        positions = None if segment_ids is None else restarts(segment_ids)
        frames_valid = key_valid if config.inputs in ("frames", "patches+frames") else None
        embedding = Embedding(config, name="embedding")
        x = embedding(inputs, token_types, frames_valid, positions, table, masked)
        if seen.key_valid is not None:
            axes.sizes(x=(x, "BTD"), key_valid=(seen.key_valid, "BT"))
        if config.norm_place == "post":
            x = norm(config, "norm", x, batch)
        x = dropout(x, config.dropout, rngs[0])
        common = {"positions": positions, "memory": memory, "batch": batch}
        x, losses = self._layers(x, seen, rngs[1], auxiliary, common)
        if config.norm_place == "pre":
            x = norm(config, "norm", x, batch)
        out = pool(x, seen.key_valid, config.pool)
        if at is not None:
            out = jnp.take_along_axis(out, at[..., None], axis=1)
        if config.decoder_layers:
            made = Transformer(decoder(config), name="decoder")
            shared = self._table("embedding") if config.shared_table else None
            memory = Memory(x, memory_mask(seen, segment_ids, prefix_segments))
            own = {"segment_ids": prefix_segments, "memory": memory, "table": shared}
            out = made(prefix, rng=rngs[2], auxiliary=auxiliary, **own)
            if auxiliary:
                out, losses = out[0], _sum([losses, out[1]])
        if config.pooler:
            out = jnp.tanh(dense(config, config.width, "pooler", out))
        if config.num_classes:
            tied = self._table(*table_path(config)) if config.tied_head else None
            to = pointed(config, x, inputs, memory.mask) if config.pointer else None
            out = logits(config, out, tied, to)
        return (out, losses) if auxiliary else out

    def _table(self, *path: str) -> jax.Array:
        """The table of tokens of the part of the model at this path."""
        params = self.variables["params"]
        for name in (*path, "tokens", "embedding"):
            params = params[name]
        return params

    def _layers(self, x, seen: Mask, rng, auxiliary, common):
        """The tokens after all layers, and the layers' own losses [B], or None."""
        config, bias = self.config, position_bias(self)
        names = [f"block_{i}" for i in range(config.num_layers)]

        def layer_rng(i):
            return None if rng is None else jax.random.fold_in(rng, i)

        def own_loss(i, mixed):
            return _own_loss(config, i, mixed, seen, common["memory"]) if auxiliary else None

        if not config.scan or self.is_initializing():
            shared, losses = None, []
            for i, name in enumerate(names):
                given = None if maker(config, i) == i else shared
                block = Block(config, layer=i, name=name)
                mixed = block(x, seen, bias, layer_rng(i), given, **common)
                x = mixed.tokens
                if given is None:
                    shared = {name: mixed.heads[name] for name in REUSE[config.reuse]}
                losses.append(own_loss(i, mixed))
            return x, _sum(losses)
        # Parameters stay one tree a layer, which is what weight schemes share and count.
        params = [self.variables["params"][name] for name in names]
        if len({jax.tree.structure(layer) for layer in params}) > 1:
            params = affine.multiplied(params)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        block = Block(config, parent=None)
        mutable = [weights.MOVED] if self.is_mutable_collection(weights.MOVED) else []

        def body(x, layer):
            i, layer_params = layer
            mixed, moved = block.apply(
                {"params": layer_params}, x, seen, bias, layer_rng(i), mutable=mutable, **common
            )
            return mixed.tokens, (own_loss(0, mixed), moved)

        x, (losses, moved) = jax.lax.scan(body, x, (jnp.arange(config.num_layers), stacked))
        for collection, tree in moved.items():
            for i, name in enumerate(names):
                self.put_variable(collection, name, jax.tree.map(lambda x, i=i: x[i], tree))
        return x, None if losses is None else losses.sum(0)


def position_bias(module: nn.Module) -> biases.Bias | None:
    """The bias of all layers' scores, with its one table of parameters where it has one."""
    config = module.config
    N = mixers(config)[0][1].num_heads
    if config.positions == "alibi":
        return biases.Linear(biases.slopes(N))
    if config.positions == "relative":
        normal = nn.initializers.truncated_normal(0.02)
        return biases.Relative(module.param("relative", normal, (N, BUCKETS)))
    return None


def logits(config: Config, x: jax.Array, table=None, to: Pointed | None = None) -> jax.Array:
    """float32 [..., num_classes], by the head or by the table of tokens [num_classes, E], and a pointer."""
    x = x.astype(jnp.float32)
    if table is None:
        out = dense(config, config.num_classes, "head", x)
    else:
        y = x if x.shape[-1] == table.shape[-1] else dense(config, table.shape[-1], "head", x)
        out = jnp.einsum("...d,vd->...v", activations.rounded(y), table)
    return out if to is None else mixed(config, out, x, to)


def table_path(config: Config) -> tuple[str, ...]:
    """Where the parameters of the embedding are that a tied head reads."""
    apart = config.decoder_layers and not config.shared_table
    return ("decoder", "embedding") if apart else ("embedding",)


def _sum(losses: list) -> jax.Array | None:
    own = [loss for loss in losses if loss is not None]
    return sum(own) if own else None


def _own_loss(config: Config, layer: int, mixed: Mixed, seen: Mask, memory) -> jax.Array | None:
    """What a layer's variants add to the loss, the mean over an example's tokens [B]; None if nothing."""
    parts = [(*mixers(config)[layer], mixed.heads, seen)]
    if memory is not None:
        parts.append((*attention.build(config.cross_attention), mixed.crossed, memory.mask))
    return _sum([_mean_loss(*part, seen.key_valid) for part in parts])


def _mean_loss(variant, fields, heads, mask: Mask, valid) -> jax.Array | None:
    if not hasattr(variant, "auxiliary"):
        return None
    return pool(variant.auxiliary(fields, **heads, mask=mask)[..., None], valid, "mean")[:, 0]


def memory_mask(seen: Mask, segment_ids=None, prefix_segments=None) -> Mask:
    """What a decoder sees of an encoder's tokens, whose own mask is `seen`."""
    own = masks.segments(prefix_segments, segment_ids) if segment_ids is not None else Mask()
    return own & Mask(key_valid=seen.key_valid)


def mask(config: Config, key_valid: jax.Array | None, segment_ids=None, T: int = 0) -> Mask:
    """The mask of all layers: what is before, if causal, segments, and padding; the class token is seen.

    Of a pair so are the patches, before the frames: `T` tokens in all.
    """
    seen = masks.causal() if config.causal else Mask()
    if segment_ids is not None:
        seen &= masks.segments(segment_ids)
    if key_valid is None:
        return seen
    before = int(config.pool == "cls")
    if config.inputs in ("frames", "patches+frames"):
        key_valid = key_valid[:, :: 2**config.tokeniser]
    if config.inputs == "patches+frames":
        before = T - key_valid.shape[1]
    if before:
        key_valid = jnp.pad(key_valid, ((0, 0), (before, 0)), constant_values=True)
    return seen & masks.padding(key_valid)
