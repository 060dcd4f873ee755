"""What an encoder-decoder costs and how it scans, ties, shares and shrinks, as an encoder alone."""

import jax
import numpy as np
import pytest
from seq2seq import (
    DRAW,
    GIVEN,
    HEADS,
    RNG,
    SHARED,
    B,
    D,
    F,
    L,
    M,
    N,
    P,
    S,
    V,
    W,
    build,
    close,
    draw,
)

from configs.ablations import recall
from tinyattn import attention, config, cost, masks, model, train, weights
from tinyattn.tasks import Split, Task


def test_scan_changes_no_number_of_an_encoder_decoder():
    """With dropout, so that each layer's draws are its own."""
    nets = [build(dropout=0.3, scan=scan, num_layers=1, decoder_layers=2) for scan in (False, True)]
    params = {"params": draw(nets[0], **GIVEN)}
    close(*(jax.jit(net.apply)(params, **GIVEN, rng=RNG) for net in nets))


VARIANTS = {
    "decoder_attention": attention.spec("window", num_heads=N, window=2),
    "cross_attention": attention.spec("mla", num_heads=N, latent=3, rope_dim=0),
}


@pytest.mark.parametrize("changes", [{}, VARIANTS], ids=["dense", "variants"])
def test_declared_flops_are_those_counted(changes):
    made = build(**changes)
    params = draw(made, **GIVEN)
    counted = cost.count(
        lambda p: made.apply({"params": p}, **{k: x[:1] for k, x in GIVEN.items()}), params
    ).products
    parts = [("attention", masks.Mask(), S, S)] * L
    parts += [("decoder_attention", masks.causal(), P, P), ("cross_attention", masks.Mask(), P, S)]
    ffn = 2 * 2 * D * F * (L * S + M * P)
    declared, unneeded = ffn + 2 * P * D * W, 0
    valid = GIVEN["key_valid"]
    for field, seen, t, s in parts:
        variant, fields = attention.build(getattr(made.config, field))
        seen = seen if field == "decoder_attention" else masks.padding(valid)
        work = variant.flops(fields, seen, D=D, T=t, S=s).values()
        declared += sum(part.executed for part in work)
        unneeded += sum(part.executed - part.useful for part in work)
    assert counted == declared
    seen = model.mask(made.config, valid)
    assert model.unneeded_flops(made.config, S, seen, P) == pytest.approx(unneeded)
    if not changes:
        dense = 4 * D * (L * (S * S - S * valid.sum(1).mean()) + P * P - P * (P + 1) // 2)
        assert unneeded == pytest.approx(dense + 4 * D * (P * S - P * valid.sum(1).mean()))


def test_state_of_a_decoder_and_of_what_it_attends_to():
    found = model.state_bytes(build().config, S, P)
    assert found == M * (2 * P * D * 4 + 4 + 2 * S * D * 4)
    assert model.state_bytes(build(**VARIANTS).config, S, P) == 2 * 2 * D * 4 + 4 + S * 3 * 4


def test_a_tied_table_counts_once_and_trains_from_both_ends():
    made = build(**SHARED)
    params = draw(made, **GIVEN)
    assert "embedding" in params["decoder"] and "tokens" not in params["decoder"]["embedding"]
    untied = draw(build(**SHARED | {"tied_head": False, "shared_table": False}), **GIVEN)
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    # The decoder's table goes, and of the head what is from the embedding's width to the classes.
    head = D * W + W - (D * 6 + 6)
    assert size(untied) - size(params) == W * 6 + head
    theta = weights.build([weights.spec("share")]).init(RNG, params)
    assert weights.sizes(theta).params < size(params)


def test_what_is_pruned_whole_is_gone_from_both_stacks():
    """Heads of self-attention, of cross-attention, and FFN columns with their gates; each stack its own."""
    across = {
        "outputs": r"/cross_attention/(query|key|value)/kernel$",
        "inputs": r"/cross_attention/((query|key|value)/bias|out/kernel)$",
        "judges": r"/cross_attention/(value|out)/kernel$",
    }
    made = build(ffn="swiglu")
    params = draw(made, **GIVEN)
    # The first head of the encoder's first layer and the second of the decoder's are small.
    for block, head in ((params["block_0"], 0), (params["decoder"]["block_0"], 1)):
        block["attention"]["out"]["kernel"][head * D // N : (head + 1) * D // N] *= 0.1
    fields = ({"pattern": "heads"}, {"pattern": "heads", **across}, {"pattern": "ffn"})
    sizes = ({"units": N}, {"units": N}, {"sparsity": 0.3})
    scheme = weights.build(
        [weights.spec("prune", **a, **b) for a, b in zip(fields, sizes, strict=True)]
    )
    theta = scheme.init(RNG, params)
    masked, small = weights.fold(theta), weights.fold(weights.removed(theta))
    left = model.Transformer(model.shrink(made.config, masked, small))
    for field in ("attention", "decoder_attention", "cross_attention"):
        assert getattr(left.config, field)["num_heads"] == 1, field
    assert left.config.ffn_width == 7
    for block, kept in ((small["block_0"], 1), (small["decoder"]["block_0"], 0)):
        whole = params["block_0"] if kept else params["decoder"]["block_0"]
        want = whole["attention"]["out"]["kernel"][kept * D // N : (kept + 1) * D // N]
        np.testing.assert_array_equal(block["attention"]["out"]["kernel"], want)
    want = jax.jit(made.apply)({"params": masked}, **GIVEN)
    close(jax.jit(left.apply)({"params": small}, **GIVEN), want)


def test_a_run_of_it_is_priced(monkeypatch):
    labels = DRAW.integers(-1, W, (B, P)).astype(np.int32)
    data = Split(labels=labels, **{name: np.asarray(x) for name, x in GIVEN.items()})
    task = Task(data, data, data, W, V, lambda rng, inputs: inputs)
    monkeypatch.setattr(train._step.tasks, "load", lambda *sections: task)
    fields = {"width": D, "ffn_width": F, "num_layers": 1, "decoder_layers": M, "vocab_size": V}
    fields |= {"num_classes": W, "causal": False, "conv": 0, "attention": HEADS}
    fields |= {"decoder_attention": HEADS, "cross_attention": HEADS}
    changes = {f"model.{name}": x for name, x in fields.items()} | {"train.batch_size": B}
    program = train.make(config.override(recall.get_config("smoke"), changes))
    state = program.init(0)
    assert jax.eval_shape(program.step, state, data)[1].count.shape == ()
    found = train.costs(program, state, train.forward(program, state))
    seen = model.mask(program.model.config, GIVEN["key_valid"])
    unneeded = model.unneeded_flops(program.model.config, S, seen, P)
    assert found["executed_flops"] - found["useful_flops"] == pytest.approx(unneeded)
    assert found["decode_state_bytes"] == model.state_bytes(program.model.config, S, P)

    wrong = data._replace(prefix=None)
    monkeypatch.setattr(
        train._step.tasks, "load", lambda *sections: task._replace(train=wrong, test=wrong)
    )
    with pytest.raises(ValueError, match="read a prefix, which the task's train split has not"):
        train.make(config.override(recall.get_config("smoke"), changes))
