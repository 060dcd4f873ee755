"""The digits: fixed, stratified, disjoint; and the order in which training sees them."""

import itertools
import sys
import types
import zlib

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tinyattn import config, tasks, train
from tinyattn.tasks import Split, Task, digits
from tinyattn.train import _loop

SPLITS = ("train", "validation", "test")
PIXELS = (8, 8, 1)


@pytest.fixture(scope="module")
def raw():
    """Images 0..16, as they come."""
    return digits.load(digits.Config(normalise="none"))


@pytest.fixture(scope="module")
def standard():
    return digits.load(digits.Config())


def test_names_and_unknown_names():
    assert {"digits", "mqar", "listops", "trec"} <= set(tasks.names())
    with pytest.raises(ValueError, match="no 'digts'; did you mean 'digits'"):
        tasks.spec("digts")
    with pytest.raises(ValueError, match="no field 'shfit'; did you mean 'shift'"):
        tasks.spec("digits", shfit=1)


def test_a_hugging_face_dataset():
    data = digits.dataset()
    assert isinstance(data, datasets.DatasetDict) and tuple(data) == SPLITS
    assert data["test"].features["label"].num_classes == 10
    assert data["test"].features["image"].shape == (8, 8)
    assert data["test"].num_rows == 360


def test_shapes_and_types(raw):
    for name, size in zip(SPLITS, (1257, 180, 360), strict=True):
        split = getattr(raw, name)
        assert split.inputs.shape == (size, *PIXELS) and split.inputs.dtype == np.float32
        assert split.labels.shape == (size,) and split.labels.dtype == np.int32
        assert split.key_valid is None
    assert (raw.num_classes, raw.vocab_size) == (10, 0)


def test_every_image_is_in_one_split_with_its_label(raw):
    """The 1,797 images all differ, so bytes tell them apart."""
    parts = [getattr(raw, name) for name in SPLITS]
    images = [image.astype(np.int64).tobytes() for part in parts for image in part.inputs]
    assert len(set(images)) == len(images) == 1797
    labels = np.concatenate([part.labels for part in parts])
    source = load_digits()
    origin = [image.astype(np.int64).tobytes() for image in source.images]
    expected = dict(zip(origin, source.target, strict=True))
    assert dict(zip(images, labels, strict=True)) == expected


def test_the_split_is_stratified(raw):
    whole = np.bincount(load_digits().target) / 1797
    for name in SPLITS:
        labels = getattr(raw, name).labels
        assert np.abs(np.bincount(labels, minlength=10) - whole * len(labels)).max() < 1


def test_the_split_never_changes(raw):
    """Results of another split could not be compared with the published table."""
    found = [
        zlib.crc32(x.tobytes())
        for name in SPLITS
        for x in (getattr(raw, name).labels, getattr(raw, name).inputs)
    ]
    assert found == [3714895243, 1273016380, 2203034496, 2283445787, 1473915990, 2097081841]


def test_normalisation_knows_the_training_split_alone(raw, standard):
    train = raw.train.inputs.astype(np.float64)
    for name in SPLITS:
        expected = (getattr(raw, name).inputs - train.mean()) / train.std()
        np.testing.assert_allclose(getattr(standard, name).inputs, expected, atol=1e-5)
    assert abs(standard.train.inputs.mean()) < 1e-5 and abs(standard.train.inputs.std() - 1) < 1e-5
    # Statistics of all images would make the test split's mean another one.
    everything = np.concatenate([getattr(raw, name).inputs for name in SPLITS])
    assert abs(everything.mean() - train.mean()) > 1e-4
    unit = digits.load(digits.Config(normalise="unit"))
    np.testing.assert_array_equal(unit.test.inputs, raw.test.inputs / 16)
    assert unit.train.inputs.min() == 0 and unit.train.inputs.max() == 1


def first(split, n):
    return jax.tree.map(lambda x: x[:n], split)


def moved(image, down, right, background):
    """The image moved by whole pixels, in plain loops."""
    out = np.full_like(image, background)
    for y in range(8):
        for x in range(8):
            if 0 <= y - down < 8 and 0 <= x - right < 8:
                out[y, x] = image[y - down, x - right]
    return out


def test_shifts_move_whole_images_over_background(standard):
    task = digits.load(digits.Config(shift=2))
    batch = first(standard.train, 64)
    background = standard.train.inputs.min()  # paper, where there is no ink
    shifted = np.asarray(jax.jit(task.augment)(jax.random.PRNGKey(0), batch).inputs)
    seen = set()
    for image, result in zip(batch.inputs, shifted, strict=True):
        ways = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if np.array_equal(moved(image, down, right, background), result)
        ]
        assert ways, "not the image moved by at most two pixels"
        seen.update(ways if len(ways) == 1 else ())
    assert len(seen) > 15  # of 25, and each example by itself
    assert {down for down, _ in seen} == {right for _, right in seen} == {-2, -1, 0, 1, 2}


def test_augmentation_follows_its_rng(standard):
    batch = first(standard.train, 8)
    task = digits.load(digits.Config(shift=1, noise=0.5))
    rngs = jax.random.split(jax.random.PRNGKey(3))
    one, again, other = (task.augment(rng, batch).inputs for rng in (rngs[0], *rngs))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_without_augmentation_nothing_moves(standard):
    rng, batch = jax.random.PRNGKey(0), first(standard.train, 8)
    jax.tree.map(np.testing.assert_array_equal, standard.augment(rng, batch), batch)


def test_noise_is_as_strong_as_said(standard):
    batch = jax.tree.map(jnp.asarray, first(standard.train, 200))
    noisy = digits.load(digits.Config(noise=0.25)).augment(jax.random.PRNGKey(0), batch)
    added = np.asarray(noisy.inputs - batch.inputs)
    assert abs(added.std() - 0.25) < 0.01 and abs(added.mean()) < 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalise": "standart"}, "did you mean 'standard'"),
        ({"shift": -1}, "shift=-1 and noise=0.0 must not be negative"),
        ({"shift": 8}, "shift=8 must be less than 8 pixels"),
        ({"noise": -0.1}, "noise=-0.1 must not be negative"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tasks.spec("digits", **fields)


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


def test_calls_are_equally_long_where_they_can_be():
    for steps, every, most, lengths in (
        (1500, 250, 20, {10}),  # not twelve twenties and a ten, which would be two programs
        (500, 0, 20, {20}),
        (12, 6, 4, {3}),
        (30, 100, 20, {10}),
        (101, 0, 20, {20, 1}),
    ):
        settings = types.SimpleNamespace(steps=steps, eval_every=every, steps_per_dispatch=most)
        stops = [0]
        while stops[-1] < steps:
            stops.append(_loop._next_stop(stops[-1], settings))
        assert {b - a for a, b in itertools.pairwise(stops)} == lengths
        assert set(range(every, steps, every) if every else ()) <= set(stops)


def test_a_task_of_another_package(monkeypatch):
    """A dotted name reaches a fork's module; its section is checked like one of ours."""
    package, mine = types.ModuleType("forked"), types.ModuleType("forked.mine")
    package.__path__ = []
    mine.__spec__ = types.SimpleNamespace(name="forked.mine")
    mine.Config = digits.Config
    split = Split(np.zeros((3, 4), np.int32), np.zeros(3, np.int32), np.ones((3, 4), bool))
    mine.load = lambda config: Task(split, split, split, 2, 5, lambda rng, batch: batch)
    monkeypatch.setitem(sys.modules, "forked", package)
    monkeypatch.setitem(sys.modules, "forked.mine", mine)
    section = tasks.spec("forked.mine", shift=1)
    assert tasks.load(config.plain(section)).vocab_size == 5
    with pytest.raises(ValueError, match=r"no module called .forked\.yours."):
        tasks.spec("forked.yours")
