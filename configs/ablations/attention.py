"""How tokens mix: every mechanism on handwritten digits, the rest of the model the same.

    python -m experiments.ablate --config=configs/ablations/attention.py --workdir=runs/attention

Sixteen tokens leave little to save; the table shows what each mechanism does to accuracy, and its cost.
"""

from configs.ablations.first import get_config
from tinyattn.attention import spec as attention

__all__ = ["get_config", "rows"]

WINDOW = attention("window", window=3, block=4)
CACHED_ONCE = {"model.reuse": "key_value", "model.reuse_from": 2, "model.reuse_every": 2}


def rows():
    yield "dense", {}
    yield "multi-query", {"model.attention.num_kv_heads": 1}
    yield "soft cap", {"model.attention.cap": 5.0}
    yield "QK norm", {"model.attention.qk_norm": True}
    yield "off by one", {"model.attention.sink": "one"}
    yield "learned sink", {"model.attention.sink": "learned"}
    yield "gated", {"model.attention.gate": True}
    yield "tied query and key", {"model.attention.tie": True}
    yield "ALiBi", {"model.positions": "alibi"}
    yield "relative bias", {"model.positions": "relative"}
    yield "shared keys and values", {"model.reuse": "key_value"}
    yield "reused map", {"model.reuse": "query_key"}
    yield "MLA", {"model.attention": attention("mla", latent=24, rope_dim=4)}
    yield "differential", {"model.attention": attention("differential")}
    yield "talking heads", {"model.attention": attention("talking")}
    yield "collaborative heads", {"model.attention": attention("collaborative", shared_dim=24)}
    yield "sigmoid", {"model.attention": attention("sigmoid")}
    yield "synthesizer", {"model.attention": attention("synthesizer", length=16)}
    yield (
        "synthesizer, random",
        {"model.attention": attention("synthesizer", kind="random", length=16)},
    )
    yield "window", {"model.attention": WINDOW}
    yield "local and global", {"model.also": (WINDOW,), "model.layout": "10"}
    yield "linear, elu + 1", {"model.attention": attention("linear")}
    yield "linear, cosine", {"model.attention": attention("linear", feature_map="relu_cosine")}
    yield "linear, Taylor", {"model.attention": attention("linear", feature_map="taylor")}
    yield "performer", {"model.attention": attention("performer", features=24)}
    yield "retention", {"model.attention": attention("retention")}
    yield "longformer", {"model.attention": attention("longformer", window=2, global_tokens=1)}
    yield "bigbird", {"model.attention": attention("bigbird", block=2, window_blocks=1)}
    yield "blocks", {"model.attention": attention("blocks", block=4, layout=("1100", "0110"))}
    yield "fixed", {"model.attention": attention("fixed", stride=4, summary=1)}
    yield "strided", {"model.attention": attention("strided", stride=4)}
    yield "top-k", {"model.attention": attention("topk", k=4)}
    yield "MoBA", {"model.attention": attention("moba", block=4, top=2)}
    yield "LSH", {"model.attention": attention("lsh")}
    yield "DSA", {"model.attention": attention("dsa", k=4)}
    yield "Nyström", {"model.attention": attention("nystrom", landmarks=4)}
    yield "Linformer", {"model.attention": attention("linformer", k=4, length=16)}
    # Half of the layers share one cache, and a half of one layer has nobody to share it with.
    deep = {"model.num_layers": 4}
    yield "dense, 4 layers", deep
    yield (
        "YOCO (window, then shared)",
        {**deep, "model.also": (WINDOW,), "model.layout": "1100", **CACHED_ONCE},
    )
    # What has no other form than the causal one, and its own baseline.
    yield "dense, causal", {"model.causal": True}
    yield "forgetting", {"model.causal": True, "model.attention.forget": True}
    yield (
        "NSA",
        {"model.causal": True, "model.attention": attention("nsa", block=4, top=2, window=4)},
    )
    yield "GLA", {"model.causal": True, "model.attention": attention("gla")}
    yield (
        "GLA and attention",
        {"model.causal": True, "model.also": (attention("gla"),), "model.layout": "10"},
    )
    yield "DeltaNet", {"model.causal": True, "model.attention": attention("deltanet")}
    yield (
        "gated DeltaNet",
        {"model.causal": True, "model.attention": attention("deltanet", gated=True)},
    )
