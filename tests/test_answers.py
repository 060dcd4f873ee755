"""Texts answered by texts: prefixes and labels, references, lead words, and what a trained run writes."""

import collections

import jax
import numpy as np
import pytest
from fake_data import TEXT, answers, serving, write

from configs import answers as answers_config
from configs import digits
from configs.ablations import first, translation
from experiments import predict
from tinyattn import config, cost, records, sweep, tasks, train, weights
from tinyattn.tasks import _metrics, _tokens

SMALL = {"vocab_size": 400, "length": 40, "target_length": 32}
TINY = {f"task.{name}": value for name, value in SMALL.items()}
SIZES = {"width": 16, "num_layers": 1, "decoder_layers": 1, "ffn_width": 16, "dropout": 0.0}
SIZES |= {"vocab_size": 400, "num_classes": 400}
TINY |= {f"model.{name}": value for name, value in SIZES.items()}


home = serving(answers)


def loaded(name, **fields):
    return tasks.load(tasks.spec(name, **SMALL | fields))


@pytest.mark.parametrize("name", ["multi30k", "aeslc", "scitldr"])
def test_a_prefix_is_its_labels_one_token_later(name):
    task = loaded(name)
    how, (start, end) = task.writing, (task.writing.start, task.writing.end)
    for split in task[:3]:
        assert split.prefix.shape == split.labels.shape and split.labels.shape[1] <= how.length
        for prefix, labels in zip(split.prefix, split.labels, strict=True):
            n = int((labels >= 0).sum())
            assert prefix[0] == start and labels[n - 1] == end
            np.testing.assert_array_equal(prefix[1:n], labels[: n - 1])
            assert (labels[n:] < 0).all()
    # What is read starts alike, and is padded to what training needs.
    assert (task.test.inputs[:, 0] == start).all()
    assert task.train.key_valid.any(0).all() and task.train.prefix.shape[1] == how.length
    texts = [how.text(row[row >= 0]) for row in task.test.labels]
    assert texts == [f"The te dog {i % 7} and {i}" for i in range(10)]


def test_packed_rows_have_every_pair_once_but_for_those_to_be_written():
    alone, packed = loaded("multi30k"), loaded("multi30k", pack=80)
    assert packed.test.segment_ids is None and packed.writing.length == alone.writing.length
    np.testing.assert_array_equal(packed.test.prefix, alone.test.prefix)
    for split in ("train", "validation"):
        wanted, rows = (getattr(task, split) for task in (alone, packed))
        assert len(rows.labels) < len(wanted.labels) / 2
        found = collections.Counter()
        for row in range(len(rows.labels)):
            for segment in set(rows.segment_ids[row]):
                here, there = (
                    ids[row] == segment for ids in (rows.segment_ids, rows.prefix_segments)
                )
                there &= rows.labels[row] >= 0
                found[
                    tuple(rows.inputs[row][here & rows.key_valid[row]]),
                    tuple(rows.prefix[row][there]),
                    tuple(rows.labels[row][there]),
                ] += 1
        assert found == collections.Counter(
            (tuple(read[valid]), tuple(prefix[labels >= 0]), tuple(labels[labels >= 0]))
            for read, valid, prefix, labels in zip(
                wanted.inputs, wanted.key_valid, wanted.prefix, wanted.labels, strict=True
            )
        )


def test_what_training_costs_is_told_by_the_text():
    """60 of them share fewer rows, which a step works on whole."""
    changes = TINY | {"task.pack": 80, "train.batch_size": 1}
    program = train.make(config.override(answers_config.get_config("smoke"), changes))
    state, rows = program.init(0), len(program.task.train.labels)
    batch = jax.tree.map(lambda x: x[:1], program.task.train)
    step = cost.count(program.step, state, batch).products
    found = train.costs(program, state, train.forward(program, state))["training_flops"]
    assert rows < 30 and found == pytest.approx(step * rows / 60, rel=1e-6)


def test_of_the_table_s_rows_linear_attention_alone_has_a_row_a_text():
    """It tells no texts of a row apart, and is refused where they share one."""
    base = config.override(translation.get_config("smoke"), TINY)
    table = {row.name: row.runs[0].config for row in sweep.expand(base, translation.rows())}
    found = {name: (x["task"]["pack"], x["train"]["batch_size"]) for name, x in table.items()}
    assert found.pop("linear") == (0, 26) and set(found.values()) == {(64, 4)}
    with pytest.raises(ValueError, match="linear"):
        sweep.expand(base, first.rows())


def test_what_is_too_long_has_no_end_and_is_counted():
    task = loaded("multi30k", target_length=6)
    assert not (task.train.labels == task.writing.end).any()
    assert (task.train.labels[:, :-1] >= 0).all() and (task.train.labels[:, -1] < 0).all()
    cut = [line for line in task.told["prepared"] if line["what"] == "en: cut off at 6 tokens"]
    assert [(line["split"], line["rows"]) for line in cut] == [
        ("train", 60),
        ("validation", 10),
        ("test", 10),
    ]


def test_scores_are_of_texts():
    task = loaded("scitldr")
    texts = [task.writing.text(row[row >= 0]) for row in task.test.labels]
    perfect = pytest.approx({"rouge1": 1, "rouge2": 1, "rougeL": 1})
    assert task.judge(texts) == perfect
    # Two references each: the better one counts.
    assert task.judge([f"Another {text}" for text in texts]) == perfect
    assert task.judge([""] * 10) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    assert loaded("multi30k").judge([""] * 10)["bleu"] == 0


def test_the_baseline_is_the_first_words_of_what_is_read():
    """Six words of "Der te Hund 0 und 0. Bye": `te` and two numbers are of the reference's six."""
    found = loaded("aeslc").baselines()
    assert found["rouge1"] == pytest.approx(3 / 6)
    assert found["rougeL"] == pytest.approx(3 / 6)
    assert loaded("multi30k").baselines() == {}


def test_metrics_by_hand():
    # Unigrams 2 of 3 and 2 of 4: F = 2 * (2/3) * (2/4) / (2/3 + 2/4).
    found = _metrics.rouge(["a cat sat"], [["the cat sat down"]])
    assert found["rouge1"] == pytest.approx(4 / 7) and found["rouge2"] == pytest.approx(2 / 5)
    assert _metrics.bleu(["a b c d e"], [["a b c d e"]])["bleu"] == pytest.approx(100)
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; as long as its reference.
    share = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert _metrics.bleu(["a b c d x"], [["a b c d e"]])["bleu"] == pytest.approx(100 * share)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "fr"}, "task.source='fr'; Valid names: de, en"),
        ({"target_length": 1}, "task.target_length=1 must be at least 2"),
        ({"beams": 0}, "task.beams=0 must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tasks.spec("multi30k", **fields)


def test_a_text_that_is_missing_is_dropped_and_said(tmp_path):
    answers(tmp_path)
    columns = {"de": ["Ein Hund", None, "  "], "en": ["A dog", "A cat", "A bird"]}
    write(tmp_path / "multi30k", "train", columns, {"de": TEXT, "en": TEXT})
    task = tasks.load(tasks.spec("multi30k", **SMALL), {"dir": str(tmp_path)})
    assert len(task.train.labels) == 1
    (line,) = [x for x in task.told["prepared"] if x["step"] == "missing"]
    assert (line["rows"], line["first"]) == (2, [1, 2])


def test_no_text_of_the_test_split_is_trained_on_whatever_its_answer(tmp_path):
    answers(tmp_path)
    columns = {"de": ["Ein Hund", "Der te Hund 3 und 3"], "en": ["A dog", "Not what the test has"]}
    write(tmp_path / "multi30k", "train", columns, {"de": TEXT, "en": TEXT})
    task = tasks.load(tasks.spec("multi30k", **SMALL), {"dir": str(tmp_path)})
    assert len(task.train.labels) == 1 and len(task.test.labels) == 10


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A table of one run that learns to write captions by heart."""
    base = answers_config.get_config("smoke")
    # Rows of several pairs are trained on.
    changes = {"task.beams": 2, "train.steps": 4, "optim.warmup_steps": 1, "train.eval_every": 0}
    base = config.override(base, TINY | changes)
    workdir = tmp_path_factory.mktemp("run")
    return workdir, sweep.run_table(sweep.expand(base, [("captions", {})]), workdir)


def test_a_run_is_judged_by_what_it_writes(run):
    workdir, (record,) = run
    assert record["status"] == "ok", record.get("error")
    assert record["metric"]["name"] == "bleu" and not record["metric"]["percent"]
    found = record["metrics"]
    assert 0 <= found["test_bleu"] <= 100 and 0 <= found["test_chrf"] <= 100
    assert found["test_perplexity"] == pytest.approx(np.exp(found["test_loss"]), rel=1e-5)
    assert "validation_bleu" not in found
    assert (records.run_dir(workdir, record["digest"]) / _tokens.FILE).exists()


def test_a_run_is_asked(run):
    workdir, (record,) = run
    folder = records.run_dir(workdir, record["digest"])
    found = list(predict.answers(folder, record, ["Der Hund 3", "Der te Hund"]))
    assert [set(answer) for answer in found] == [{"answer"}] * 2
    assert all(isinstance(answer["answer"], str) for answer in found)
    with pytest.raises(ValueError, match="line 2 is empty"):
        list(predict.answers(folder, record, ["Der Hund", " "]))
    with pytest.raises(ValueError, match=r"line 1 has \d+ tokens, and the model reads 40"):
        list(predict.answers(folder, record, ["Hund " * 40]))


def test_a_run_that_cannot_be_kept_fails_alone_and_is_tried_again(tmp_path, monkeypatch):
    tiny = {"model.width": 8, "model.num_layers": 1, "model.ffn_width": 8, "train.steps": 6}
    base = config.override(digits.get_config("smoke"), tiny | {"train.eval_every": 0})
    table = sweep.expand(base, [("first", {}), ("second", {"model.ffn_width": 4})])
    save = weights.save

    def full(path, theta, **told):
        if told["digest"] == table[0].runs[0].digest:
            raise OSError("no space left on device")
        save(path, theta, **told)

    monkeypatch.setattr(weights, "save", full)
    first, second = sweep.run_table(table, tmp_path)
    assert (first["status"], second["status"]) == ("failed", "ok")
    assert first["error"].startswith("OSError: no space left on device")
    monkeypatch.undo()
    assert [record["status"] for record in sweep.run_table(table, tmp_path)] == ["ok", "ok"]
