"""One token after another: what is kept between them, and the same numbers as of all tokens at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import activations, attention, biases, masks
from tinyattn.masks import Mask
from tinyattn.model._config import Config, decoder, encoder
from tinyattn.model._costs import keeps
from tinyattn.model._embedding import Embedding
from tinyattn.model._layers import Block, LayerState, Memory
from tinyattn.model._layout import REUSE, maker, mixers
from tinyattn.model._norm import norm
from tinyattn.model._pointer import Pointed, pointed
from tinyattn.model._transformer import (
    Transformer,
    logits,
    mask,
    memory_mask,
    position_bias,
    table_path,
)


class State(NamedTuple):
    """What decoding keeps of a batch.

    Attributes:
      layers: Of every layer, leaves [B, ...].
      length: int32 [B], tokens read so far.
      crossed: Of an encoder-decoder, what every layer's cross-attention made of the encoder's tokens.
      valid: bool [B, S], which of these are no padding; None is all, or no encoder.
      pointed: What a pointer picks from; None is no pointer.
    """

    layers: tuple[LayerState, ...]
    length: jax.Array
    crossed: tuple[dict[str, jax.Array], ...] | None = None
    valid: jax.Array | None = None
    pointed: Pointed | None = None


def start(model: Transformer, params: Any, B: int, capacity: int, **given) -> State:
    """The state of B examples before the first token, with room for `capacity` of them.

    Args:
      model: A decoder (`causal`, no pool), or an encoder-decoder.
      params: Of it.
      B: Examples.
      capacity: Most tokens that are read and written (tokens).
      **given: What the encoder reads, by name: `inputs`, `key_valid`, `token_types`.

    Raises:
      ValueError: The model does not decode, or not so many tokens; or it has an encoder and nothing that
        this reads, or the other way round.
    """
    config = model.config
    if bool(config.decoder_layers) != ("inputs" in given):
        raise ValueError(
            f"model.decoder_layers={config.decoder_layers} and {sorted(given) or 'nothing'} is given: an"
            f" encoder-decoder reads 'inputs' beside its prompt, a decoder its prompt alone"
        )
    stack = decoder(config) if config.decoder_layers else config
    check_decodes(stack, capacity)
    state = State(
        tuple(_layer(stack, i, B, capacity) for i in range(stack.num_layers)),
        jnp.zeros(B, jnp.int32),
    )
    if not config.decoder_layers:
        return state
    tokens = Transformer(encoder(config)).apply({"params": params}, **given)
    memory = Memory(tokens, memory_mask(mask(config, given.get("key_valid"))))
    crossed = _Crossing(stack).apply({"params": params["decoder"]}, memory)
    state = state._replace(crossed=crossed, valid=memory.mask.key_valid)
    if config.pointer:
        read = tokens, given["inputs"], memory.mask
        state = state._replace(pointed=_Apply(config, pointed).apply({"params": params}, *read))
    return state


def step(
    model: Transformer, params: Any, state: State, ids: jax.Array, active: jax.Array
) -> tuple[jax.Array, State]:
    """Reads a token of each example: logits float32 [B, num_classes] of the next, and the new state.

    Args:
      model: As of `start`.
      params: Of it.
      state: Of `start`, or of the step before.
      ids: int [B].
      active: bool [B], examples that read one; the logits of the others mean nothing.
    """
    config, table = model.config, None
    if config.tied_head or config.shared_table:
        table = params
        for name in (*table_path(config), "tokens", "embedding"):
            table = table[name]
    stack, own = config, params
    if config.decoder_layers:
        stack, own = decoder(config), params["decoder"]
    shared = table if config.shared_table else None
    x, state = _Step(stack).apply({"params": own}, ids, state, active, shared)
    tied = table if config.tied_head else None
    head = _Apply(config, logits)
    return head.apply({"params": params}, x[:, None], tied, state.pointed)[:, 0], state


def check_decodes(config: Config, capacity: int) -> None:
    """Refuses a model that has no step by step form, or none for so many tokens."""
    if not config.causal or config.pool != "none" or config.inputs != "tokens":
        raise ValueError(
            f"a model that writes is causal, reads tokens and has an output for each: model.causal="
            f"{config.causal}, model.pool={config.pool!r}, model.inputs={config.inputs!r}"
        )
    for variant, _ in mixers(config):
        if not hasattr(variant, "step"):
            name = variant.__name__.rsplit(".", 1)[-1]
            raise ValueError(f"attention {name!r} does not decode: choose a variant with a step")
    if config.positions == "learned" and capacity > config.max_length:
        raise ValueError(
            f"{capacity} tokens with those to write; raise model.max_length={config.max_length}"
        )


def _layer(config: Config, i: int, B: int, capacity: int) -> LayerState:
    """The empty state of a layer."""
    variant, fields = mixers(config)[i]
    mixer = past = None
    dtype = jnp.dtype(config.dtype)
    if keeps(config, i):
        H = attention.shapes(variant, fields, D=config.width, B=1, T=1)["value"][-1]
        mixer = variant.init_state(fields, B, capacity, H, dtype)
    if config.conv:
        past = jnp.zeros((B, config.conv - 1, config.width), dtype)
    return LayerState(mixer, past)


class _Crossing(nn.Module):
    """What the cross-attention of every layer takes of the encoder's tokens, whatever the query."""

    config: Config

    @nn.compact
    @activations.of_config
    def __call__(self, memory: Memory):
        config, found = self.config, []
        names = attention.of_memory(*attention.build(config.cross_attention), D=config.width)
        # Of a token that stands for any: what is made of it is not used, so it is not computed.
        x = jnp.zeros((memory.tokens.shape[0], 1, config.width), memory.tokens.dtype)
        for i in range(config.num_layers):
            block = Block(config, layer=i, name=f"block_{i}")
            crossed = block(x, masks.causal(), memory=memory).crossed
            found.append({name: crossed[name] for name in names})
        return tuple(found)


class _Step(nn.Module):
    """One token through a decoder's layers, [B] ids to [B, D], by the parameters of a `Transformer`."""

    config: Config

    @nn.compact
    @activations.of_config
    def __call__(self, ids, state: State, active, table):
        config, at = self.config, state.length[:, None]
        x = Embedding(config, name="embedding")(ids[:, None], positions=at, table=table)
        if config.norm_place == "post":
            x = norm(config, "norm", x)
        # With what is held, nothing that is made of these tokens is used, so it is not computed.
        shared, layers, any_token = None, [], jnp.zeros_like(x)
        if (bias := position_bias(self)) is not None:
            bias = biases.Placed(bias, at)
        for i, own in enumerate(state.layers):
            source, memory = maker(config, i), None
            given = None if source == i else shared
            if not keeps(config, i):
                # With the maker's heads, its state of before becomes its state again.
                own = own._replace(mixer=state.layers[source].mixer)
            if state.crossed is not None:
                memory = Memory(any_token, Mask(key_valid=state.valid), state.crossed[i])
            options = {"positions": at, "memory": memory, "state": own, "active": active}
            block = Block(config, layer=i, name=f"block_{i}")
            mixed = block(x, Mask(), bias, shared=given, **options)
            x = mixed.tokens
            if given is None:
                shared = {name: mixed.heads[name] for name in REUSE[config.reuse]}
            kept = mixed.state.mixer if keeps(config, i) else None
            layers.append(mixed.state._replace(mixer=kept))
        if config.norm_place == "pre":
            x = norm(config, "norm", x)
        return x[:, 0], state._replace(layers=tuple(layers), length=state.length + active)


class _Apply(nn.Module):
    """A function of the config and of arrays, by the parameters of a `Transformer`."""

    config: Config
    function: Callable

    @nn.compact
    @activations.of_config
    def __call__(self, *arrays):
        return self.function(self.config, *arrays)
