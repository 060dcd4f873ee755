"""Tasks of texts on small data with the hub's schemas: load, one step, evaluate; leakage and baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_data import TEXT, everything, serving, texts, write
from tiny import ENCODER

from configs import chars, intents, pairs, slots, sst2, trec, words
from tinyattn import config, tasks, train
from tinyattn.tasks import Split, _texts, _tokens
from tinyattn.tasks import slots as slots_task
from tinyattn.tasks import words as words_task

SPLITS = ("train", "validation", "test")
TINY = ENCODER | {
    "model.dropout": 0.0,
    "train.steps_per_dispatch": 1,
}
SNIPS = {"task": tasks.spec("snips", vocab_size=900), "model.num_classes": 7}
SMALL_WORDS = {name: 300 for name in ("task.vocab_size", "model.vocab_size", "model.num_classes")}
# By what they learn: the config, what is changed of it, and what the record's metrics have.
LEARNT = {
    "trec": (trec, {}, ()),
    "sst2": (sst2, {}, ()),
    "intents": (intents, {}, ("macro_f1", "in_scope_accuracy", "oos_recall")),
    "snips": (trec, SNIPS, ("macro_f1",)),
    "slots": (slots, {"train.batch_size": 4}, ("span_precision", "span_recall", "span_f1")),
    "pairs": (pairs, {}, ("f1",)),
    "chars": (chars, {"train.batch_size": 4}, ("perplexity", "bits")),
    "words": (words, SMALL_WORDS | {"train.batch_size": 4}, ("perplexity", "bits")),
}


home = serving(everything)


def made(name, **more):
    file, changes, _ = LEARNT[name]
    return train.make(config.override(file.get_config("smoke"), TINY | changes | more))


@pytest.mark.parametrize("name", LEARNT)
def test_load_one_step_and_evaluate(name):
    """Traced for all; compiled for packed texts and for the next token."""
    program = made(name)
    task, B = program.task, program.config.batch_size
    batch = jax.tree.map(lambda x: x[:B], task.train)
    if name in ("slots", "chars"):
        state, sums = jax.jit(lambda: program.step(program.init(0), batch))()
        # At the start every class is as likely as any other, nearly.
        loss = float(sums.loss / sums.count)
        assert loss == pytest.approx(np.log(task.num_classes), rel=0.3)
        predicted = train.evaluate(program, state.theta, task.test, batch=B)
    else:
        _, sums = jax.eval_shape(lambda: program.step(program.init(0), batch))
        assert sums.loss.shape == ()
        losses = np.zeros((task.test.labels >= 0).sum(), np.float32)
        predicted = tasks.Predicted(task.test.labels, losses)
    numbers = tasks.score(task, task.test, predicted)
    assert set(numbers) == {"accuracy", "loss", *LEARNT[name][2]}
    assert all(np.isfinite(list(numbers.values()))) and task.metric.name in numbers
    if not predicted.losses.any():
        assert {x for key, x in numbers.items() if key not in ("loss", "bits")} == {1.0}
    wanted = ["tokenizer.json"] + ["classes.json"] * (name not in ("chars", "words"))
    assert list(task.files) == wanted and task.told["fingerprint"]


@pytest.mark.parametrize("name", ["trec", "sst2", "intents", "snips", "slots", "pairs"])
def test_no_text_is_in_two_splits(name):
    """One is, in the files. Bytes tell all texts apart."""
    pack = {"pack": 80} if name in ("snips", "slots") else {}
    fields = {"tokenizer": "bpe", "vocab_size": 300, "length": 80}
    task = tasks.load(tasks.spec(name, **fields, **pack))
    seen = []
    for split in SPLITS:
        ids = getattr(task, split).inputs
        ids = ids[ids > 0]
        found = [x.tobytes() for x in np.split(ids, np.flatnonzero(ids == 2))[1:]]
        assert len(set(found)) == len(found) > 1
        seen.append(set(found))
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    dropped = [x for x in task.told["prepared"] if x["step"] == "dedupe"]
    assert {(x["split"], x["rows"]) for x in dropped} >= {("train", 1)}
    assert not [x for x in task.told["prepared"] if x["step"] == "length"]


def test_what_is_in_two_splits_is_taken_out_of_training(tmp_path):
    sentences, labels = texts("train", 2050, 2), [i % 2 for i in range(2050)]
    write(tmp_path / "sst2", "train", {"sentence": sentences, "label": labels}, features())
    test = {"sentence": [sentences[7].upper(), "new  one"], "label": [1, 0]}
    write(tmp_path / "sst2", "validation", test, features())
    task = tasks.load(tasks.spec("sst2"), {"dir": str(tmp_path)})
    (line,) = [x for x in task.told["prepared"] if x["step"] == "dedupe"]
    assert (line["split"], line["rows"], line["first"]) == ("train", 1, [7])
    assert len(task.train.labels) == 2050 - 2000 - 1 and len(task.test.labels) == 2


def features(label="label"):
    import datasets

    return {"sentence": TEXT, label: datasets.ClassLabel(names=["negative", "positive"])}


def sentiment(folder, test, **fields):
    """SST-2 with two training rows that say nothing, and this test split."""
    rows = [*texts("train", 2010, 2), "", None]
    columns = {"sentence": rows, "label": [i % 2 for i in range(len(rows))]}
    write(folder / "sst2", "train", columns, features())
    columns = {"sentence": test, "label": [i % 2 for i in range(len(test))]}
    write(folder / "sst2", "validation", columns, features())
    return tasks.load(tasks.spec("sst2", **fields), {"dir": str(folder)})


def test_preparation_is_the_same_again_and_knows_nothing_of_the_test_split(tmp_path):
    long = " ".join(f"unseen{i}" for i in range(99))
    found = [
        sentiment(tmp_path / "a", ["a b", long]),
        sentiment(tmp_path / "b", ["a b", long]),
        sentiment(tmp_path / "c", ["quite another text", "and one more"]),
    ]
    first = found[0]
    for task in found[1:]:
        assert task.files == first.files  # the tokeniser too
        jax.tree.map(np.testing.assert_array_equal, task.train, first.train)
        jax.tree.map(np.testing.assert_array_equal, task.validation, first.validation)
    # What is longer than a row is cut off, and said.
    assert first.test.inputs.shape == (2, 32) and (first.test.inputs[1, 1:] == 1).all()
    said = {(x["step"], x["split"]): x for x in first.told["prepared"]}
    assert said["length", "test"]["first"] == [1] and said["missing", "train"]["first"] == [
        2010,
        2011,
    ]
    with pytest.raises(ValueError, match="row 2010 of the train split and 1 more: no sentence"):
        sentiment(tmp_path / "a", ["a b"], broken="raise")


def test_a_row_longer_than_the_model_is_refused():
    with pytest.raises(ValueError, match=r"64 tokens; raise model.max_length=16"):
        made("trec", **{"model.max_length": 16})


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no row of the test split of stanfordnlp/sst2 is left"):
        sentiment(tmp_path, ["", None])


def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = sentiment(tmp_path, ["a b", "c"])
    (entry,) = (tmp_path / "cache/tinyattn/data").iterdir()
    whole = entry.read_bytes()
    trained = []
    train_one = _tokens.train
    monkeypatch.setattr(_tokens, "train", lambda *x: trained.append(1) or train_one(*x))
    half = len(whole) // 2
    flipped = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
    for i, content in enumerate((whole, whole[:half], b"", flipped)):
        entry.write_bytes(content)
        tasks._LOADED.clear()
        again = sentiment(tmp_path, ["a b", "c"])
        jax.tree.map(np.testing.assert_array_equal, again.train, first.train)
        assert len(trained) == i and sum("made anew" in x for x in caplog.messages) == i
        assert entry.read_bytes() == whole  # to the bit
    sentiment(tmp_path, ["a b", "c"], length=4)
    assert len(list(entry.parent.iterdir())) == 2 and not list(entry.parent.glob(".*"))


def test_bag_of_words_beats_chance_where_a_word_tells_the_class():
    assert made("trec").task.baselines() == {"accuracy": 1.0}
    packed = made("snips").task
    assert packed.baselines() == {"accuracy": 1.0, "macro_f1": 1.0}
    alone = tasks.load(tasks.spec("snips"))
    assert alone.train.segment_ids is None and alone.baselines() == packed.baselines()


def test_the_most_frequent_tag_of_a_word():
    # 2 [CLS], words 5, 6 and (7 8); tags at first tokens.
    inputs = np.array([[2, 5, 6, 7, 8, 2, 5, 0], [2, 5, 7, 8, 6, 0, 0, 0]], np.int32)
    labels = np.array([[-1, 1, 0, 3, -1, -1, 2, -1], [-1, 2, 3, -1, 0, -1, -1, -1]], np.int32)
    split = Split(inputs, labels)
    found = [word for _, word in slots_task.words(split)]
    assert found == [(5,), (6,), (7, 8), (5,), (5,), (7, 8), (6,)]
    test = Split(np.array([[2, 5, 7, 8, 9]], np.int32), np.array([[-1, 1, 1, -1, 1]], np.int32))
    predicted = slots_task.most_frequent(split, test)
    assert predicted.labels.tolist() == [[-100, 2, 3, -100, 0]]


def test_slots_are_of_words_and_broken_rows_are_named(tmp_path):
    rows = {"text": ["play [CLS] now", "play it", "hi"], "slots": ["O B-x I-x", "O", "X"]}
    for split in SPLITS:
        columns = {name: [f"{split} {x}" if name == "text" else f"O {x}" for x in column]
                   for name, column in rows.items()}  # fmt: skip
        write(tmp_path / "snips", split, columns, {"text": TEXT, "slots": TEXT})
    task = tasks.load(tasks.spec("slots", tokenizer="word"), {"dir": str(tmp_path)})
    assert task.told["tags"] == ["O", "B-x", "I-x"]
    assert [x["first"] for x in task.told["prepared"] if x["step"] == "slots"] == [[1, 2]] * 3
    assert task.train.labels.tolist() == [[-100, 0, 0, 1, 2, *[-100] * 59]]
    for fields, message in (
        ({"token_swap": 0.1}, "from their tags"),
        ({"tokenizer": "byte"}, "words"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.spec("slots", **fields)


def test_a_language_model_predicts_every_token_but_the_first_once():
    task = made("words").task
    for split in SPLITS:
        part = getattr(task, split)
        kept = part.labels >= 0
        np.testing.assert_array_equal(part.labels.ravel()[:-1][kept.ravel()[:-1]][:-1],
                                      part.inputs.ravel()[1:][kept.ravel()[:-1]][:-1])  # fmt: skip
        assert kept.sum() > kept.size - kept.shape[1]
    tokenizer = _tokens.Tokenizer.from_str(task.files["tokenizer.json"])
    read = [tokenizer.id_to_token(i) for i in task.train.inputs[0, :12]]
    assert " ".join(read) == "[EOS] [EOS] = Title = [EOS] a b <unk> w0 [EOS] a"
    found = task.baselines()
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"])) and found["perplexity"] < 9
    assert len(words_task._stream(task.test)) == (task.test.labels >= 0).sum() + 1


def test_augmentation_leaves_special_tokens_and_moves_the_rest():
    ids = jnp.asarray([[2, *range(10, 40), 3, *range(40, 60), 0, 0]] * 200)
    augment = _texts.augmentation(_texts.Texts(token_dropout=0.2, token_swap=0.4))
    found = np.asarray(jax.jit(augment)(jax.random.PRNGKey(0), Split(ids, ids)).inputs)
    special = np.asarray(ids) < 4
    np.testing.assert_array_equal(found[special], np.asarray(ids)[special])
    lost = (found == 1)[~special].mean()
    assert abs(lost - 0.2) < 0.02
    moved = (found != np.asarray(ids)) & (found != 1)
    assert abs(moved[~special].mean() / (1 - lost) - 0.4) < 0.05
    for row in found:  # nothing comes twice
        assert len(set(row[row > 3])) == (row > 3).sum()
    assert _texts.augmentation(_texts.Texts())(None, ids) is ids
