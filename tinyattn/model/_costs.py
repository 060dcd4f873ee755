"""What a model costs beyond what is counted: pairs that no mask allows, and the state of decoding."""

import math

import jax.numpy as jnp

from tinyattn import attention, masks
from tinyattn.masks import Mask
from tinyattn.model._config import Config, decoder
from tinyattn.model._layout import maker, mixers


def unneeded_flops(config: Config, T: int, seen: Mask = Mask(), P: int = 0) -> float:
    """Executed less useful FLOPs of all layers for one example: pairs that no mask allows.

    Args:
      config: Of the model.
      T: Tokens.
      seen: The mask of the layers, see `mask`.
      P: Tokens of a decoder's prefix.
    """
    D = config.width
    work = [variant.flops(fields, seen, D=D, T=T, S=T) for variant, fields in mixers(config)]
    if config.decoder_layers:
        variant, fields = attention.build(config.decoder_attention)
        own = variant.flops(fields, masks.causal(), D=D, T=P, S=P)
        variant, fields = attention.build(config.cross_attention)
        across = variant.flops(fields, Mask(key_valid=seen.key_valid), D=D, T=P, S=T)
        work += [own, across] * config.decoder_layers
    return sum(part.executed - part.useful for layer in work for part in layer.values())


def keeps(config: Config, layer: int) -> bool:
    """Whether a layer keeps a state of its own in decoding, and does not read that of its maker."""
    if maker(config, layer) == layer or config.reuse == "query_key":
        return True
    # What a layer makes of its own tokens beyond heads, such as a decay, may be part of its state.
    names = attention.shapes(*mixers(config)[layer], D=config.width, B=1, T=1)
    return not names.keys() <= {"query", "key", "value"}


def state_bytes(config: Config, T: int, P: int = 0) -> int | None:
    """Bytes that all layers keep of one example after T tokens, what they share once.

    Of an encoder-decoder: what its decoder keeps after P tokens, and of T tokens of the encoder.

    None if it cannot decode by tokens, or if layers share a part of what a variant keeps.
    """
    if config.decoder_layers:
        own, memory = state_bytes(decoder(config), P), _memory_bytes(config, T)
        # A pointer's keys, and the ids that they are of.
        places = config.pointer * T * (config.width * jnp.dtype(config.dtype).itemsize + 4)
        return None if own is None else own + config.decoder_layers * memory + places
    layers = mixers(config)
    decodes = all(hasattr(variant, "state_bytes") for variant, _ in layers)
    if not config.causal or not decodes or config.reuse == "query_key":
        return None
    itemsize = jnp.dtype(config.dtype).itemsize
    sizes = {"D": config.width, "length": T, "itemsize": itemsize}
    own = [layer for i, layer in enumerate(layers) if keeps(config, i)]
    past = max(config.conv - 1, 0) * config.width * itemsize
    states = sum(variant.state_bytes(fields, **sizes) for variant, fields in own)
    return states + config.num_layers * past


def _memory_bytes(config: Config, S: int) -> int:
    """Bytes that one layer's cross-attention keeps of S tokens."""
    D, (variant, fields) = config.width, attention.build(config.cross_attention)
    made = attention.shapes(variant, fields, D=D, B=1, T=1, S=S)
    held = attention.of_memory(variant, fields, D=D)
    return sum(math.prod(made[name]) for name in held) * jnp.dtype(config.dtype).itemsize


def simulated(config: Config) -> bool:
    """Whether a layer only masks a dense product."""
    layers = mixers(config)
    if config.decoder_layers:
        layers += [attention.build(s) for s in (config.decoder_attention, config.cross_attention)]
    return any(variant.SIMULATED for variant, _ in layers)
