"""Generated tasks: every label by the task's definition, token by token; bits that stay; splits apart."""

import itertools
import zlib

import datasets
import numpy as np
import pytest

from tinyattn import tasks
from tinyattn.tasks import (
    _generated,
    copying,
    induction,
    listops,
    parity,
    selective_copying,
    sorting,
)

NONE = _generated.UNLABELLED
FEW = {f"{name}_examples": 200 for name in _generated.SPLITS}


def told(module, **fields):
    """Texts and labels of the training split, as lists."""
    tokens, labels = _generated.examples(module.Config(**FEW, **fields), "train")
    assert tokens.dtype == labels.dtype == np.int32 and tokens.shape == labels.shape
    assert len(np.unique(tokens, axis=0)) > 190
    return zip(tokens.tolist(), labels.tolist(), strict=True)


def test_copying():
    for text, labels in told(copying, vocab_size=9, letters=5):
        assert text[5] == 0 and 0 not in text[:5] + text[6:] and max(text) < 9
        assert text[6:] == text[:4]
        assert labels == [NONE] * 5 + text[:5]
        # The label is the token that follows.
        assert labels[5:9] == text[6:10]


def test_selective_copying():
    first = set()
    for text, labels in told(selective_copying, vocab_size=7, context=12, letters=3):
        assert text[12:] == [1, 1, 1] and 1 not in text[:12]
        letters = [x for x in text[:12] if x]
        assert len(letters) == 3 and all(2 <= x < 7 for x in letters)
        assert labels == [NONE] * 12 + letters
        first.add(next(i for i, x in enumerate(text) if x))
    assert first <= set(range(10)) and len(first) > 5


def test_induction():
    places = set()
    for text, labels in told(induction, vocab_size=6, length=9):
        place = text.index(0)
        assert text.count(0) == 2 and text[-1] == 0
        assert labels == [NONE] * 8 + [text[place + 1]] and labels[-1] > 0
        places.add(place)
    assert places == set(range(7))


def test_parity_and_sorting():
    for text, labels in told(parity, length=30):
        assert labels == [total % 2 for total in itertools.accumulate(text)]
    for text, labels in told(sorting, vocab_size=5, length=12):
        assert labels == sorted(text) and set(text) <= set(range(5))


def parsed(tokens):
    """(value, rest) of an expression, by a stack of plain Python operations."""
    head, *rest = tokens
    if head < listops.OPENING:
        return head - 1, rest
    values = []
    while rest[0] != listops.END:
        value, rest = parsed(rest)
        values.append(value)
    ordered = sorted(values)
    middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2
    by_name = {"MIN": ordered[0], "MAX": ordered[-1], "MED": middle, "SM": sum(values) % 10}
    return by_name[listops.OPERATORS[head - listops.OPENING]], rest[1:]


def test_listops_values_lengths_and_shape_of_expressions():
    config = listops.Config(**FEW, shortest=10, longest=60, depth=4, arguments=5)
    task = listops.load(config)
    assert (task.num_classes, task.vocab_size) == (10, 16)
    inputs, labels, valid = task.train[:3]
    assert inputs.shape == valid.shape == (200, 59)
    for text, label, here in zip(inputs, labels, valid, strict=True):
        n = int(here.sum())
        assert 10 < n < 60 and here[:n].all() and not text[n:].any()
        value, rest = parsed(text[:n].tolist())
        assert value == label and rest == []
    depths = np.cumsum(np.isin(inputs, range(11, 15)).astype(int) - (inputs == listops.END), axis=1)
    assert depths.max() == 3  # an operator at the fourth level would have no room
    assert len(np.unique(inputs[inputs > 0])) == 15
    texts = [row.tobytes() for split in task[:3] for row in split.inputs]
    assert len(set(texts)) == len(texts) == 600
    fewer = listops.load(listops.Config(**FEW | {"train_examples": 3}, shortest=10, longest=60, depth=4,
                                        arguments=5))  # fmt: skip
    np.testing.assert_array_equal(fewer.test.inputs, task.test.inputs)


def test_listops_draws_operators_and_arguments_as_the_grammar_says():
    """Over roots without a bound: 1 in 4 is a list, of 2 to 10 arguments alike."""
    config = listops.Config(depth=2, shortest=0)
    numbers = listops._numbers(_generated.stream(config, "train"))
    lengths = []
    for _ in range(4000):
        tokens = []
        listops._expression(config, numbers, 1, tokens)
        lengths.append(len(tokens))
    lists = np.array([n - 2 for n in lengths if n > 1])
    assert abs(len(lists) / 4000 - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    counts = np.bincount(lists, minlength=11)[2:11]
    assert counts.sum() == len(lists)
    assert np.abs(counts - len(lists) / 9).max() < 5 * np.sqrt(len(lists) / 9)


GOLDEN = {
    "copying": [1263832512, 563961272],
    "selective_copying": [3426997776, 3387581951],
    "induction": [2916747199, 2681244770],
    "parity": [2355968594, 2044537096],
    "sorting": [327015846, 3447529689],
    "listops": [2164310954, 347207987],
}


def test_bits_never_change():
    """Results of other examples could not be compared with published ones."""
    found = {}
    for module in (copying, selective_copying, induction, parity, sorting):
        parts = _generated.examples(module.Config(**FEW), "test")
        crc = [zlib.crc32(x.astype("<i4").tobytes()) for x in parts]
        found[module.__name__.rsplit(".", 1)[-1]] = crc
    texts, values = listops.examples(listops.Config(**FEW | {"test_examples": 20}), "test", set())
    found["listops"] = [zlib.crc32(b"".join(texts)), zlib.crc32(bytes(values))]
    assert found == GOLDEN


def test_as_a_hugging_face_dataset_and_as_a_task():
    config = sorting.Config(**FEW)
    data, task = _generated.dataset(config), tasks.load(tasks.spec("sorting", **FEW))
    assert isinstance(data, datasets.DatasetDict) and tuple(data) == _generated.SPLITS
    for name in _generated.SPLITS:
        part, split = data[name].with_format("numpy"), getattr(task, name)
        np.testing.assert_array_equal(part["input_ids"][:], split.inputs)
        np.testing.assert_array_equal(part["labels"][:], split.labels)
    assert task.num_classes == task.vocab_size == 16


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("parity", {"length": 4}, r"of validation_examples=1000 are among train_examples"),
        ("parity", {"length": 0}, "length=0 must be at least 1"),
        ("copying", {"vocab_size": 2}, "vocab_size=2 must be at least 3"),
        ("selective_copying", {"context": 3, "letters": 4}, "context=3 must be at least 4"),
        ("sorting", {"test_examples": 0}, "test_examples=0 must be at least 1"),
        ("induction", {"seed": -1}, "seed=-1 must not be negative"),
        ("listops", {"longest": 400}, "longest=400 must be at least 502"),
        ("listops", {"depth": 2}, "shortest=500, but an expression of depth=2 .* at most 12 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        tasks.load(tasks.spec(name, **fields))
