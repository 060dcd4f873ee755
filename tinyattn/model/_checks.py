"""What a config may say, and what of it does not fit together."""

from types import ModuleType
from typing import Any

from tinyattn import activations, attention, initializers, masks, registry
from tinyattn.model._layout import REUSE, layout, maker, mixers

INPUTS = ("tokens", "patches", "frames", "patches+frames")
POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "relative", "none")
BIASED = ("alibi", "relative")
POOLS = ("mean", "cls", "first", "none")
NORMS = ("layernorm", "rmsnorm", "batchnorm")
NORM_PLACES = ("pre", "post")
FFNS = ("gelu", "geglu", "swiglu")
QKV = ("linear", "ffn")

CHOICES = {
    "inputs": INPUTS,
    "positions": POSITIONS,
    "pool": POOLS,
    "norm": NORMS,
    "norm_place": NORM_PLACES,
    "ffn": FFNS,
    "qkv": QKV,
    "reuse": tuple(REUSE),
    "init": initializers.INITIALIZERS,
    "depth_scaling": initializers.SCALINGS,
    "activations": activations.KINDS,
    "dtype": ("float32", "bfloat16"),
}
LEAST = dict.fromkeys(
    ("patch", "max_length", "width", "num_layers", "ffn_width", "reuse_every", "embeddings"), 1
) | dict.fromkeys(
    ("vocab_size", "token_types", "embed_width", "reuse_from", "conv", "num_classes")
    + ("tokeniser", "decoder_layers"),
    0,
)


def check(config: Any) -> None:
    """Refuses values that are unknown or out of range, and fields that do not fit each other."""
    for name, valid in CHOICES.items():
        if getattr(config, name) not in valid:
            value = getattr(config, name)
            raise ValueError(f"model.{name}={value!r}; {registry.nearest(value, valid)}")
    for name, least in LEAST.items():
        if getattr(config, name) < least:
            raise ValueError(f"model.{name}={getattr(config, name)} must be at least {least}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"model.dropout={config.dropout} must be a rate in [0, 1)")
    if config.norm == "batchnorm" and (config.causal or config.decoder_layers):
        raise ValueError(
            f"model.norm='batchnorm' shows every token all others of its batch in training, and with"
            f" causal={config.causal} and decoder_layers={config.decoder_layers} a token must not see"
            f" those after it; choose 'layernorm' or 'rmsnorm'"
        )
    _check_inputs(config)
    if config.conv and not config.causal:
        raise ValueError(f"model.conv={config.conv} looks back only; set model.causal, or conv=0")
    if config.causal and config.pool in ("cls", "first"):
        raise ValueError(
            f"model.pool={config.pool!r} reads the first token, which sees nothing else where"
            f" model.causal is set; choose 'mean' or 'none'"
        )
    _check_layout(config)
    _check_reuse(config)
    for variant, fields in mixers(config):
        _check_mixer(config, variant, fields)
    _check_tables(config)
    if config.decoder_layers:
        _check_decoder(config)


def check_given(config: Any, segment_ids, prefix, prefix_segments, at) -> None:
    """Refuses arrays that the config has no place for, or that want others beside them."""
    if (prefix is None) == bool(config.decoder_layers):
        raise ValueError(
            f"model.decoder_layers={config.decoder_layers} and"
            f" {'no prefix is' if prefix is None else 'a prefix is'} given: a decoder reads a prefix,"
            f" and nothing else does"
        )
    if at is not None and (config.decoder_layers or config.pool != "none"):
        raise ValueError(
            f"places are given whose outputs are asked for: model.pool={config.pool!r} and"
            f" model.decoder_layers={config.decoder_layers} have no output for each token read; set"
            f" pool='none' and decoder_layers=0"
        )
    answered = segment_ids is not None and bool(config.decoder_layers)
    if answered != (prefix_segments is not None):
        raise ValueError(
            f"segment_ids and prefix_segments tell texts and their answers apart: with"
            f" model.decoder_layers={config.decoder_layers} give"
            f" {'both or neither' if config.decoder_layers else 'no prefix_segments'}"
        )
    if segment_ids is not None and (config.pool != "none" or config.inputs != "tokens"):
        raise ValueError(
            f"segment_ids pack texts of tokens into a row that has an output for each: model.inputs="
            f"{config.inputs!r} and model.pool={config.pool!r} have not; give one text a row"
        )


def _check_inputs(config: Any) -> None:
    if config.inputs == "tokens" and config.vocab_size < 1:
        raise ValueError(f"model.vocab_size={config.vocab_size}: tokens need a vocabulary")
    if config.inputs != "tokens" and config.token_types:
        raise ValueError(
            f"model.token_types={config.token_types}: {config.inputs} have no token types"
        )
    if config.inputs != "tokens" and config.embeddings > 1:
        raise ValueError(
            f"model.embeddings={config.embeddings} are tables of token ids, which {config.inputs}"
            f" have not; set it to 1"
        )
    if config.inputs == "patches+frames" and config.masked:
        raise ValueError(
            "model.masked hides inputs of one kind, not 'patches+frames': set it to False"
        )
    if config.inputs == "tokens" and config.tokeniser:
        raise ValueError(
            f"model.tokeniser={config.tokeniser} makes tokens of patches or frames; set it to 0"
        )


def _check_tables(config: Any) -> None:
    reads = config.num_classes if config.decoder_layers else config.vocab_size
    tokens = config.decoder_layers or config.inputs == "tokens"
    several = config.embeddings > 1 and not config.decoder_layers
    if config.tied_head and (not tokens or config.num_classes != reads or several):
        raise ValueError(
            f"model.tied_head reads logits off the one table of tokens: with inputs ="
            f" {config.inputs!r}, embeddings = {config.embeddings}, vocab_size ="
            f" {config.vocab_size} and num_classes = {config.num_classes} there is none of that size"
        )
    both = config.decoder_layers and config.inputs == "tokens"
    both = both and config.vocab_size == config.num_classes
    if config.pointer and not both:
        raise ValueError(
            f"model.pointer lets a decoder write ids that its encoder read: give tokens, decoder_layers"
            f" above 0 and vocab_size = num_classes, not {config.inputs}, {config.decoder_layers},"
            f" {config.vocab_size} and {config.num_classes}"
        )
    if config.shared_table and not (both and config.embeddings == 1):
        raise ValueError(
            f"model.shared_table is one table for the ids of an encoder and of a decoder: give tokens,"
            f" decoder_layers above 0, embeddings = 1 and vocab_size = num_classes, not"
            f" {config.inputs}, {config.decoder_layers}, {config.embeddings},"
            f" {config.vocab_size} and {config.num_classes}"
        )


def _check_decoder(config: Any) -> None:
    if config.pool != "none" or config.pooler or not config.num_classes:
        raise ValueError(
            f"model.decoder_layers={config.decoder_layers} gives an output for every token of the"
            f" prefix: set pool = 'none', pooler = False and num_classes to the decoder's vocabulary,"
            f" not {config.pool!r}, {config.pooler} and {config.num_classes}"
        )
    if config.causal:
        raise ValueError(
            "model.causal=True is of a decoder without an encoder; the encoder before"
            f" decoder_layers={config.decoder_layers} sees all: set it to False"
        )
    variant, _ = attention.build(config.cross_attention)
    attention.check(variant.__name__, variant.SUPPORTS, masks.Mask(), cross=True)


def _check_layout(config: Any) -> None:
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


def _check_reuse(config: Any) -> None:
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


def _check_mixer(config: Any, variant: ModuleType, fields: Any) -> None:
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
