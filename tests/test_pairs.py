"""GLUE's tasks of pairs: the metrics of each, a score, and what is asked of a run that gives scores."""

import datasets
import jax
import numpy as np
import pytest
from fake_data import TEXT, glue, serving, write
from tiny import ENCODER

from configs import pairs as config_file
from experiments import predict
from tinyattn import config, records, sweep, tasks, train
from tinyattn.tasks import _metrics, pairs

TINY = ENCODER | {
    "model.dropout": 0.0,
    "train.steps": 4,
    "train.eval_every": 0,
    "optim.warmup_steps": 1,
}
METRICS = {"mrpc": {"accuracy", "f1"}, "qqp": {"accuracy", "f1"}, "stsb": {"pearson", "spearman"}}


home = serving(glue)


def base(name, **changes):
    return config.override(config_file.get_config(f"task={name},smoke"), TINY | changes)


@pytest.mark.parametrize("name", pairs.TASKS)
def test_a_task_has_its_glue_metric(name):
    task = train.make(base(name)).task
    perfect = task.test.labels if name != "stsb" else task.test.targets
    predicted = tasks.Predicted(perfect, np.zeros(len(perfect), np.float32))
    found = tasks.score(task, task.test, predicted)
    wanted = METRICS.get(name, {"accuracy"})
    assert set(found) == wanted | {"loss"} and task.metric.name == min(
        wanted - {"accuracy"}, default="accuracy"
    )
    assert [found[key] for key in wanted] == pytest.approx([1.0] * len(wanted))
    assert set(task.baselines()) == wanted | ({"loss"} if name == "stsb" else set())
    assert (len(task.test.labels), len(task.validation.labels)) == (16, 45)
    # A tenth is held out, and a pair of the test split is not trained on.
    assert len(task.train.labels) == 450 - 45 - 1
    assert list(task.others) == (["mismatched"] if name == "mnli" else [])


def test_neither_test_split_of_mnli_is_trained_on_and_both_are_whole(tmp_path):
    glue(tmp_path, ("mnli",))
    names = ("train", "validation_matched", "validation_mismatched")
    pair = {split: [f"{split} {i}" for i in range(40)] for split in names}
    pair["train"][:2] = pair[names[1]][0], pair[names[2]][0]
    pair[names[1]][1] = pair[names[2]][1]  # of two test splits both keep it
    for split, texts in pair.items():
        columns = {"premise": texts, "hypothesis": ["so"] * 40}
        columns["label"] = [i % 3 for i in range(40)]
        label = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
        features = {"premise": TEXT, "hypothesis": TEXT, "label": label}
        write(tmp_path / "glue/mnli", split, columns, features)
    task = tasks.load(tasks.spec("pairs", task="mnli"), {"dir": str(tmp_path)})
    sizes = [len(x.labels) for x in (*task[:3], task.others["mismatched"])]
    assert sizes == [34, 4, 40, 40]
    assert [(x["split"], x["first"]) for x in task.told["prepared"]] == [("train", [0, 1])]


def scores(folder, label, kind, **fields):
    """STS-B with these training scores."""
    glue(folder, ("stsb",))
    columns = {"sentence1": [f"a {i}" for i in range(len(label))]}
    columns |= {"sentence2": ["b"] * len(label), "label": label}
    features = {"sentence1": TEXT, "sentence2": TEXT, "label": datasets.Value(kind)}
    write(folder / "glue/stsb", "train", columns, features)
    return tasks.load(tasks.spec("pairs", task="stsb", **fields), {"dir": str(folder)})


def test_a_pair_without_a_score_is_dropped_or_fatal_and_a_class_is_no_score(tmp_path):
    given = [*[0.25, 0.5, 4.75, 5.0] * 5, -1.0, None]
    task = scores(tmp_path, given, "float32")
    assert [x["first"] for x in task.told["prepared"]] == [[20, 21]]
    kept = np.concatenate([task.train.targets, task.validation.targets])
    np.testing.assert_array_equal(np.sort(kept[:, 0]), np.sort(given[:20]).astype(np.float32))
    assert kept.dtype == np.float32 and not task.train.labels.any()
    with pytest.raises(ValueError, match="row 20 of the train split and 1 more: no valid label"):
        scores(tmp_path, given, "float32", broken="raise")
    with pytest.raises(ValueError, match=r"stsb: column 'label' is Value\('int64'\), not a score"):
        scores(tmp_path / "classes", [1, 2, 3], "int64")


def test_packed_pairs_have_their_scores_at_their_first_tokens():
    alone, packed = (
        tasks.load(tasks.spec("pairs", task="stsb", vocab_size=900, pack=pack)).test
        for pack in (0, 80)
    )
    there = packed.labels >= 0
    assert len(packed.inputs) < len(alone.inputs) and packed.targets.shape == (*there.shape, 1)

    def scored(split, starts):
        """The tokens of each pair, with its score."""
        ids = [split.inputs[row, place:] for row, place in zip(*np.nonzero(starts), strict=True)]
        ends = [np.flatnonzero(np.append(x[1:], 2) == 2)[0] + 1 for x in ids]
        texts = [tuple(x[x > 0][:n].tolist()) for x, n in zip(ids, ends, strict=True)]
        return sorted(zip(texts, split.targets.reshape(*starts.shape, -1)[starts, 0], strict=True))

    first = np.ones((16, 1), bool)
    assert scored(packed, there) == scored(alone, first) and there.sum() == 16
    assert not packed.targets[~there].any()


def test_shared_words_tell_how_similar_two_texts_are():
    packed, alone = (
        tasks.load(tasks.spec("pairs", task="stsb", vocab_size=900, pack=pack)).baselines()
        for pack in (80, 0)
    )
    assert packed == pytest.approx(alone, rel=1e-5)
    assert alone["pearson"] > 0.98 and alone["spearman"] > 0.98 and alone["loss"] < 0.2


def test_correlations_by_hand():
    # Deviations -1 0 1 and -4 -1 5: 9 / sqrt(2 * 42); ranks are equal.
    found = _metrics.correlations(np.array([1.0, 2, 3]), np.array([0.0, 3, 9]))
    assert found == pytest.approx({"pearson": 9 / np.sqrt(84), "spearman": 1.0})
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / (4 * 15).
    found = _metrics.correlations(np.arange(4), np.array([0.0, 2, 1, 3]))
    assert found["spearman"] == pytest.approx(0.8)
    for nothing in ([2.0, 2, 2], [0, np.nan, 1], [0, np.inf, 1]):
        found = _metrics.correlations(np.arange(3), np.array(nothing))
        assert found == {"pearson": 0.0, "spearman": 0.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps."""
    workdir = tmp_path_factory.mktemp("run")
    (record,) = sweep.run_table(sweep.expand(base("stsb"), [("it", {})]), workdir)
    assert record["status"] == "ok", record.get("error")
    return records.run_dir(workdir, record["digest"]), record


def test_a_run_learns_scores_and_is_judged_by_them(run):
    folder, record = run
    found = record["metrics"]
    assert record["metric"] == {"name": "pearson", "higher": True, "percent": False}
    assert set(found) >= {f"test_{x}" for x in ("pearson", "spearman", "loss")}
    assert found["baseline_pearson"] > 0.98 and "test_accuracy" not in found
    program = train.make(base("stsb"))
    task, theta = program.task, predict.export.kept(folder, record).theta
    predicted = train.evaluate(program, theta, task.test, batch=10)
    first = jax.tree.map(lambda x: x[:10], task.test)
    want = np.asarray(program.predict(theta, first))
    np.testing.assert_allclose(predicted.labels[:10], want, rtol=1e-5)
    squared = ((predicted.labels - task.test.targets) ** 2)[:, 0]
    np.testing.assert_allclose(predicted.losses, squared, rtol=1e-5)
    assert tasks.score(task, task.test, predicted)["pearson"] == pytest.approx(
        found["test_pearson"], abs=1e-5
    )


def test_a_run_answers_by_a_score(run):
    lines = ["u1 u2\tu1 u2", "u1\tnothing"]
    found = list(predict.answers(*run, lines))
    assert [set(answer) for answer in found] == [{"answer"}] * 2
    assert all(isinstance(answer["answer"], float) for answer in found)
    (alone,) = predict.answers(*run, lines[1:])
    assert alone["answer"] == pytest.approx(found[1]["answer"], abs=1e-3)
    with pytest.raises(ValueError, match="line 1 has 1 parts; give two texts, and a tab"):
        list(predict.answers(*run, ["only one"]))
