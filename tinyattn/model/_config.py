"""What a model is made of, checked before anything is compiled."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax

from tinyattn import attention, initializers, masks, registry

INPUTS = ("tokens", "patches")
POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "relative", "none")
BIASED = ("alibi", "relative")
POOLS = ("mean", "cls", "first", "none")
# What a layer takes from one before it instead of projecting it.
REUSE = {"none": (), "key_value": ("key", "value"), "query_key": ("query", "key")}


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
      also: Sections of the variants that some layers have instead.
      layout: The variant of each layer, a digit a layer, repeated where it is shorter: 0 is
        `attention`, 1 the first of `also`; "" is `attention` in every layer.
      reuse: What layers take from one before them: `key_value` heads (cross-layer attention) or
        `query_key`, so that they have its attention map and only values of their own; or `none`.
      reuse_every: Layers that have the same heads, of which the first makes them.
      reuse_from: Layers before the first such group, each with heads of its own.
      conv: Tokens that a short convolution reads before each mixing, the token itself the last of
        them; 0 is none. It needs `causal`.
      positions: `learned`, `sinusoidal`, `rotary` (in every layer), `alibi` or `relative` (a bias of
        all layers' scores, see `tinyattn.biases`) or `none`.
      causal: Whether a token sees itself and what came before it alone, as a decoder's does.
      pool: `mean` over tokens, `cls` (a learned token put first), `first` (the first token given) or
        `none` (every token has an output of its own).
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
    also: tuple[Mapping[str, Any], ...] = ()
    layout: str = ""
    reuse: str = "none"
    reuse_every: int = 2
    reuse_from: int = 0
    conv: int = 0
    positions: str = "learned"
    causal: bool = False
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
            ("reuse", tuple(REUSE)),
            ("init", tuple(initializers.INITIALIZERS)),
            ("depth_scaling", initializers.SCALINGS),
            ("dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in valid:
                value = getattr(self, name)
                raise ValueError(f"model.{name}={value!r}; {registry.nearest(value, valid)}")
        for least, names in (
            (1, ("patch", "max_length", "width", "num_layers", "ffn_width", "reuse_every")),
            (0, ("vocab_size", "token_types", "embed_width", "reuse_from", "conv", "num_classes")),
        ):
            for name in names:
                if getattr(self, name) < least:
                    raise ValueError(f"model.{name}={getattr(self, name)} must be at least {least}")
        if self.inputs == "tokens" and self.vocab_size < 1:
            raise ValueError(f"model.vocab_size={self.vocab_size}: tokens need a vocabulary")
        if self.inputs == "patches" and self.token_types:
            raise ValueError(f"model.token_types={self.token_types}: patches have no token types")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout} must be a rate in [0, 1)")
        if self.conv and not self.causal:
            raise ValueError(f"model.conv={self.conv} looks back only; set model.causal, or conv=0")
        if self.causal and self.pool in ("cls", "first"):
            raise ValueError(
                f"model.pool={self.pool!r} reads the first token, which sees nothing else where"
                f" model.causal is set; choose 'mean' or 'none'"
            )
        _check_layout(self)
        _check_reuse(self)
        for variant, fields in mixers(self):
            _check_mixer(self, variant, fields)

    @property
    def embedding(self) -> int:
        """Width of the embeddings."""
        return self.embed_width or self.width


def layout(config: Config) -> str:
    """The digit of every layer: which section its variant comes from."""
    digits = config.layout or "0"
    return (digits * config.num_layers)[: config.num_layers]


def mixers(config: Config) -> list[tuple[ModuleType, Any]]:
    """The variant of every layer: its module and its fields."""
    made = [attention.build(section) for section in (config.attention, *config.also)]
    return [made[int(digit)] for digit in layout(config)]


def maker(config: Config, layer: int) -> int:
    """The layer that makes what a layer shares: itself, or one before it."""
    place = layer - config.reuse_from
    alone = config.reuse == "none" or place < 0
    return layer if alone else layer - place % config.reuse_every


def _check_layout(config: Config) -> None:
    sections = "0123456789"[: 1 + len(config.also)]
    if len(config.also) > 9:
        raise ValueError(f"model.also has {len(config.also)} sections; a layout tells 9 apart")
    if len(config.layout) > config.num_layers or set(config.layout) - set(sections):
        raise ValueError(
            f"model.layout={config.layout!r} must be at most num_layers={config.num_layers} digits"
            f" from {sections!r}: 0 is model.attention, k the k-th section of model.also"
        )
    if unused := sorted(set(sections) - set(layout(config))):
        raise ValueError(
            f"model.layout={config.layout!r} gives no layer the section {', '.join(unused)}, where 0"
            f" is model.attention and k the k-th of model.also: name it, or leave it out of model.also"
        )
    if config.scan and config.also:
        raise ValueError(
            f"model.layout={config.layout!r} makes layers unlike one another, so they cannot be"
            f" scanned; set model.scan to False"
        )


def _check_reuse(config: Config) -> None:
    if config.reuse != "none" and config.scan:
        raise ValueError(
            f"model.reuse={config.reuse!r} makes layers unlike one another, so they cannot be"
            f" scanned; set model.scan to False"
        )
    kinds = layout(config)
    for layer, (variant, fields) in enumerate(mixers(config)):
        source = maker(config, layer)
        if source == layer:
            continue
        name = variant.__name__.rsplit(".", 1)[-1]
        if not attention.shares(variant, fields):
            raise ValueError(
                f"model.reuse={config.reuse!r}: attention {name!r} makes its heads its own way, which"
                f" layers cannot share; set model.reuse to 'none'"
            )
        if kinds[source] != kinds[layer]:
            raise ValueError(
                f"model.reuse={config.reuse!r}: layer {layer} takes heads from layer {source}, which"
                f" has another variant by the layout {kinds!r}; change model.reuse_from or"
                f" model.reuse_every, or give both the same digit"
            )


def _check_mixer(config: Config, variant: ModuleType, fields: Any) -> None:
    name = variant.__name__.rsplit(".", 1)[-1]
    if config.causal:
        attention.check(variant.__name__, variant.SUPPORTS, masks.causal())
    if isinstance(fields, attention.Heads):
        head_width = fields.width(config.width)
        if config.positions == "rotary" and head_width % 2:
            raise ValueError(f"rotary positions turn pairs: head width {head_width} is odd")
    if config.positions not in BIASED:
        return
    if "bias" not in variant.SUPPORTS:
        raise ValueError(
            f"model.positions={config.positions!r} adds a bias to the scores, which attention"
            f" {name!r} has not; choose one of"
            f" {', '.join(p for p in POSITIONS if p not in BIASED)}"
        )
    N = attention.build(config.attention)[1].num_heads
    if fields.num_heads != N:
        raise ValueError(
            f"model.positions={config.positions!r} adds one bias to the scores of all layers, but"
            f" attention {name!r} has num_heads={fields.num_heads} and model.attention {N}"
        )


def length(config: Config, inputs: jax.Array) -> int:
    """Number of tokens (T) that the layers see for these inputs."""
    if config.inputs == "tokens":
        if inputs.ndim != 2:
            raise ValueError(f"tokens need ids [B, T]: {inputs.shape}")
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
