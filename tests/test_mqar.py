"""Associative recall: every example by its definition, the weights of ranks, splits, and its table."""

import functools
import zlib

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ablations import recall
from tinyattn import attention, config, model, sweep, tasks, train
from tinyattn.tasks import _generated, mqar

V, T, P = 30, 40, 5
MANY = 20_000


def made(split="train", **fields):
    sizes = {f"{name}_examples": 300 for name in _generated.SPLITS}
    fields = {"vocab_size": V, "length": T, "pairs": P, **sizes, **fields}
    return _generated.examples(mqar.Config(**fields), split)


@pytest.mark.parametrize("random", [False, True])
def test_every_label_is_the_value_that_its_query_was_paired_with(random):
    """Token by token, with nothing but a dictionary of the pairs read so far."""
    tokens, labels = made(random_non_queries=random)
    assert tokens.shape == labels.shape == (300, T)
    assert tokens.dtype == labels.dtype == np.int32
    for text, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        pairs = dict(zip(text[0 : 2 * P : 2], text[1 : 2 * P : 2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == P
        assert all(1 <= key < V // 2 <= value < V for key, value in pairs.items())
        asked = [t for t in range(T) if wanted[t] != -100]
        assert all(t >= 2 * P and t % 2 == 0 for t in asked)
        assert sorted(text[t] for t in asked) == sorted(pairs)  # each key once
        assert [wanted[t] for t in asked] == [pairs[text[t]] for t in asked]
        rest = [text[t] for t in range(2 * P, T) if t not in asked]
        assert random or not any(rest)


def test_no_answer_can_be_read_off():
    """Its one place in the text is within its pair, before the query; so the pair has to be remembered."""
    tokens, labels = made(random_non_queries=False)
    for text, wanted in zip(tokens, labels, strict=True):
        for t in np.flatnonzero(wanted >= 0):
            (place,) = np.flatnonzero(text == wanted[t])
            assert place < 2 * P <= t and text[place - 1] == text[t]
    # Nor does a query's key or place tell its value: chance is one value of V - V // 2.
    for known in (tokens[labels >= 0], np.nonzero(labels >= 0)[1]):
        answers = labels[labels >= 0]
        half = len(answers) // 2
        common = {
            k: np.bincount(answers[:half][known[:half] == k]).argmax() for k in set(known[:half])
        }
        right = np.mean(
            [common.get(k) == a for k, a in zip(known[half:], answers[half:], strict=True)]
        )
        assert right < 3 / (V - V // 2)


def test_the_rest_is_any_token():
    tokens, labels = made(train_examples=MANY)
    rest = tokens[:, 2 * P :][labels[:, 2 * P :] < 0]
    counts = np.bincount(rest, minlength=V)
    assert len(counts) == V
    expected = len(rest) / V
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("power_a", [0.01, 1.0, 2.0])
def test_ranks_are_drawn_without_replacement_by_their_weights(power_a):
    """The first two keys' ranks, against the formula of drawing one after the other."""
    tokens, _ = made(train_examples=MANY, power_a=power_a, random_non_queries=False)
    ranks = [np.argmax(tokens[:, 2 * P :] == tokens[:, i : i + 1], axis=1) // 2 for i in (0, 2)]
    weights = np.arange(1, T // 2 - P + 1) ** (power_a - 1.0)
    first = weights / weights.sum()
    second = np.array(
        [
            sum(
                first[i] * weights[j] / (weights.sum() - weights[i])
                for i in range(len(weights))
                if i != j
            )
            for j in range(len(weights))
        ]
    )
    for found, share in zip(ranks, (first, second), strict=True):
        counts = np.bincount(found, minlength=len(weights))
        np.testing.assert_array_less(abs(counts / MANY - share), 5 * np.sqrt(share / MANY))
    assert (ranks[0] != ranks[1]).all()


def test_keys_and_values_are_drawn_evenly_and_apart():
    tokens, _ = made(train_examples=MANY)
    for column, low, high in ((0, 1, V // 2), (1, V // 2, V), (2 * P - 1, V // 2, V)):
        counts = np.bincount(tokens[:, column], minlength=V)
        expected = MANY / (high - low)
        assert counts[low:high].sum() == MANY
        assert np.abs(counts[low:high] - expected).max() < 5 * np.sqrt(expected)


def test_bits_never_change():
    """Results of other examples could not be compared with published ones."""
    found = [
        zlib.crc32(x.astype("<i4").tobytes()) for name in _generated.SPLITS for x in made(name)
    ]
    assert found == [1191155377, 95468443, 38505616, 930686607, 2387739744, 816558920]


def test_splits_and_seeds_draw_apart():
    texts = [made(name, seed=seed)[0] for seed in (0, 1) for name in _generated.SPLITS]
    rows = {text.tobytes() for part in texts for text in part}
    assert len(rows) == 6 * 300
    np.testing.assert_array_equal(made("test", train_examples=7)[0], texts[2])
    # Also where examples are drawn in several blocks.
    tokens, labels = made(train_examples=2 * _generated.BLOCK + 10)
    assert len({text.tobytes() for text in tokens}) == len(tokens) == len(labels)
    assert ((labels >= 0).sum(1) == P).all()


def test_a_hugging_face_dataset_and_a_task_of_the_same_examples():
    fields = {"vocab_size": V, "length": T, "pairs": P, "train_examples": 20}
    fields |= {"validation_examples": 6, "test_examples": 8}
    data, task = _generated.dataset(mqar.Config(**fields)), tasks.load(tasks.spec("mqar", **fields))
    assert isinstance(data, datasets.DatasetDict)
    assert {name: part.num_rows for name, part in data.items()} == {
        "train": 20,
        "validation": 6,
        "test": 8,
    }
    for name, part in data.items():
        split = getattr(task, name)
        np.testing.assert_array_equal(part["input_ids"][:], split.inputs)
        np.testing.assert_array_equal(part["labels"][:], split.labels)
        assert split.key_valid is None
    assert (task.num_classes, task.vocab_size) == (V, V)
    assert task.augment(None, task.test) is task.test


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 41}, "length=41 must be even and at least four times pairs=5"),
        ({"length": 18}, "length=18 must be even and at least four times pairs=5"),
        ({"pairs": 0}, "pairs=0, which must be positive"),
        ({"vocab_size": 11}, "vocab_size=11 has 4 keys for pairs=5; give at least 12"),
        ({"power_a": 0.0}, "power_a=0.0 must be positive"),
        ({"train_examples": 0}, "train_examples=0 must be at least 1"),
        ({"test_examples": -1}, "test_examples=-1 must be at least 1"),
        ({"seed": -1}, "seed=-1 must not be negative"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tasks.spec("mqar", **{"vocab_size": V, "length": T, "pairs": P, **fields})


def test_the_smallest_vocabulary_and_length():
    tokens, labels = made(vocab_size=2 * P + 2, length=4 * P)
    assert (np.sort(tokens[:, 0 : 2 * P : 2]) == np.arange(1, P + 1)).all()
    assert ((labels >= 0)[:, 2 * P :: 2]).all()


# The table.


@functools.cache
def rows():
    table = sweep.expand(recall.get_config("smoke"), recall.rows())
    return {row.name: row for row in table}


def test_rows_differ_in_their_state_and_in_nothing_else():
    """By hand: 64 tokens, a head of 32, and two tokens of 32 for the convolution."""
    base = rows()["dense, H=32"].runs[0].config
    for row in rows().values():
        changed = [
            key
            for key, value in config.leaves(row.runs[0].config).items()
            if config.leaves(base).get(key) != value
        ]
        assert all(key.startswith("model.attention.") for key in changed), row.name
    conv = 2 * 32 * 4
    for name, expected in (
        ("dense, H=32", 64 * 2 * 32 * 4 + 4),
        ("dense, H=8", 64 * 2 * 8 * 4 + 4),
        ("window=16", 16 * 2 * 32 * 4 + 4),
        ("DeltaNet, H=16", 16 * 16 * 4 + 4),
    ):
        assert model.state_bytes(rows()[name].program.model.config, 64) == expected + conv, name


def test_what_a_table_is_drawn_against_is_no_part_of_its_runs():
    """So that another figure trains nothing again."""
    wanted = ["executed_flops", "decode_state_bytes"]
    base, first = recall.get_config("smoke"), rows()["dense, H=32"].runs[0]
    assert first.told == {"row": "dense, H=32", "figure": wanted} and "figure" not in first.config
    dense = [("dense", {})]
    for costs in (("params", "latency_ratio"), ()):
        base.figure = costs
        (run,) = sweep.expand(base, dense)[0].runs
        assert run.told["figure"] == list(costs) and run.digest == first.digest
    for costs, message in (
        (("params", "flops"), "row 'dense': no cost is called 'flops'"),
        (("params",), r"row 'dense': figure=\('params',\) must name two costs"),
    ):
        base.figure = costs
        with pytest.raises(ValueError, match=message):
            sweep.expand(base, dense)


def test_one_layer_recalls_with_a_full_cache_and_not_with_a_short_window():
    """Of four pairs a window of 4 tokens shows at most two to the first query, and later ones fewer."""
    sizes = {"task.vocab_size": 16, "task.length": 16, "task.pairs": 4, "task.train_examples": 4096}
    sizes |= {"model.vocab_size": 16, "model.num_classes": 16, "model.max_length": 16}
    sizes |= {"train.steps": 100, "train.batch_size": 32}
    accuracies = []
    for changes in ({}, {"model.attention": attention.spec("window", window=4)}):
        program = train.make(config.override(recall.get_config("smoke"), sizes | changes))
        data = jax.tree.map(jnp.asarray, program.task.train)
        order = jnp.asarray(train.batches(0, 4096, 32, 0, 100))
        state, _ = program.run(program.init(0), data, order)
        test = program.task.test
        found = train.evaluate(program, state.theta, test)
        accuracies.append(tasks.score(program.task, test, found)["accuracy"])
    assert accuracies[0] > 0.95 and accuracies[1] < 0.5, accuracies
