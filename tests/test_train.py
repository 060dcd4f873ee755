"""Training is a pure function of config and seed, however it is cut into calls or interrupted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ENCODER

from configs import digits
from tinyattn import config, optim, tasks, train, weights
from tinyattn.checkpoint import Checkpoints
from tinyattn.train import _loop

TINY = ENCODER | {
    "model.patch": 4,
    "train.batch_size": 16,
    "train.steps": 12,
    "train.eval_every": 6,
    "train.steps_per_dispatch": 2,
    "optim.warmup_steps": 2,
    # Adam would blow rounding up to steps where a gradient is zero, as that of the key's bias is.
    "optim.eps": 1e-4,
}
# All that is random or carried from step to step.
RICH = {"model.dropout": 0.2, "task.shift": 1, "train.ema_decay": 0.9}
RICH["train.label_smoothing"] = 0.1


def make(changes):
    return train.make(config.override(digits.get_config(), TINY | changes))


@functools.cache
def rich():
    """Compiled once; what the host decides (steps, patience, ...) is changed by `given`."""
    return make(RICH)


@pytest.fixture(scope="module")
def program():
    return rich()


@pytest.fixture(scope="module")
def compiled(program):
    return jax.jit(program.step), jax.jit(program.model.apply)


@pytest.fixture(scope="module")
def data(program):
    return jax.tree.map(jnp.asarray, program.task.train)


def given(program, **settings):
    return program._replace(config=dataclasses.replace(program.config, **settings))


def fit(program, folder, seeds=(0,), report=lambda progress: None, every=1e9):
    with Checkpoints(folder, "digest", every_seconds=every) as checkpoints:
        return train.fit(program, seeds, checkpoints, report)


def same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def order(program, seed, first, count):
    return train.batches(seed, len(program.task.train.labels), 16, first, count)


def test_a_step_is_what_the_docstrings_say(program, compiled, data):
    """Its randomness, smoothed loss and sums, worked out apart; it changes nothing it is given."""
    step, apply = compiled
    state = program.init(5)._replace(step=jnp.int32(7))
    batch = jax.tree.map(lambda x: x[:16], data)
    before = jax.tree.map(np.array, state)
    after, sums = step(state, batch)
    same_bits(state, before)

    rng = jax.random.fold_in(jax.random.fold_in(state.rng, 7), 0)  # step 7, first part of a batch
    augment_rng, dropout_rng = jax.random.split(rng)
    inputs = jax.jit(program.task.augment)(augment_rng, batch).inputs
    logits = apply({"params": state.trainable}, inputs, rng=dropout_rng)
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


def test_a_scan_of_steps_equals_single_steps(program, compiled, data):
    indices = jnp.asarray(order(program, 0, 0, 4))
    state, losses = program.init(0), []
    for index in indices:
        state, sums = compiled[0](state, jax.tree.map(lambda x, i=index: x[i], data))
        losses.append(sums.loss)
    scanned = program.init(0)
    for part in (indices[:2], indices[2:]):
        scanned, sums = program.run(scanned, data, part)
    assert sums.loss.shape == (2,) and int(scanned.step) == 4
    np.testing.assert_allclose(sums.loss, losses[2:], rtol=1e-5)
    jax.tree.map(close, scanned.trainable, state.trainable)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(program, data):
    indices = jnp.asarray(order(program, 0, 0, 2))
    states = [program.init(seed) for seed in (1, 1, 2)]
    runs = [program.run(state, data, indices) for state in states]
    same_bits(runs[0], runs[1])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states[0].opt))  # donated
    # One data order: only initialisation, dropout and shifts tell these two apart.
    assert not np.array_equal(runs[0][1].loss, runs[2][1].loss)


def test_evaluation_needs_no_rng_and_sees_every_example_once(program, compiled):
    theta = program.init(0).theta
    split = program.task.validation
    found = train.evaluate(program, theta, split)
    again = train.evaluate(program, theta, split, batch=90)
    assert found.labels.shape == found.losses.shape == (180,) and found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.labels, again.labels)
    np.testing.assert_allclose(found.losses, again.losses, rtol=1e-5)
    logits = compiled[1]({"params": theta}, split.inputs)
    right = np.asarray(jax.nn.log_softmax(logits))[np.arange(180), split.labels]
    np.testing.assert_allclose(found.losses, -right, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.labels, np.asarray(logits).argmax(-1))


def test_a_run_compiles_once_for_all_its_seeds(program, tmp_path):
    for seed in (0, 1):
        fit(program, tmp_path / f"{seed}", [seed])
    # Another test asks for predictions of batches of another size.
    assert program.run._cache_size() == 1 and program.judge._cache_size() <= 2


def test_progress_adds_up(program, tmp_path):
    seen = []
    (outcome,) = fit(program, tmp_path, report=seen.append)
    assert [p.step for p in seen] == [2, 4, 6, 8, 10, 12] and {p.stride for p in seen} == {2}
    assert all(0 <= p.accuracy <= 1 and p.loss > 0 and p.steps == 12 for p in seen)
    assert np.isnan(seen[1].validation)
    first, last = outcome.history
    assert (first["step"], last["step"]) == (6, 12)
    assert seen[2].validation == seen[4].validation == first["validation_accuracy"]
    assert (outcome.step, outcome.error, outcome.seed) == (12, None, 0)
    # The weights that count are the average's.
    found = train.evaluate(program, outcome.theta, program.task.validation)
    numbers = tasks.score(program.task, program.task.validation, found)
    assert {f"validation_{name}": x for name, x in numbers.items()} | {"step": 12} == last
    assert not list(tmp_path.iterdir())  # nothing was due


def scripted(monkeypatch, accuracies):
    """Evaluations that find these accuracies, one after the other, and the weights they were of."""
    left, thetas = iter(accuracies), []

    def score(task, split, theta):
        thetas.append(jax.tree.map(np.array, theta))
        accuracy = next(left)
        return {"accuracy": accuracy, "loss": 1 - accuracy}

    monkeypatch.setattr(_loop, "evaluate", lambda program, theta, split: theta)
    monkeypatch.setattr(_loop, "score", score)
    return thetas


@pytest.mark.parametrize(
    "metric", [tasks.ACCURACY, tasks.ACCURACY._replace(name="loss", higher=False)]
)
def test_early_stopping_keeps_the_best_weights(program, tmp_path, monkeypatch, metric):
    patient = given(program, steps=100, eval_every=2, patience=2)
    patient = patient._replace(task=program.task._replace(metric=metric))
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
    together = fit(program, tmp_path / "all", seeds)
    alone = [fit(program, tmp_path / f"{seed}", [seed])[0] for seed in seeds]
    assert program.run_many._cache_size() == 1
    for many, one in zip(together, alone, strict=True):
        assert (many.seed, many.step, many.error) == (one.seed, one.step, None)
        jax.tree.map(close, many.theta, one.theta)
        for a, b in zip(many.history, one.history, strict=True):
            assert a["validation_accuracy"] == b["validation_accuracy"]
            np.testing.assert_allclose(a["validation_loss"], b["validation_loss"], rtol=1e-5)
    assert len({outcome.history[-1]["validation_loss"] for outcome in together}) == 8


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


def test_weights_that_no_training_loss_has_seen_must_be_finite(program, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, np.nan])
    (outcome,) = fit(program, tmp_path)
    assert outcome.error.startswith("non-finite validation loss at step 12:")
    assert outcome.theta is None


def test_parts_of_a_batch_and_devices_change_nothing(data):
    """The mean over parts, and over devices, is the mean over the batch."""
    devices = min(2, jax.device_count())
    plain = {"optim.optimizer": "sgd", "optim.clip_norm": 0.0}  # Adam sees no factor
    split = plain | {"train.micro_batches": 2, "train.data_devices": devices}
    whole, parts = make(plain), make(split)
    indices = jnp.asarray(order(whole, 0, 0, 2))
    (one, sums), (two, others) = (p.run(p.init(0), data, indices) for p in (whole, parts))
    jax.tree.map(close, (one.trainable, sums), (two.trainable, others))
