"""Transformers built from a config: encoders, decoders, and encoders with a decoder that attends to them.

An encoder classifies texts, images, speech or their tokens; `causal` with the pool "none" makes it a
decoder, which predicts a token from those before it; `decoder_layers` put a decoder behind it, which reads
a `prefix`. All are of one set of blocks, and any variant of attention may be in each place.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; pre-norm as Xiong et al. 2020,
  https://arxiv.org/abs/2002.04745; root mean squares as Zhang and Sennrich 2019,
  https://arxiv.org/abs/1910.07467; patches as Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929;
  the convolutional `tokeniser` as Hassani et al. 2021, "Compact Transformers",
  https://arxiv.org/abs/2104.05704, section 3.2; tied tables as Press and Wolf 2017,
  https://arxiv.org/abs/1608.05859; token types, pooler and sizes as Devlin et al. 2019,
  https://arxiv.org/abs/1810.04805; factorised embeddings as Lan et al. 2020,
  https://arxiv.org/abs/1909.11942, section 3.1; the `pointer` as See et al. 2017, see `_pointer.py`;
  `reuse` of keys and values as Brandon et al. 2024,
  "Cross-layer attention", https://arxiv.org/abs/2405.12981, section 3.1, and as the second half of Sun et
  al. 2024, "You only cache once", https://arxiv.org/abs/2405.05254, section 2, whose first half a `layout`
  gives a variant of its own, as it does local and global layers in turn, Gemma Team 2024, "Gemma 2",
  https://arxiv.org/abs/2408.00118, section 2; `reuse` of the attention map as Ying et al. 2021,
  "LazyFormer", https://arxiv.org/abs/2102.12702.
Differs: the shared keys and values of "You only cache once" have a norm of their own; here they are of what
  the queries of the first layer that has them read. A reused map is computed again from its queries and
  keys, which are what is kept: a table of all pairs is never held. BERT and ALBERT are post-norm; with the
  default pre-norm the norm after the embeddings stands after the last block instead, with the same number
  of parameters (ALBERT's is as wide as the embedding, ours as the model). Vaswani et al. have no norm after
  the embeddings, and scale these. Embeddings side by side (`embeddings`) and projections from hidden units
  (`qkv`) are how we read the write-up of the Beats encoder, which has no formulas. The tokeniser's
  convolutions read three places to each side's axis and its padding is zero; all are as wide as the
  embedding. A pattern that counts places in a row, as of `fixed`, counts on through packed segments.
"""

from collections.abc import Mapping
from typing import Any

from tinyattn import registry
from tinyattn.model._checks import BIASED, FFNS, INPUTS, NORMS, POOLS, POSITIONS
from tinyattn.model._config import Config, decoder, encoder, kinds, length
from tinyattn.model._costs import simulated, state_bytes, unneeded_flops
from tinyattn.model._decode import State, start, step
from tinyattn.model._embedding import Embedding, cut, restarts, rotate, sinusoids
from tinyattn.model._layers import Block, Memory, dropout, pool
from tinyattn.model._layout import REUSE, mixers
from tinyattn.model._shrink import shrink
from tinyattn.model._transformer import Transformer, mask

__all__ = [
    "BIASED",
    "FFNS",
    "INPUTS",
    "NORMS",
    "POOLS",
    "POSITIONS",
    "REUSE",
    "Block",
    "Config",
    "Embedding",
    "Memory",
    "State",
    "Transformer",
    "build",
    "cut",
    "decoder",
    "dropout",
    "encoder",
    "kinds",
    "length",
    "mask",
    "mixers",
    "pool",
    "restarts",
    "rotate",
    "shrink",
    "simulated",
    "sinusoids",
    "spec",
    "start",
    "state_bytes",
    "step",
    "unneeded_flops",
]


def spec(**given: Any) -> dict[str, Any]:
    """A config section for the model, every field visible: `spec(width=48, num_layers=2)`."""
    return registry.defaults(Config) | registry.known(Config, given, "model")


def build(section: Mapping[str, Any]) -> Transformer:
    """The model of a config section.

    Raises:
      ValueError: Unknown fields or values; before anything is compiled.
    """
    return Transformer(registry.construct(Config, section, "model"))
