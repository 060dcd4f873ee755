"""Models of published papers at their published sizes, for accounting: no run trains them here.

Source: Devlin et al. 2019, "BERT", https://arxiv.org/abs/1810.04805; Turc et al. 2019,
  https://arxiv.org/abs/1908.08962 (Tiny to Medium); Jiao et al. 2020, "TinyBERT",
  https://arxiv.org/abs/1909.10351; Lan et al. 2020, "ALBERT", https://arxiv.org/abs/1909.11942.
Differs: pre-norm, see `tinyattn.model`.
"""

from typing import Any

from tinyattn import attention, model, weights


def _encoder(num_layers: int, width: int, ffn_width: int, num_heads: int, **given) -> dict:
    sizes = {"num_layers": num_layers, "width": width, "ffn_width": ffn_width}
    bert = {
        "inputs": "tokens",
        "vocab_size": 30_522,
        "token_types": 2,
        "max_length": 512,
        "pool": "first",
        "pooler": True,
        "num_classes": 0,
        "init": "truncated_normal",
        "attention": attention.spec("dense", num_heads=num_heads),
    }
    return model.spec(**bert | sizes | given)


def models() -> dict[str, dict[str, Any]]:
    """Name of a published model to its section of the config."""
    return {
        "BERT-base": _encoder(12, 768, 3072, 12),
        "BERT-Medium": _encoder(8, 512, 2048, 8),
        "BERT-Small": _encoder(4, 512, 2048, 8),
        "BERT-Mini": _encoder(4, 256, 1024, 4),
        "BERT-Tiny": _encoder(2, 128, 512, 2),
        "TinyBERT6": _encoder(6, 768, 3072, 12),
        "TinyBERT4": _encoder(4, 312, 1200, 12),
        "ALBERT-base E=768": _encoder(12, 768, 3072, 12, vocab_size=30_000),
        "ALBERT-base E=128": _encoder(12, 768, 3072, 12, vocab_size=30_000, embed_width=128),
    }


def sharing() -> dict[str, tuple]:
    """ALBERT's modes of sharing; a part is shared with the norm that stands before it."""
    return {
        "all": (weights.spec("share"),),
        "attention": (weights.spec("share", leaves="attention/"),),
        "FFN": (weights.spec("share", leaves="ffn/"),),
        "none": (),
    }
