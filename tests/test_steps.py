"""Steps of preparation: literal rows before and after, and what is said of those that go."""

import logging

import numpy as np
import pandas as pd
import pytest

from tinyattn import tasks
from tinyattn.tasks import _steps
from tinyattn.tasks._steps import Columns, Told, step

COLUMNS = Columns(("text",), "label", 2)


def frames(**splits):
    return {
        split: pd.DataFrame({"text": [x for x, _ in rows], "label": [y for _, y in rows]})
        for split, rows in splits.items()
    }


def left(found):
    return {split: list(zip(x["text"], x["label"], strict=True)) for split, x in found.items()}


def after(name, broken="drop", columns=COLUMNS, **splits):
    """Rows that a step leaves, and what it says: (split, rows, first numbers)."""
    found, told = frames(**splits), Told(broken)
    step(name)(found, columns, told)
    return left(found), [(x["split"], x["rows"], x["first"]) for x in told.lines]


def test_missing_texts_and_labels_go_with_their_numbers():
    rows = [("a", 0), (None, 1), ("  ", 1), ("b", None), ("c", -1), ("d", 2), ("e", 1)]
    found, said = after("missing", train=rows, test=[("x", 0)])
    assert found == {"train": [("a", 0), ("e", 1)], "test": [("x", 0)]}
    assert said == [("train", 2, [1, 2]), ("train", 3, [3, 4, 5])]
    with pytest.raises(
        ValueError, match=r"row 1 of the train split and 1 more: no text; mend them"
    ):
        after("missing", "raise", train=rows)
    # A blank line of a language model is a line.
    found, said = after(
        "missing", columns=Columns(("text",), empty=True), train=[("", 0), (None, 0)]
    )
    assert found == {"train": [("", 0)]} and said == [("train", 1, [1])]


def test_duplicates_go_from_training_alone():
    rows = [("a", 0), ("b", 1), ("a", 0), ("c", 0), ("c", 1), ("b", 1)]
    found, said = after("duplicates", train=rows, test=[("x", 0), ("x", 0)])
    # Of "c" nobody knows which label is right.
    assert found == {"train": [("a", 0), ("b", 1)], "test": [("x", 0), ("x", 0)]}
    assert said == [("train", 2, [3, 4]), ("train", 2, [2, 5])]
    found, said = after("count_duplicates", train=rows)
    assert found == {"train": rows} and said == [("train", 3, [2, 4, 5])]


def test_no_text_of_a_later_split_stays_in_an_earlier_one():
    found, said = after(
        "dedupe",
        train=[("a", 0), ("b", 1), ("c", 0), ("d", 1)],
        validation=[("b", 0), ("e", 1), ("d", 1)],
        test=[("d", 0), ("f", 1)],
    )
    assert found == {
        "train": [("a", 0), ("c", 0)],
        "validation": [("b", 0), ("e", 1)],
        "test": [("d", 0), ("f", 1)],
    }
    assert said == [("validation", 1, [2]), ("train", 2, [1, 3])]


def test_pairs_are_the_same_where_both_texts_are():
    rows = pd.DataFrame({"a": ["x", "x", "x"], "b": ["y", "z", "y"], "label": [0, 0, 0]})
    found = {"train": rows, "test": rows[1:2]}
    for name in ("dedupe", "duplicates"):
        step(name)(found, Columns(("a", "b"), "label"), Told("drop"))
    assert found["train"].index.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "before", "behind"),
    [
        ("nfkc", "ﬁne ①２", "fine 12"),
        ("lower", "ÀB", "àb"),
        ("strip_accents", "naïve Ångström 한", "naive Angstrom 한"),
        ("whitespace", " a \t\nb\u00a0c ", "a b c"),
    ],
)
def test_normalisation(name, before, behind):
    found, said = after(name, train=[(before, 0), (None, 1)], test=[(before, 1)])
    assert found["test"] == [(behind, 1)] and found["train"][0] == (behind, 0) and said == []
    # The same for a text that somebody asks about.
    steps = (name, "missing", "duplicates", "dedupe")
    assert _steps.normalise([before, "", before], steps) == [behind, "", behind]


def test_a_fork_s_own_step(monkeypatch):
    def shout(frames, columns, told):
        frames["train"] = frames["train"].assign(text=frames["train"]["text"].str.upper())

    monkeypatch.setattr("fake_data.shout", shout, raising=False)
    assert after("fake_data.shout", train=[("a", 0)])[0] == {"train": [("A", 0)]}

    def shorten(frames, columns, told):
        frames["test"] = frames["test"][1:]

    # An answer would be another text's.
    monkeypatch.setattr("fake_data.shorten", shorten, raising=False)
    with pytest.raises(
        ValueError, match=r"'fake_data.shorten' drops 1 of the 2 texts that are asked"
    ):
        _steps.normalise(["a", "b"], ("lower", "fake_data.shorten"))
    for name, message in (
        ("fake_data.whisper", "'fake_data.whisper' cannot be imported"),
        ("no.such", "'no.such' cannot be imported"),
        ("lowr", "no step 'lowr'; did you mean 'lower'"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.spec("trec", steps=(name,))
    with pytest.raises(ValueError, match=r"task.broken='skip'; Valid names: drop, raise"):
        tasks.spec("trec", broken="skip")


def test_a_line_a_step_in_the_log(caplog):
    told, found = Told("drop"), frames(train=[("a", 0)] * 9)
    step("duplicates")(found, COLUMNS, told)
    with caplog.at_level(logging.WARNING):
        told.log("mine")
    (line,) = caplog.messages
    assert (
        line == "mine, train split, duplicates: 8 rows dropped: repeat a text (1, 2, 3, 4, 5, ...)"
    )
    assert found["train"].index.tolist() == [0]
    told.drop(found, "nothing", "train", "bad", np.array([False]))
    assert len(told.lines) == 1
