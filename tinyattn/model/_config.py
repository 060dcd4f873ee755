"""What a model is made of, checked before anything is compiled."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tinyattn import attention
from tinyattn.model._checks import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      inputs: `tokens` (ids [B, T]), `patches` (images [B, height, width, channels]), `frames` (of
        speech, [B, T, features]) or `patches+frames` (a pair of these, whose tokens stand in one sequence,
        each with an embedding of its kind).
      patch: Side of a patch (pixels); 1 makes every pixel a token.
      tokeniser: Layers of a compact convolutional tokeniser in the place of patches, or before frames,
        each of which halves every side; 0 is none.
      vocab_size: Token ids (V).
      masked: Whether there is an embedding that stands in the place of tokens, patches or frames that are
        hidden, as a call's `masked` says.
      token_types: Kinds of token with an embedding of their own, as BERT's two sentences; 0 is none.
      embeddings: Tables that every id is looked up in; more than one lie side by side, positions added
        to each, and are projected to `width` unless they are as wide together.
      max_length: Positions for which a learned embedding exists, the class token included.
      width: Of the model (D).
      embed_width: Of the embeddings, projected to `width`; 0 is `width` itself (not factorised).
      num_layers: L.
      ffn_width: Of the feed-forward layer (F).
      ffn: What is between its two products: `gelu`, or a gate's `geglu` or `swiglu` times another
        layer's output.
      norm: `layernorm`, `rmsnorm` or `batchnorm`, whose statistics are over a batch's tokens in training,
        and running averages of these otherwise.
      norm_place: `pre`, before each mixing and feed-forward layer and after the last; or `post`, after
        each residual sum and after the embeddings.
      qkv: What queries, keys and values are projected from: the tokens themselves (`linear`), or the
        hidden units of a feed-forward layer as wide as the model (`ffn`), whose output layers they are.
      attention: Section of the variant, see `attention.spec`.
      also: Sections of the variants that some layers have instead.
      layout: The variant of each layer, a digit a layer, repeated where it is shorter: 0 is
        `attention`, 1 the first of `also`; "" is `attention` in every layer.
      reuse: What layers take from one before them: `key_value` heads (cross-layer attention) or
        `query_key`, so that they have its attention map and only values of their own; or `none`.
      reuse_every: Layers that have the same heads, of which the first makes them.
      reuse_from: Layers before the first such group, each with heads of its own.
      conv: Tokens that a short convolution reads before each mixing, the token itself the last of
        them; 0 is none. It needs `causal`.
      positions: `learned`, `sinusoidal` (beside which tables of tokens are multiplied by the root of
        their width, as in Vaswani et al. 2017, section 3.4), `rotary` (in every layer), `alibi` or
        `relative` (a bias of all layers' scores, see `tinyattn.biases`) or `none`.
      causal: Whether a token sees itself and what came before it alone, as a decoder's does.
      decoder_layers: Of a decoder that reads a `prefix` and attends to what the layers above make of the
        inputs; 0 is no decoder. Its ids, and its outputs, are `num_classes`.
      decoder_attention: Section of its masked self-attention.
      cross_attention: Section of its attention to the encoder's tokens.
      pool: `mean` over tokens, `cls` (a learned token put first), `first` (the first token given) or
        `none` (every token has an output of its own).
      pooler: Whether a tanh layer follows the pool, as in BERT.
      num_classes: Of the head; 0 is no head, the pooled vector is returned.
      tied_head: Whether logits are products with the table of the tokens, with no head of their own.
      shared_table: Whether encoder and decoder look ids up in one table.
      pointer: Whether a decoder's next token may also be one that stands in what the encoder read, which an
        attention of its own picks; logits are then the logarithms of the mixture's probabilities.
      dropout: Rate, after the embeddings and before each residual sum.
      init: Name in `initializers.INITIALIZERS`.
      depth_scaling: Of the kernels that write to the residual stream, see `initializers.residual`.
      scan: Runs the layers as one `lax.scan`, which compiles faster; the numbers are the same.
      activations: What an affine layer reads a token as: `float`, or rounded to `int8` or `int4` with a
        scale for each token, see `tinyattn.activations`. Products between tokens, and with parameters that
        are no affine layer's, stay float; the scheme `quantize` rounds the kernels.
      dtype: Of the computation, `float32` or `bfloat16`; parameters, softmax and logits are float32.
    """

    inputs: str = "patches"
    patch: int = 2
    tokeniser: int = 0
    vocab_size: int = 0
    masked: bool = False
    token_types: int = 0
    embeddings: int = 1
    max_length: int = 512
    width: int = 48
    embed_width: int = 0
    num_layers: int = 2
    ffn_width: int = 96
    ffn: str = "gelu"
    norm: str = "layernorm"
    norm_place: str = "pre"
    qkv: str = "linear"
    attention: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: attention.spec("dense")
    )
    also: tuple[Mapping[str, Any], ...] = ()
    layout: str = ""
    reuse: str = "none"
    reuse_every: int = 2
    reuse_from: int = 0
    conv: int = 0
    positions: str = "learned"
    causal: bool = False
    decoder_layers: int = 0
    decoder_attention: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: attention.spec("dense")
    )
    cross_attention: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: attention.spec("dense")
    )
    pool: str = "mean"
    pooler: bool = False
    num_classes: int = 10
    tied_head: bool = False
    shared_table: bool = False
    pointer: bool = False
    dropout: float = 0.0
    init: str = "lecun_normal"
    depth_scaling: str = "none"
    scan: bool = False
    activations: str = "float"
    dtype: str = "float32"

    def __post_init__(self):
        check(self)
        if self.decoder_layers:
            decoder(self)

    @property
    def embedding(self) -> int:
        """Width of the embeddings."""
        return self.embed_width or self.width


# What a decoder does not take from its model's config.
ALONE = {
    "inputs": "tokens",
    "tokeniser": 0,
    "masked": False,
    "token_types": 0,
    "embeddings": 1,
    "also": (),
    "layout": "",
    "reuse": "none",
    "causal": True,
    "decoder_layers": 0,
    "num_classes": 0,
    "tied_head": False,
    "shared_table": False,
    "pointer": False,
}


def decoder(config: Config) -> Config:
    """The config of an encoder-decoder's decoder by itself, which has no head."""
    own = {"vocab_size": config.num_classes, "num_layers": config.decoder_layers}
    return dataclasses.replace(config, **ALONE, **own, attention=config.decoder_attention)


def encoder(config: Config) -> Config:
    """The config of an encoder-decoder's encoder by itself, which has no head."""
    ends = dict.fromkeys(("tied_head", "shared_table", "pointer"), False)
    ends |= {"decoder_layers": 0, "num_classes": 0}
    return dataclasses.replace(config, **ends)


def kinds(config: Config) -> dict[str, Config]:
    """Of inputs of several kinds, the config of the embedding of each, in their order."""
    pool = "mean" if config.pool == "cls" else config.pool
    own = {"pool": pool, "width": config.embedding, "embed_width": 0}
    return {
        kind: dataclasses.replace(config, inputs=kind, **own) for kind in config.inputs.split("+")
    }


def length(config: Config, inputs: Any) -> int:
    """Number of tokens (T) that the layers see for these inputs.

    Raises:
      ValueError: Inputs that are not of the config's kind or size.
    """
    if config.inputs == "patches+frames":
        if not isinstance(inputs, tuple):
            raise ValueError(f"patches and frames need a pair (images, frames), not {inputs.shape}")
        parts = zip(kinds(config).values(), inputs, strict=True)
        return sum(length(own, x) for own, x in parts) + (config.pool == "cls")
    if config.inputs == "tokens":
        if inputs.ndim != 2:
            raise ValueError(f"tokens need ids [B, T]: {inputs.shape}")
        T = inputs.shape[1]
    elif config.inputs == "frames":
        if inputs.ndim != 3:
            raise ValueError(f"frames need features [B, T, features]: {inputs.shape}")
        T = _halved(config, inputs.shape[1])
    else:
        if inputs.ndim != 4:
            raise ValueError(f"patches need images [B, height, width, channels]: {inputs.shape}")
        height, width = inputs.shape[1:3]
        if config.tokeniser:
            T = _halved(config, height) * _halved(config, width)
        elif height % config.patch or width % config.patch:
            raise ValueError(
                f"model.patch={config.patch} must divide the image's sides {height}x{width}"
            )
        else:
            T = (height // config.patch) * (width // config.patch)
    T += config.pool == "cls"
    if config.positions == "learned" and T > config.max_length:
        raise ValueError(f"{T} tokens; raise model.max_length={config.max_length}")
    return T


def _halved(config: Config, side: int) -> int:
    """What is left of a side after the tokeniser, whose layers halve and round up."""
    return -(-side // 2**config.tokeniser)
