"""Training is a pure function of config and seed, however it is cut into calls or interrupted."""

import dataclasses
import functools
import itertools
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from tinyattn import config, optim, train, weights
from tinyattn.checkpoint import Checkpoints
from tinyattn.train import _loop

TINY = {
    "model.patch": 4,
    "model.width": 8,
    "model.num_layers": 1,
    "model.ffn_width": 8,
    "model.attention.num_heads": 2,
    "train.batch_size": 16,
    "train.steps": 12,
    "train.eval_every": 6,
    "train.steps_per_dispatch": 2,
    "optim.warmup_steps": 2,
    # Adam would blow rounding up to steps where a gradient is zero, as that of the key's bias is.
    "optim.eps": 1e-4,
}
# All that is random or carried from step to step, above the base's shifted images.
RICH = {"model.dropout": 0.2, "train.label_smoothing": 0.1, "train.ema_decay": 0.9}
PLAIN = {"task.shift": 0}
DELTA = weights.spec("delta", leaves="block.*/kernel$", w0="seed", train_d=False, d_init=0.5)


def make(changes):
    return train.make(config.override(digits.get_config(), TINY | changes))


@pytest.fixture(scope="module")
def program():
    """Compiled once; what the host decides (steps, patience, ...) is changed by `given`."""
    return make(RICH)


@pytest.fixture(scope="module")
def step(program):
    return jax.jit(program.step)


@pytest.fixture(scope="module")
def data(program):
    return jax.tree.map(jnp.asarray, program.task.train)


def given(program, **settings):
    return program._replace(config=dataclasses.replace(program.config, **settings))


def fit(program, folder, seeds=(0,), report=lambda progress: None, every=1e9):
    with Checkpoints(folder, "digest", every_seconds=every) as checkpoints:
        return train.fit(program, seeds, checkpoints, report)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def order(program, seed, first, count):
    return train.batches(seed, len(program.task.train.labels), 16, first, count)


def test_data_order_is_a_function_of_seed_and_step():
    whole = train.batches(3, 50, 16, 0, 12)
    assert whole.shape == (12, 16) and whole.dtype == np.int32
    cuts = (0, 1, 4, 8, 9, 12)
    parts = [train.batches(3, 50, 16, a, b - a) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    epochs = whole.reshape(4, 48)
    for epoch in epochs:
        assert len(set(epoch)) == 48 and set(epoch) <= set(range(50))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not np.array_equal(train.batches(4, 50, 16, 0, 12), whole)
    # No example is left out for good.
    assert {int(i) for i in train.batches(3, 50, 16, 0, 60).ravel()} == set(range(50))


def test_a_step_is_what_the_docstrings_say(program, step, data):
    """Its randomness, smoothed loss and sums, worked out apart; it changes nothing it is given."""
    state = program.init(5)._replace(step=jnp.int32(7))
    batch = jax.tree.map(lambda x: x[:16], data)
    before = jax.tree.map(np.array, state)
    after, sums = step(state, batch)
    same_bits(state, before)

    augment_rng, dropout_rng = jax.random.split(jax.random.fold_in(state.rng, 7))
    inputs = program.task.augment(augment_rng, batch.inputs)
    params = weights.combine(state.trainable, state.rest)
    logits = jax.jit(program.model.apply)({"params": params}, inputs, rng=dropout_rng)
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    right = logs[np.arange(16), batch.labels]
    np.testing.assert_allclose(sums.loss, -(0.9 * right + 0.1 * logs.mean(-1)).sum(), rtol=1e-5)
    assert int(sums.correct) == (logits.argmax(-1) == batch.labels).sum()
    assert int(sums.count) == 16
    assert int(after.step) == 8
    np.testing.assert_array_equal(after.rng, state.rng)
    averaged = optim.average(state.average, after.trainable, 0.9, 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.average, averaged)
    same_bits(after.theta, weights.combine(after.average, after.rest))


def test_a_scan_of_steps_equals_single_steps(program, step, data):
    indices = jnp.asarray(order(program, 0, 0, 4))
    state, losses = program.init(0), []
    for index in indices:
        state, sums = step(state, jax.tree.map(lambda x, i=index: x[i], data))
        losses.append(sums.loss)
    scanned = program.init(0)
    for part in (indices[:2], indices[2:]):
        scanned, sums = program.run(scanned, data, part)
    assert sums.loss.shape == (2,) and int(scanned.step) == 4
    np.testing.assert_allclose(sums.loss, losses[2:], rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-4)
    jax.tree.map(close, scanned.trainable, state.trainable)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(program, data):
    indices = jnp.asarray(order(program, 0, 0, 2))
    runs = [program.run(program.init(seed), data, indices) for seed in (1, 1, 2)]
    same_bits(runs[0], runs[1])
    # One data order: only initialisation, dropout and noise tell these two apart.
    assert not np.array_equal(runs[0][1].loss, runs[2][1].loss)


def test_evaluation_needs_no_rng_and_sees_every_example_once(program):
    theta = program.init(0).theta
    split = program.task.validation
    correct, losses = train.evaluate(program, theta, split)
    again = train.evaluate(program, theta, split, batch=90)
    assert correct.shape == losses.shape == (180,) and correct.dtype == bool
    np.testing.assert_array_equal(correct, again[0])
    np.testing.assert_allclose(losses, again[1], rtol=1e-5)
    logits = jax.jit(program.model.apply)({"params": theta}, split.inputs)
    right = np.asarray(jax.nn.log_softmax(logits))[np.arange(180), split.labels]
    np.testing.assert_allclose(losses, -right, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(correct, np.asarray(logits).argmax(-1) == split.labels)


def test_a_run_compiles_once_for_all_its_seeds(program, tmp_path):
    for seed in (0, 1):
        fit(program, tmp_path / f"{seed}", [seed])
    assert program.run._cache_size() == 1 and program.run_many._cache_size() == 0
    assert program.predict._cache_size() <= 2  # another test asks for batches of another size
    # Equal calls where the settings allow them: 250 steps in 25 tens, not in 12 twenties and a ten.
    for steps, every, most, lengths in (
        (1500, 250, 20, {10}),
        (500, 0, 20, {20}),
        (12, 6, 4, {3}),
        (101, 0, 20, {20, 1}),
        (30, 100, 20, {10}),
    ):
        settings = SimpleNamespace(steps=steps, eval_every=every, steps_per_dispatch=most)
        stops = [0]
        while stops[-1] < steps:
            stops.append(_loop._next_stop(stops[-1], settings))
        assert {b - a for a, b in itertools.pairwise(stops)} == lengths
        assert set(range(every, steps, every) if every else ()) <= set(stops)


def test_progress_adds_up(program, tmp_path):
    seen = []
    (outcome,) = fit(program, tmp_path, report=seen.append)
    assert [p.step for p in seen] == [2, 4, 6, 8, 10, 12] and {p.stride for p in seen} == {2}
    assert all(0 <= p.accuracy <= 1 and p.loss > 0 and p.steps == 12 for p in seen)
    assert np.isnan(seen[1].validation)
    first, last = outcome.history
    assert [first["step"], last["step"]] == [6, 12]
    assert seen[2].validation == seen[4].validation == first["validation_accuracy"]
    assert (outcome.step, outcome.error, outcome.seed) == (12, None, 0)
    # The weights that count are the average's.
    correct, losses = train.evaluate(program, outcome.theta, program.task.validation)
    assert (correct.mean(), losses.mean()) == (last["validation_accuracy"], last["validation_loss"])
    assert not list(tmp_path.iterdir())  # nothing was due


def scripted(monkeypatch, accuracies):
    """Evaluations that find these accuracies, one after the other, and the weights they were of."""
    left, thetas = iter(accuracies), []

    def evaluate(program, theta, split):
        thetas.append(jax.tree.map(np.array, theta))
        accuracy = next(left)
        return np.array([accuracy]), np.array([1 - accuracy])

    monkeypatch.setattr(_loop, "evaluate", evaluate)
    return thetas


def test_early_stopping_keeps_the_best_weights(program, tmp_path, monkeypatch):
    patient = given(program, steps=100, eval_every=2, patience=2)
    # Two evaluations in a row that are no better, not two in all; equal is no better.
    thetas = scripted(monkeypatch, [0.1, 0.3, 0.2, 0.5, 0.5, 0.4, 0.9])
    (outcome,) = fit(patient, tmp_path)
    assert [entry["step"] for entry in outcome.history] == [2, 4, 6, 8, 10, 12]
    assert outcome.step == 8
    same_bits(outcome.theta, thetas[3])
    assert not np.array_equal(jax.tree.leaves(thetas[3])[0], jax.tree.leaves(thetas[4])[0])


def test_without_patience_the_last_weights_count(program, tmp_path, monkeypatch):
    thetas = scripted(monkeypatch, [0.9, 0.1, 0.1])
    (outcome,) = fit(given(program, steps=6, eval_every=2), tmp_path)
    assert outcome.step == 6
    same_bits(outcome.theta, thetas[2])


def test_eight_seeds_in_one_program_equal_one_by_one(program, tmp_path):
    seeds = (0, 1, 2, 3, 7, 11, 13, 2**32 - 1)
    progress = []
    together = fit(program, tmp_path / "all", seeds, progress.append)
    alone = [fit(program, tmp_path / f"{seed}", [seed])[0] for seed in seeds]
    assert program.run_many._cache_size() == 1
    for many, one in zip(together, alone, strict=True):
        assert (many.seed, many.step, many.error) == (one.seed, one.step, None)
        close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4)
        jax.tree.map(close, many.theta, one.theta)
        for a, b in zip(many.history, one.history, strict=True):
            assert a["validation_accuracy"] == b["validation_accuracy"]
            np.testing.assert_allclose(a["validation_loss"], b["validation_loss"], rtol=1e-5)
    assert len({outcome.history[-1]["validation_loss"] for outcome in together}) == 8
    assert [p.step for p in progress] == [2, 4, 6, 8, 10, 12]


def test_one_seed_that_diverges_does_not_stop_its_neighbours(program, tmp_path):
    """Seed 1 sees a loss that is no number in the sixth step."""

    def poisoned(state, data, indices):
        at = int(state.step[0])
        state, sums = program.run_many(state, data, indices)
        loss = np.array(sums.loss)
        loss[1, 1] = np.nan if at == 4 else loss[1, 1]
        return state, sums._replace(loss=loss)

    seeds = (0, 1, 2, 3, 7, 11, 13, 17)
    outcomes = fit(program._replace(run_many=poisoned), tmp_path, seeds)
    assert "non-finite loss at step 5: lower optim.learning_rate" in outcomes[1].error
    assert outcomes[1].theta is None and outcomes[1].history == []
    assert [o.seed for o in outcomes if o.error is None and len(o.history) == 2] == [0, *seeds[2:]]


def test_divergence_names_its_step(program, tmp_path, monkeypatch):
    wild = {"optim.optimizer": "sgd", "optim.learning_rate": 1e30, "optim.clip_norm": 0.0}
    seen = []
    (outcome,) = fit(make(PLAIN | wild), tmp_path, report=seen.append)
    assert outcome.error.startswith("non-finite loss at step 1:") and outcome.theta is None
    assert len(seen) == 1
    # No training loss has seen the weights that the last step made.
    scripted(monkeypatch, [0.5, np.nan])
    (outcome,) = fit(program, tmp_path)
    assert outcome.error.startswith("non-finite validation loss at step 12:")
    assert outcome.theta is None


def test_frozen_leaves_do_not_move(data):
    program = make(PLAIN | {"weights": (DELTA,), "optim.weight_decay": 0.5})
    state = program.init(0)
    frozen, moving = jax.tree.map(np.array, (state.rest, state.trainable))
    kinds = {type(leaf) for leaf in weights.leaves(state.theta).values()}
    assert kinds >= {weights.Seeded, weights.Fixed}
    state, _ = program.run(state, data, jnp.asarray(order(program, 0, 0, 4)))
    same_bits(state.rest, frozen)
    for a, b in zip(*map(jax.tree.leaves, (state.trainable, moving)), strict=True):
        assert (np.asarray(a) != b).any()
