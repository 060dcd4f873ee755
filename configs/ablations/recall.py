"""What a state can hold: recall of eight pairs against the bytes that decoding keeps of a text.

    python -m experiments.ablate --config=configs/ablations/recall.py --workdir=runs/recall

One layer, so that the state of a row is that of one mechanism, and a convolution of three tokens before it
as in the runs of Arora et al.: a key and its value then meet in one token, and the rest is to remember.
`H` is the width of the only head; a full cache grows with the text, the others' states do not.
"""

import ml_collections

from tinyattn import model, optim, registry, tasks, train
from tinyattn.attention import spec
from tinyattn.config import parse_arg

VOCABULARY, LENGTH = 64, 64


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The base of all rows.

    Args:
      arg: `smoke` runs a few steps of one seed.
    """
    chosen = parse_arg(arg, smoke=False)
    config = ml_collections.ConfigDict()
    config.seeds = (0,) if chosen.smoke else (0, 1, 2)
    config.figure = ("executed_flops", "decode_state_bytes")
    config.task = tasks.spec(
        "mqar",
        vocab_size=VOCABULARY,
        length=LENGTH,
        pairs=8,
        train_examples=256 if chosen.smoke else 16_384,
        validation_examples=64 if chosen.smoke else 512,
        test_examples=64 if chosen.smoke else 1024,
    )
    config.model = model.spec(
        inputs="tokens",
        vocab_size=VOCABULARY,
        num_classes=VOCABULARY,
        max_length=LENGTH,
        width=32,
        ffn_width=64,
        num_layers=1,
        causal=True,
        conv=3,
        pool="none",
        attention=spec("dense", num_heads=1),
    )
    config.weights = ()
    config.optim = registry.defaults(optim.Config) | dict(
        learning_rate=5e-3,
        schedule="cosine",
        warmup_steps=5 if chosen.smoke else 100,
        weight_decay=0.05,
        clip_norm=1.0,
    )
    config.train = registry.defaults(train.Config) | dict(
        steps=20 if chosen.smoke else 2000, batch_size=64, eval_every=10 if chosen.smoke else 500
    )
    # Seconds between checkpoints; -1 saves as often as costs 1% of the time.
    config.checkpoint = dict(every_seconds=-1.0, keep=2)
    return config


def rows():
    yield "dense, H=32", {}
    yield "dense, H=8", {"model.attention.head_dim": 8}
    for window in (8, 16, 32):
        yield f"window={window}", {"model.attention": spec("window", window=window)}
    for name, widths, variant in (
        ("linear, elu + 1", (8, 16, 32), spec("linear")),
        ("linear, Taylor", (4, 8, 16), spec("linear", feature_map="taylor")),
        ("retention", (8, 16, 32), spec("retention")),
        ("GLA", (8, 16, 32), spec("gla")),
        ("DeltaNet", (8, 16, 32), spec("deltanet")),
    ):
        for H in widths:
            yield f"{name}, H={H}", {"model.attention": variant, "model.attention.head_dim": H}
