"""Summaries by extraction: where sentences stand, what is expected of them, which one is the answer."""

import datasets
import numpy as np
import pytest
from fake_data import TEXT, serving, write

from configs import extractive
from experiments import predict
from tinyattn import config, records, sweep, tasks
from tinyattn.tasks import _tokens, scitldr_extractive

SMALL = {"vocab_size": 400, "length": 40, "sentences": 3}
# The third sentence is as good as its reference, the second has a word of it.
READ = ["Many {0} tried.", "We try {1} too.", "It parses {0} fast {1}."]
TINY = {
    "model.width": 8,
    "model.num_layers": 1,
    "model.ffn_width": 8,
    "model.attention.num_heads": 2,
    "model.dropout": 0.0,
    "train.eval_every": 0,
    "optim.warmup_steps": 1,
}


def abstracts(home):
    """Texts of three sentences, one of four and one that is whole, and two references each."""
    lists = datasets.Sequence(TEXT)
    for split, rows in {"train": 40, "validation": 6, "test": 6}.items():
        read, written = [], []
        for i in range(rows):
            one, other = f"{split}{i}", f"x{i % 7}"
            read.append([x.format(one, other) for x in READ])
            written.append([read[-1][2], f"Nothing like {other} it"])
        read[1].append("A fourth that nobody may choose.")
        read[2] = [" ".join(read[2])]
        columns = {"source": read, "target": written}
        write(home / "scitldr", split, columns, {"source": lists, "target": lists})


home = serving(abstracts)


def loaded(**fields):
    return tasks.load(tasks.spec("scitldr_extractive", **SMALL | fields))


def test_a_special_token_stands_before_each_sentence():
    split = loaded().train
    start, between = (_tokens.SPECIALS.index(x) for x in (_tokens.START, _tokens.SEPARATOR))
    for ids, valid, types, at, labels in zip(
        split.inputs, split.key_valid, split.token_types, split.at, split.labels, strict=True
    ):
        marks = np.flatnonzero((ids == start) | (ids == between))
        assert list(at) == list(marks[:3]) and ids[0] == start and (labels == 0).all()
        # Types take turns from mark to mark, and are 0 at padding.
        np.testing.assert_array_equal(
            types[valid], (np.cumsum(np.isin(ids, ids[at])) - 1)[valid] % 2
        )
        assert not types[~valid].any()


def test_what_is_expected_of_a_sentence_is_its_rouge():
    task = loaded()
    targets = task.test.targets
    assert targets.shape == (6, 3, 3) and task.num_classes == 3
    # "We try x3 too." shares a word of four with "Nothing like x3 it": F = 1/4, and no pair of words.
    np.testing.assert_allclose(targets[3, 1], [1 / 4, 0, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(targets[:, 2], 1, rtol=1e-6)
    assert (targets[:, :2] < 0.5).all()


def test_the_sentence_of_which_most_is_expected_is_the_summary():
    task = loaded()
    split = task.test

    def found(expected):
        predicted = tasks.Predicted(expected.astype(np.float32), np.zeros(18, np.float32))
        return tasks.score(task, split, predicted)

    assert found(split.targets)["rougeL"] == pytest.approx(1)
    second = np.broadcast_to(np.array([0, 1, 0])[:, None], split.targets.shape)
    wanted = split.targets[:, 1].mean(0)
    got = found(second)
    assert [got[name] for name in ("rouge1", "rouge2", "rougeL")] == pytest.approx(list(wanted))
    # ROUGE-L decides, whatever is expected of the others.
    assert found(second * np.array([1, 1, 0]) + np.eye(3)[0][:, None] * np.array([0, 0, 1]))[
        "rougeL"
    ] == pytest.approx(split.targets[:, 0, 2].mean())
    assert task.metric.name == "rougeL" and set(task.baselines()) == {"rouge1", "rouge2", "rougeL"}


def test_a_sentence_that_is_not_there_is_not_chosen():
    expected = np.zeros((2, 3, 3))
    expected[:, 1:] = 9
    there = np.array([[True, False, False], [True, True, False]])
    assert scitldr_extractive._chosen(expected, there).tolist() == [0, 1]


def test_what_is_too_long_is_counted_and_has_no_place():
    task = loaded()
    (line,) = [x for x in task.told["prepared"] if x["step"] == "length" and x["split"] == "test"]
    assert (line["rows"], line["first"]) == (1, [1])  # four sentences
    short = loaded(length=8)
    assert (short.train.labels[:, 0] == 0).all() and (short.train.labels[:, 2] < 0).all()
    assert not short.train.at[short.train.labels < 0].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pack": 64}, "task.pack=64: a row is one text"),
        ({"sentences": 0}, "task.sentences=0 must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tasks.spec("scitldr_extractive", **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = extractive.get_config("smoke")
    changes = {f"task.{name}": value for name, value in SMALL.items()} | {"train.steps": 4}
    base = config.override(base, TINY | changes | {"model.vocab_size": 400})
    workdir = tmp_path_factory.mktemp("run")
    return workdir, sweep.run_table(sweep.expand(base, [("extracts", {})]), workdir)


def test_a_run_is_judged_by_rouge(run):
    _, (record,) = run
    assert record["status"] == "ok", record.get("error")
    assert record["metric"]["name"] == "rougeL"
    assert 0 < record["metrics"]["test_rougeL"] <= 1
    assert record["metrics"]["baseline_rougeL"] < 0.5


def test_a_run_answers_by_a_sentence(run):
    workdir, (record,) = run
    folder = records.run_dir(workdir, record["digest"])
    lines = ["One is it.  Two, e.g. that, are it! Is it 3?", "Alone"]
    first, second = predict.answers(folder, record, lines)
    assert first["answer"] in ("One is it.", "Two, e.g. that, are it!", "Is it 3?")
    assert second["answer"] == "Alone" and isinstance(second["expected_rougeL"], float)
    for line, message in {
        " ": "line 1 is empty; give a text",
        "A. B. C. D.": "line 1 has more than 40 tokens or 3 sentences",
        "word " * 40: "line 1 has more than 40 tokens or 3 sentences",
    }.items():
        with pytest.raises(ValueError, match=message):
            list(predict.answers(folder, record, [line]))
