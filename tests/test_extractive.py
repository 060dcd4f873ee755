"""Summaries by extraction: where sentences stand, what is expected of them, which one is the answer."""

import datasets
import numpy as np
import pytest
from fake_data import TEXT, serving, write
from tiny import ENCODER

from configs import extractive
from experiments import predict
from tinyattn import config, records, sweep, tasks, train
from tinyattn.tasks import scitldr_extractive

SMALL = {"vocab_size": 400, "length": 24}
# The third sentence is as good as its reference, the second has a word of it.
READ = ["Many {0} tried.", "We try {1} too.", "It parses {0} fast {1}."]
TINY = ENCODER | {
    "model.dropout": 0.0,
    "train.eval_every": 0,
    "optim.warmup_steps": 1,
}


def abstracts(home):
    """Texts of three sentences, one of five, one long and one that is whole; two references each."""
    lists = datasets.Sequence(TEXT)
    for split, rows in {"train": 40, "validation": 6, "test": 6}.items():
        read, written = [], []
        for i in range(rows):
            one, other = f"{split}{i}", f"x{i % 7}"
            read.append([x.format(one, other) for x in READ])
            written.append([read[-1][2], f"Nothing like {other} it"])
        read[0][0] += " word" * 30
        read[1] += ["A fourth.", "A fifth."]
        read[2] = [" ".join(read[2])]
        columns = {"source": read, "target": written}
        write(home / "scitldr", split, columns, {"source": lists, "target": lists})


home = serving(abstracts)


def loaded(**fields):
    return tasks.load(tasks.spec("scitldr_extractive", **SMALL | fields))


def test_a_row_is_a_sentence_whose_type_says_where_it_stands():
    split = loaded().test
    assert split.labels.tolist() == [0] * 3 + [1] * 5 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3
    assert split.token_types[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4] + [0, 1, 2] * 4
    same = split.token_types == split.token_types[:, :1]
    assert same[split.key_valid].all() and not split.token_types[~split.key_valid].any()
    # The whole text is the sentences that others have.
    assert split.inputs[8:11, :3].tolist() == split.inputs[11:14, :3].tolist()


def test_what_is_expected_of_a_sentence_is_its_rouge():
    task = loaded()
    targets = task.test.targets
    assert targets.shape == (20, 3) and task.num_classes == 3
    # "We try x3 too." shares a word of four with "Nothing like x3 it": F = 1/4, and no pair of words.
    np.testing.assert_allclose(targets[12], [1 / 4, 0, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(targets[[2, 5, 10, 13, 16, 19]], 1, rtol=1e-6)


def test_the_sentence_of_which_most_is_expected_is_the_summary():
    task = loaded()
    split = task.test

    def found(expected):
        predicted = tasks.Predicted(expected.astype(np.float32), np.zeros(20, np.float32))
        return tasks.score(task, split, predicted)

    names = ("rouge1", "rouge2", "rougeL")
    assert [found(split.targets)[name] for name in names] == pytest.approx([1, 1, 1])
    first = np.flatnonzero(np.diff(split.labels, prepend=-1))
    got = found(np.zeros((20, 3)))
    assert [got[name] for name in names] == pytest.approx(split.targets[first].mean(0).tolist())
    # ROUGE-L decides, whatever is expected of the others.
    second = np.zeros((20, 3))
    second[:, 0], second[first + 1, 2] = np.arange(20), 1
    assert found(second)["rouge1"] == pytest.approx(split.targets[first + 1, 0].mean())
    assert task.metric.name == "rougeL" and set(task.baselines()) == set(names)


def test_a_sentence_that_is_too_long_is_counted_by_its_text():
    told = [x for x in loaded().told["prepared"] if x["step"] == "length"]
    assert [(x["split"], x["rows"], x["first"]) for x in told] == [
        ("train", 1, [0]),
        ("validation", 1, [0]),
        ("test", 1, [0]),
    ]


def test_no_text_is_trained_on_that_the_test_split_has(tmp_path):
    abstracts(tmp_path)
    lists, text = datasets.Sequence(TEXT), [x.format("test3", "x3") for x in READ]
    columns = {"source": [text, ["Another.", "One."]], "target": [["A"], ["B"]]}
    write(tmp_path / "scitldr", "train", columns, {"source": lists, "target": lists})
    task = tasks.load(tasks.spec("scitldr_extractive", **SMALL), {"dir": str(tmp_path)})
    assert len(task.train.labels) == 2 and len(task.test.labels) == 20


@pytest.mark.parametrize("kinds", [0, 2])
def test_a_model_without_a_place_for_each_type_is_refused(kinds):
    changes = {f"task.{name}": value for name, value in SMALL.items()}
    changes |= {"model.vocab_size": 400, "model.token_types": kinds}
    section = config.override(extractive.get_config("smoke"), TINY | changes)
    with pytest.raises(
        ValueError, match=f"model.token_types={kinds}, but the task's train .* has 5"
    ):
        train.make(section)


def test_rows_are_not_packed():
    with pytest.raises(ValueError, match=r"task.pack=64: a row is one sentence"):
        tasks.spec("scitldr_extractive", pack=64)


def test_sentences_end_where_others_begin():
    cut = scitldr_extractive.sentences
    assert cut(" We try, e.g. by hand. It works! 3 of 4 agree. ") == [
        "We try, e.g. by hand.",
        "It works!",
        "3 of 4 agree.",
    ]
    assert cut('He asks: "Why?" (We know.) alone') == ['He asks: "Why?" (We know.) alone']
    assert cut("No end") == ["No end"]


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
    assert record["metrics"]["baseline_rougeL"] < 0.6


def test_a_run_answers_by_a_sentence(run):
    workdir, (record,) = run
    folder = records.run_dir(workdir, record["digest"])
    lines = ["One is it.  Two, e.g. that, are it! Is it 3?", "Alone"]
    first, second = predict.answers(folder, record, lines)
    assert first["answer"] in ("One is it.", "Two, e.g. that, are it!", "Is it 3?")
    assert second["answer"] == "Alone" and isinstance(second["expected_rougeL"], float)
    for line, message in {
        " ": "line 2 is empty; give a text",
        "Short. "
        + "word " * 40: r"line 2 has a sentence of more than 24 tokens.*'Short. word word",
    }.items():
        with pytest.raises(ValueError, match=message):
            list(predict.answers(folder, record, ["Fine.", line]))
