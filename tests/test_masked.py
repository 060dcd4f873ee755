"""What is hidden of inputs: how much, what is told of it, and what a loss sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_data import everything, serving
from tiny import ENCODER

from configs import pretrain
from tinyattn import config, cost, model, tasks, train
from tinyattn.tasks import Split, masked

TINY = ENCODER | {
    "model.width": 16,
    "train.steps_per_dispatch": 1,
}
KINDS = {"tokens": "intents", "patches": "digits", "frames": "fsdd"}
PROGRAMS = {}


home = serving(everything)


def made(kind):
    """The program of a kind of inputs, a batch of it, and its compiled augmentation."""
    if kind not in PROGRAMS:
        program = remade(kind)
        batch = jax.tree.map(lambda x: jnp.asarray(x[:8]), program.task.train)
        PROGRAMS[kind] = program, batch, jax.jit(program.task.augment)
    return PROGRAMS[kind]


def remade(kind, **changes):
    base = pretrain.get_config(f"task={KINDS[kind]},smoke")
    words = dict.fromkeys(("task.of.vocab_size", "model.vocab_size", "model.num_classes"), 400)
    more = words if kind == "tokens" else {}
    return train.make(config.override(base, TINY | more | changes))


def spread(split):
    """The same with a label, or a target, for every token, and so with an output for each."""
    split = jax.tree.map(np.asarray, split)
    row, i = np.nonzero(split.labels >= 0)
    at = row, split.at[row, i]
    labels = np.full(split.masked.shape, masked._hidden.UNLABELLED, np.int32)
    labels[at], targets = split.labels[row, i], None
    if split.targets is not None:
        targets = np.zeros((*labels.shape, split.targets.shape[-1]), np.float32)
        targets[at] = split.targets[row, i]
    return split._replace(labels=labels, targets=targets, at=None)


def hidden_of(split, patch):
    """For every pixel or frame whether its token is hidden, in plain loops."""
    out = np.zeros(split.inputs.shape[:-1], bool)
    for place in np.ndindex(*out.shape):
        row, *at = place
        token = 0
        for side, i in zip(out.shape[1:], at, strict=True):
            token = token * (side // patch) + i // patch
        out[place] = split.masked[row, token]
    return out


def test_of_15_percent_are_80_hidden_10_another_and_10_as_they_are():
    kind = masked.Tokens("tokens", 0.15, 1, 4, 50)
    ids = np.tile([2, *range(4, 44), 3, 1, 0, 0], (2000, 1)).astype(np.int32)
    batch = Split(ids, np.zeros_like(ids), ids > 0, masked=np.zeros(ids.shape, bool))
    rngs = jax.random.split(jax.random.PRNGKey(0), 3)
    uniform = [jax.random.uniform(rng, ids.shape) for rng in rngs[:2]]
    draws = masked.Draws(*uniform, jax.random.randint(rngs[2], ids.shape, 4, 50))
    found = spread(jax.jit(lambda batch: masked.hide(kind, draws, batch))(batch))
    told = np.asarray(found.labels) >= 0
    assert (told.sum(1) == 6).all()  # 15% of 40: neither special nor unknown tokens count
    np.testing.assert_array_equal(found.labels[told], ids[told])
    assert not told[ids < 4].any() and abs(told[:, 1:41].mean(0) - 0.15).max() < 0.03
    hidden = np.asarray(found.masked)
    changed = told & ~hidden & (found.inputs != ids)
    assert not (hidden & ~told).any() and not found.inputs[hidden].any()
    np.testing.assert_array_equal(found.inputs[~told], ids[~told])
    assert abs(hidden.sum() / told.sum() - 0.8) < 0.01
    # One of 46 drawn tokens is the one that stands there.
    assert abs(changed.sum() / told.sum() - 0.1 * 45 / 46) < 0.01
    assert found.inputs[changed].min() >= 4 and len(set(found.inputs[changed].tolist())) == 46


@pytest.mark.parametrize("share", [0.02, 0.15, 0.5, 0.97])
def test_of_any_number_of_tokens_the_share_is_told_and_at_least_one(share):
    """None is lost for want of places: rows of 0 to all 30 tokens that may be told."""
    kind = masked.Tokens("tokens", share, 1, 4, 99)
    n, place = np.arange(31), np.arange(30)
    ids = np.where(place < n[:, None], 10 + place, 1).astype(np.int32)
    order = np.random.default_rng(0).random((2, *ids.shape))
    split = Split(ids, ids, ids > 0)
    for one in (np, jnp):
        given = jax.tree.map(one.asarray, (masked.Draws(*order, ids), split))
        found = masked.hide(kind, *given)
        told = np.asarray(found.labels) >= 0
        np.testing.assert_array_equal(told.sum(1), [min(max(round(share * k), 1), k) for k in n])
        assert found.at.shape[1] == max(told.sum(1)) and (np.diff(found.at)[told[:, 1:]] > 0).all()
        assert (np.take_along_axis(ids, np.asarray(found.at), 1) == found.labels)[told].all()


def test_outputs_where_they_are_asked_for_are_those_of_all_and_cost_less():
    """Loss and gradient of a batch, against a head that multiplies every token."""
    program, batch, augment = made("tokens")
    seen = augment(jax.random.PRNGKey(0), batch)

    def loss(theta, split):
        found = program.judge(theta, split)[1]
        return jnp.where(split.labels >= 0, found, 0.0).sum()

    theta = program.init(0).theta
    told, every = (
        jax.jit(jax.value_and_grad(loss))(theta, split) for split in (seen, spread(seen))
    )
    np.testing.assert_allclose(told[0], every[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), told[1], every[1])
    assert all(float(abs(x).max()) > 0 for x in jax.tree.leaves(told[1]))
    B, A = seen.labels.shape
    fewer = B * (seen.masked.shape[1] - A)
    counts = [cost.count(program.predict, theta, x).products for x in (spread(seen), seen)]
    assert counts[0] - counts[1] == 2 * fewer * 16 * program.task.num_classes > 0


@pytest.mark.parametrize("kind", KINDS)
def test_training_hides_anew_and_evaluation_always_the_same(kind):
    program, batch, augment = made(kind)
    task = program.task
    first, second = (augment(jax.random.PRNGKey(i), batch) for i in (0, 1))
    assert (first.masked != second.masked).any()
    tasks._LOADED.clear()
    again = remade(kind).task
    for split, other in zip(task[1:3], again[1:3], strict=True):
        jax.tree.map(np.testing.assert_array_equal, split, other)
        assert split.masked.any() and (split.labels >= 0).any(1).all()
    # Nothing is hidden of training in memory, which has as many labels as a step.
    assert not task.train.masked.any() and task.train.targets is None
    assert task.train.labels.shape[1] == first.labels.shape[1] == task.test.labels.shape[1]


@pytest.mark.parametrize("kind", ["patches", "frames"])
def test_what_is_hidden_is_the_target_and_is_not_read(kind):
    _, batch, augment = made(kind)
    patch = 2 if kind == "patches" else 4
    share = pretrain.SHARES[kind]
    whole = np.asarray(batch.inputs)
    found = spread(augment(jax.random.PRNGKey(0), batch))
    told = found.masked
    np.testing.assert_array_equal(found.labels >= 0, found.masked)
    if kind == "patches":
        assert (found.masked.sum(1) == round(share * 16)).all()
        np.testing.assert_array_equal(found.targets[told], model.cut(whole, 2)[told])
    else:
        # 48 frames of 96 are there, 12 whole tokens.
        assert (found.masked.sum(1) == round(share * 12)).all() and not found.masked[:, 12:].any()
        np.testing.assert_array_equal(found.targets[told], whole.reshape(8, 24, 160)[told])
    hidden = hidden_of(found, patch)
    assert not found.inputs[hidden].any()
    np.testing.assert_array_equal(found.inputs[~hidden], whole[~hidden])


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_starts_at_chance_and_counts_what_is_told_alone(kind):
    program, _, _ = made(kind)
    task, theta = program.task, program.init(0).theta
    test = jax.tree.map(lambda x: x[:10], task.test)
    losses = train.evaluate(program, theta, test, batch=10).losses
    told = test.labels >= 0
    assert len(losses) == told.sum()
    if kind == "tokens":
        assert losses.mean() == pytest.approx(np.log(task.num_classes), rel=0.01)
    else:
        want = (test.targets**2).mean(-1)[told].mean()
        assert losses.mean() == pytest.approx(want, rel=0.02)
        moved = np.where(told[..., None], test.targets, 1e6).astype(np.float32)
        found = train.evaluate(program, theta, test._replace(targets=moved), batch=10).losses
        np.testing.assert_array_equal(found, losses)
    numbers = tasks.score(task, test, tasks.Predicted(test.labels, losses))
    wanted = {"accuracy", "loss", "perplexity", "bits"} if kind == "tokens" else {"loss"}
    assert set(numbers) == wanted
    found = task.baselines()
    assert 0 < found["loss"] and set(found) == wanted - {"perplexity", "bits"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_learns_from_what_is_told_alone(kind):
    """The gradient of the loss of a step, and what it is summed over."""
    program, batch, augment = made(kind)
    state = program.init(0)
    after, sums = jax.jit(program.step)(state, batch)
    rng = jax.random.fold_in(jax.random.fold_in(state.rng, 0), 0)
    seen = augment(jax.random.split(rng)[0], batch)
    told = np.asarray(seen.labels) >= 0
    assert int(sums.count) == told.sum()
    labels, losses = program.judge(state.theta, seen)
    np.testing.assert_allclose(sums.loss, np.asarray(losses)[told].sum(), rtol=1e-5)
    if kind == "tokens":
        assert int(sums.correct) == (np.asarray(labels) == seen.labels).sum()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.trainable, state.trainable)
    assert moved["embedding"]["mask"] and all(jax.tree.leaves(moved["embedding"]))


def test_a_mask_stands_in_the_place_of_what_is_hidden():
    made = model.build(
        model.spec(inputs="tokens", vocab_size=9, width=8, pool="none", masked=True, embeddings=2)
    )
    ids, hidden = jnp.array([[1, 2, 3]]), jnp.array([[False, True, False]])
    params = jax.jit(made.init)(jax.random.PRNGKey(0), ids)["params"]
    other = ids.at[0, 1].set(7)
    apply = jax.jit(lambda ids, hidden: made.apply({"params": params}, ids, masked=hidden))
    np.testing.assert_array_equal(apply(ids, hidden), apply(other, hidden))
    assert (apply(ids, hidden) != apply(ids, ~hidden)).any()
    # Both tables' masks are of one token, as their rows are.
    embedding = jax.jit(model.Embedding(made.config).apply)
    inner = params["embedding"] | {
        name: {"embedding": params["embedding"][name]["embedding"].at[7].set(mask)}
        for name, mask in zip(("tokens", "tokens_1"), params["embedding"]["mask"], strict=True)
    }
    want = embedding({"params": inner}, other)
    np.testing.assert_array_equal(embedding({"params": inner}, ids, masked=hidden), want)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.spec("masked", share=1.0), "task.share=1.0 must be a share above 0"),
        (lambda: tasks.spec("masked", patch=0), "task.patch=0 must be at least 1"),
        (lambda: tasks.load(tasks.spec("masked", patch=3)), "task.patch=3 must divide the 8x8"),
        (lambda: remade("patches", **{"model.masked": False}), "set model.masked=True"),
        (lambda: remade("patches", **{"train.label_smoothing": 0.1}), "label_smoothing=0.1 is of"),
        (lambda: remade("patches", **{"model.patch": 4}), "some of 16 tokens, and the model has 4"),
        (lambda: pretrain.get_config("task=slots"), "task='slots'; give one of digits, fsdd"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
