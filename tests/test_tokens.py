"""An output for every token: causal models without a pool, labels of tokens, and a decoder's state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ablations import recall
from tinyattn import attention, config, cost, model, train
from tinyattn.attention.sparse import window
from tinyattn.model import _layers
from tinyattn.tasks import Split

V, T, D, N, L = 12, 8, 16, 2, 2
MODEL = {"model.width": D, "model.ffn_width": D, "model.num_classes": V}
MODEL |= {"model.vocab_size": V, "model.max_length": T, "model.attention.num_heads": N}
TASK = {"task.vocab_size": V, "task.length": T, "task.pairs": 2}
# Plain descent shows every factor of a gradient.
PLAIN = {"optim.optimizer": "sgd", "optim.clip_norm": 0.0, "optim.weight_decay": 0.0}
PLAIN |= {"optim.schedule": "constant", "optim.warmup_steps": 0, "optim.learning_rate": 0.5}
DRAW = np.random.default_rng(0)
# Compiled, by the repr of the config, as a section within it cannot be hashed.
PROGRAMS = {}
IDS = DRAW.integers(0, V, (8, T)).astype(np.int32)
# From one label an example to all of them.
LABELS = np.where(np.arange(T) < np.array([[1], [8], [2], [1], [5], [1], [3], [7]]), IDS[::-1], -1)
BATCH = Split(IDS, LABELS.astype(np.int32))


def make(**changes):
    batch = {"train.batch_size": 8}
    return train.make(
        config.override(recall.get_config("smoke"), MODEL | TASK | PLAIN | batch | changes)
    )


@functools.cache
def program():
    return make()


@functools.cache
def encoder(name="dense", **changes):
    fields = attention.load(name).CASES[0] | {"num_heads": N}
    section = {"inputs": "tokens", "vocab_size": V, "num_classes": 5, "max_length": T, "width": D}
    section |= {"attention": attention.spec(name, **fields), "causal": True, "pool": "none"}
    return model.build(model.spec(**section | changes))


def params(made):
    """Parameters none of which is 0 or 1."""
    shapes = jax.eval_shape(made.init, jax.random.PRNGKey(0), IDS)["params"]
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.4 * draw.standard_normal(x.shape).astype(x.dtype), shapes)


def logits(made, params, ids=IDS, key_valid=None):
    program = PROGRAMS.setdefault(repr(made.config), jax.jit(made.apply))
    return np.asarray(program({"params": params}, ids, key_valid))


def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def by_hand(program, params, batch):
    """The losses of the labels and which are predicted, one after the other."""
    found = np.asarray(jax.nn.log_softmax(logits(program.model, params, batch.inputs)), np.float64)
    places = [(b, t) for b in range(len(IDS)) for t in range(T) if batch.labels[b, t] >= 0]
    losses = [-found[b, t, batch.labels[b, t]] for b, t in places]
    return losses, [found[b, t].argmax() == batch.labels[b, t] for b, t in places]


def test_a_step_counts_labels_and_nothing_else():
    state = program().init(0)
    losses, correct = by_hand(program(), state.trainable, BATCH)
    after, sums = jax.jit(program().step)(state, BATCH)
    assert int(sums.count) == len(losses) == (LABELS >= 0).sum() == 28
    assert int(sums.correct) == sum(correct)
    np.testing.assert_allclose(sums.loss, sum(losses), rtol=1e-5)

    # The mean is over labels: an example with eight counts eight times as much as one with one.
    def mean(params):
        found = jax.nn.log_softmax(program().model.apply({"params": params}, IDS))
        picked = jnp.take_along_axis(found, jnp.maximum(LABELS, 0)[..., None], -1)[..., 0]
        return -jnp.where(LABELS >= 0, picked, 0).sum() / 28

    grads = jax.jit(jax.grad(mean))(state.trainable)
    jax.tree.map(lambda a, b, g: close(a, b - 0.5 * g), after.trainable, state.trainable, grads)


@pytest.mark.parametrize("split", ["micro_batches", "data_devices"])
def test_parts_with_unequal_numbers_of_labels_are_one_mean(split):
    """The first half of the batch has 12 labels, the second 16."""
    if split == "data_devices" and jax.device_count() < 2:
        pytest.skip("one device")
    assert [(part >= 0).sum() for part in (LABELS[:4], LABELS[4:])] == [12, 16]
    other, data, order = (
        make(**{f"train.{split}": 2}),
        jax.tree.map(jnp.asarray, BATCH),
        np.arange(8),
    )
    (one, sums), (two, others) = (
        p.run(p.init(0), data, jnp.asarray(order[None])) for p in (program(), other)
    )
    jax.tree.map(close, (one.trainable, sums), (two.trainable, others))


def test_evaluation_gives_every_label_once():
    theta = program().init(0).theta
    losses, correct = by_hand(program(), theta, BATCH)
    for batch in (3, 8, 256):
        found = train.evaluate(program(), theta, BATCH, batch=batch)
        there = BATCH.labels >= 0
        np.testing.assert_array_equal((found.labels == BATCH.labels)[there], correct)
        np.testing.assert_allclose(found.losses, losses, rtol=1e-4)


def test_without_a_pool_the_outputs_are_what_the_mean_is_of():
    drawn = params(encoder())
    found = logits(encoder(), drawn)
    assert found.shape == (8, T, 5)
    close(found.mean(1), logits(encoder(pool="mean"), drawn))
    headless = jax.eval_shape(encoder(num_classes=0).apply, {"params": drawn}, IDS)
    assert headless.shape == (8, T, D)


CAUSAL = [name for name in attention.names() if "causal" in attention.load(name).SUPPORTS]


@pytest.mark.parametrize("name", ["dense", "window", "linear"])
@pytest.mark.parametrize("conv", [0, 3])
def test_a_token_sees_what_came_before_it(name, conv):
    made, free = encoder(name, conv=conv), encoder(name, causal=False)
    drawn, own = params(made), params(free)
    before = logits(made, drawn)
    other = IDS.copy()
    other[:, 5] = (other[:, 5] + 1) % V
    changed = np.abs(logits(made, drawn, other) - before).max((0, 2))
    assert (changed[:5] == 0).all() and (changed[5:] > 0).all()
    # The opposite: without the order, what came before sees it as well.
    moved = np.abs(logits(free, own, other) - logits(free, own)).max((0, 2))
    assert (moved[:5] > 0).any()


def test_a_convolution_by_hand():
    x = DRAW.standard_normal((2, 5, 3)).astype(np.float32)
    kernel = DRAW.standard_normal((3, 3)).astype(np.float32)
    valid = np.array([[True] * 5, [False, True, True, False, True]])

    def apply(x, key_valid=None):
        return _layers.Convolution(3).apply({"params": {"kernel": kernel}}, x, key_valid)

    def expected(x):
        def at(t):
            return sum(kernel[i] * x[:, t - i] for i in range(min(3, t + 1)))

        return np.stack([at(t) for t in range(5)], axis=1)

    close(apply(x), expected(x))
    # What is padding adds nothing, whatever it holds.
    dirty = np.where(valid[..., None], x, np.nan)
    close(apply(dirty, valid), expected(np.where(valid[..., None], x, 0)))


def test_padding_is_not_seen_through_a_convolution():
    made = encoder(conv=3)
    drawn = params(made)
    valid = np.ones((8, T), bool)
    valid[:, :2] = False
    other = np.where(valid, IDS, (IDS + 1) % V)
    one, two = (logits(made, drawn, ids, valid)[:, 2:] for ids in (IDS, other))
    np.testing.assert_array_equal(one, two)
    assert (logits(made, drawn)[:, 2:] != logits(made, drawn, other)[:, 2:]).any()


def test_flops_are_those_of_the_formula():
    made = encoder(conv=3)
    F = made.config.ffn_width
    layer = 2 * T * (4 * D * D + 2 * D * F) + 4 * T * T * D + 2 * T * 3 * D
    counted = cost.count(made.apply, {"params": params(made)}, IDS[:1]).products
    assert counted == L * layer + 2 * T * D * 5
    unseen = T * T - T * (T + 1) // 2
    assert model.unneeded_flops(made.config, T, model.mask(made.config, None)) == L * 4 * D * unseen


def test_the_state_is_that_of_every_layer(monkeypatch):
    cache = 2 * T * D * 4 + 4
    assert model.state_bytes(encoder().config, T) == L * cache
    assert model.state_bytes(encoder(conv=3).config, T) == L * (cache + 2 * D * 4)
    half = 2 * T * D * 2 + 4
    assert model.state_bytes(encoder(dtype="bfloat16").config, T) == L * half
    # What sees the future, or has no step, does not decode.
    assert model.state_bytes(encoder(causal=False).config, T) is None
    monkeypatch.delattr(window, "state_bytes")
    assert model.state_bytes(encoder("window").config, T) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.causal": False}, "model.conv=3 looks back only; set model.causal"),
        ({"model.conv": -1}, "model.conv=-1 must be at least 0"),
        ({"model.pool": "cls"}, "model.pool='cls' reads the first token"),
        ({"model.pool": "first"}, "model.pool='first' reads the first token"),
        (
            {"model.pool": "mean"},
            r"'mean' gives one output an example, but .* train split are \(256, 8\)",
        ),
        (
            {"model.attention": attention.spec("nystrom", num_heads=N)},
            "'nystrom' cannot honour causal",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_labels_that_do_not_fit_are_refused(monkeypatch):
    for labels, message in (
        (LABELS[:, 0], r"'none' gives 8 outputs an example, but .* validation split are \(8,\)"),
        (np.full((8, T), -1), "validation split has an example without a label"),
    ):
        task = program().task._replace(validation=BATCH._replace(labels=labels))
        monkeypatch.setattr(train._step.tasks, "load", lambda section, data, task=task: task)
        with pytest.raises(ValueError, match=message):
            make()
