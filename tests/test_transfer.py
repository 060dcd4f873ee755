"""A run that starts from another's body: which leaves it takes, whose tokeniser, and what is refused."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from fake_data import everything, served
from tiny import ENCODER

from configs import intents, pretrain, trec
from configs.ablations import transfer, transfer_speech
from tinyattn import config, records, sweep, tasks, train, weights
from tinyattn.tasks import _tokens

TINY = ENCODER | {
    "train.steps": 2,
    "train.eval_every": 0,
    "optim.warmup_steps": 1,
}
WORDS = {"model.vocab_size": 400, "task.vocab_size": 400}


def more(**changes):
    """The config of pretraining."""
    words = {"model.vocab_size": 400, "model.num_classes": 400, "task.of.vocab_size": 400}
    base = pretrain.get_config("task=intents,smoke")
    return config.override(base, TINY | words | changes)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """All datasets, nobody's cache, and the folder where runs/ is."""
    home = tmp_path_factory.mktemp("data")
    with served(home, everything) as patched:
        patched.chdir(home)
        yield home


@pytest.fixture(scope="module")
def pretrained(home):
    """The record of a run that two steps pretrained, and its file of weights."""
    (record,) = sweep.run_table(sweep.expand(more(), [("it", {})]), home / transfer.PRETRAINED)
    assert record["status"] == "ok", record.get("error")
    return record, records.run_dir(transfer.PRETRAINED, record["digest"]) / records.WEIGHTS


@pytest.fixture(scope="module")
def table(pretrained):
    base = config.override(transfer.get_config("smoke"), TINY | WORDS | {"seeds": (0, 1)})
    return {row.name: row for row in sweep.expand(base, transfer.rows())}


def test_a_body_is_taken_to_the_bit_and_a_head_is_new(pretrained, table, caplog):
    found = weights.leaves(weights.fold(weights.load(pretrained[1])))
    scratch, program = table["from scratch"].program, table["pretrained"].program
    for seed in (0, 1):
        theta, own = (weights.leaves(x.init(seed).theta) for x in (program, scratch))
        assert theta.keys() == own.keys()
        new = {"head/kernel", "head/bias"}
        assert theta.keys() - found.keys() == new and found.keys() - theta.keys() == {
            "embedding/mask"
        }
        for name, leaf in theta.items():
            np.testing.assert_array_equal(leaf, own[name] if name in new else found[name])
    # The last table of weights was trained: it is no longer what the seed gave.
    assert (theta["embedding/tokens/embedding"] != own["embedding/tokens/embedding"]).any()
    with caplog.at_level(logging.WARNING):
        made(intents, **OURS)
    (line,) = [x.message for x in caplog.records if "leaves taken" in x.message]
    assert "new: head/bias, head/kernel; left: embedding/mask" in line


def test_a_body_that_heard_is_taken(tmp_path):
    file = tmp_path / records.WEIGHTS
    told = train.make(config.override(pretrain.get_config("task=fsdd,smoke"), TINY))
    weights.save(file, found := told.init(3).theta, digest="0" * 16)
    start = dict(transfer_speech.rows())["pretrained"] | {"train.pretrained": str(file)}
    made = train.make(config.override(transfer_speech.get_config("smoke"), TINY | start))
    theta, found = (weights.leaves(weights.fold(x)) for x in (made.init(0).theta, found))
    body = theta.keys() - {"head/kernel", "head/bias"}
    assert body == {name for name in found if not name.startswith("head/")} - {"embedding/mask"}
    for name in body:
        np.testing.assert_array_equal(theta[name], found[name])


def test_more_of_the_same_takes_all_of_it(pretrained):
    program = train.make(more(**{"train.pretrained": str(pretrained[1])}))
    found = weights.fold(weights.load(pretrained[1]))
    jax.tree.map(np.testing.assert_array_equal, program.init(3).theta, found)


def test_a_pretrained_run_is_fine_tuned_and_judged(pretrained, table, home):
    row = table["pretrained"]
    row = row._replace(runs=row.runs[:1])
    (record,) = sweep.run_table([row], home / "runs/transfer")
    assert record["status"] == "ok", record.get("error")
    assert 0 <= record["metrics"]["test_accuracy"] <= 1
    folder = records.run_dir(home / "runs/transfer", record["digest"])
    both = [x / _tokens.FILE for x in (folder, pretrained[1].parent)]
    assert both[0].read_text() == both[1].read_text()
    # The pretrained run has no accuracy of labels that it never saw, but of what it told.
    told = pretrained[0]["metrics"]
    assert told["test_perplexity"] == pytest.approx(np.exp(told["test_loss"]), rel=1e-4)
    assert told["baseline_loss"] > 0 and pretrained[0]["metric"]["name"] == "loss"


def test_a_run_of_patches_has_losses_and_no_accuracy(tmp_path):
    changes = TINY | {"model.patch": 4, "task.patch": 4, "model.num_classes": 16}
    base = config.override(pretrain.get_config("task=digits,smoke"), changes)
    base.train.eval_every = 1
    (record,) = sweep.run_table(sweep.expand(base, [("it", {})]), tmp_path)
    assert record["status"] == "ok", record.get("error")
    assert not [name for name in record["metrics"] if "accuracy" in name]
    assert list(record["history"][0]) == ["step", "validation_loss"]
    arrays = records.arrays(tmp_path, record["digest"])
    assert list(arrays) == ["loss"] and len(arrays["loss"]) == 360 * 2  # 60% of four patches
    assert record["metrics"]["test_loss"] == pytest.approx(arrays["loss"].mean(), rel=1e-5)


def test_a_tokeniser_is_a_run_s(pretrained, tmp_path):
    kept = pretrained[1].with_name(_tokens.FILE)
    task = tasks.load(tasks.spec("trec", vocabulary=transfer.PRETRAINED))
    assert task.files[_tokens.FILE] == kept.read_text()
    same = tasks.load(tasks.spec("intents", vocabulary=str(kept)))
    assert task.vocabulary == same.vocabulary != tasks.load(tasks.spec("trec")).vocabulary
    # A word means the same to both, and what the run never read is unknown.
    ids = _tokens.Tokenizer.from_str(kept.read_text()).token_to_id
    assert (task.test.inputs[:, 1] == ids("say")).all()
    assert (task.test.inputs[:2, 3] == ids(_tokens.UNKNOWN)).all()
    # The file counts, and not its name, though prepared data are kept.
    copy = tmp_path / "tokenizer.json"
    shutil.copy(kept, copy)
    first = tasks.load(tasks.spec("trec", vocabulary=str(copy)))
    told = json.loads(copy.read_text())
    words = told["model"]["vocab"]
    words["say"], words["please"] = words["please"], words["say"]
    copy.write_text(json.dumps(told))
    tasks._LOADED.clear()
    second = tasks.load(tasks.spec("trec", vocabulary=str(copy)))
    assert (first.test.inputs[:, 1] != second.test.inputs[:, 1]).all()


def made(file, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    start = {"train.pretrained": transfer.PRETRAINED}
    return train.make(config.override(file.get_config("smoke"), TINY | WORDS | start | changes))


def loaded(name, **fields):
    return tasks.load(tasks.spec(name, **{"vocabulary": transfer.PRETRAINED} | fields))


OURS = {"task__vocabulary": transfer.PRETRAINED}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made(trec), "has another tokeniser than the task.*set task.vocabulary='runs/pre"),
        (lambda: made(intents, **OURS, model__width=4), "is float32.*give a run of the same body"),
        (
            lambda: made(intents, **OURS, model__max_length=40),
            r"embedding/positions is float32\[32",
        ),
        (lambda: made(intents, **OURS, model__num_layers=2), "the file has no 'block_1/"),
        (lambda: made(intents, **OURS, model__positions="none"), "the model has no 'embedding/pos"),
        (
            lambda: made(intents, train__pretrained="runs/no"),
            "'runs/no': runs/no cannot be found",
        ),
        (lambda: loaded("trec", vocabulary="runs"), "task.vocabulary='runs': runs has 0 files tok"),
        (lambda: loaded("trec", tokenizer="char"), "is of the kind 'word', not 'char'"),
        (lambda: loaded("words"), r"begins with .*, where this task has .*'\[EOS\]'"),
        (lambda: loaded("trec", vocabulary=__file__), "is no tokeniser"),
        (
            lambda: loaded("trec", train_examples=5),
            r"train_examples=5 must be 6 \(the classes\) to",
        ),
        (lambda: loaded("trec", train_examples=-1), "train_examples=-1 must not be negative"),
    ],
)
def test_what_does_not_fit_is_refused(pretrained, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_few_labels_are_of_all_classes_and_always_the_same():
    few = [tasks.load(tasks.spec("trec", train_examples=60, steps=())).train for _ in range(2)]
    assert np.bincount(few[0].labels).tolist() == [10] * 6
    tasks._LOADED.clear()
    again = tasks.load(tasks.spec("trec", train_examples=60, steps=("missing",))).train
    np.testing.assert_array_equal(few[0].inputs, again.inputs)
    whole = tasks.load(tasks.spec("trec", steps=()))
    assert len(whole.train.labels) == 500 and len(few[0].labels) == 60
