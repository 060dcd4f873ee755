"""What a masked run answers: the likeliest words in the places of `[MASK]`, by every kind of tokeniser."""

import numpy as np
import pytest
import scipy.special
from fake_data import everything, serving
from tiny import ENCODER

from configs import pretrain
from experiments import predict
from tinyattn import config, records, tasks, train, weights
from tinyattn.tasks import _tokens

TINY = ENCODER | {
    "model.width": 16,
}


home = serving(everything)


@pytest.mark.parametrize("name", ["trec", "sst2", "snips", "slots", "pairs", "chars", "multi30k"])
def test_any_text_can_be_hidden(name):
    task = tasks.load(tasks.spec("masked", of=tasks.spec(name, vocab_size=900)))
    assert task.num_classes == 900 >= task.vocab_size and task.train.prefix is None
    assert (task.train.token_types is not None) == (name == "pairs")
    test, told = task.test, task.test.labels >= 0
    assert told.any(1).all() and (test.labels[told] >= 4).all()
    read, hidden = (np.take_along_axis(x, test.at, axis=1) for x in (test.inputs, test.masked))
    assert (read[told & ~hidden] >= 4).all() and not test.inputs[test.masked].any()
    assert hidden[told].sum() == test.masked.sum()  # nothing that is not to be told


def kept(folder):
    """A program, and a run of its fresh weights as a sweep leaves it."""
    words = dict.fromkeys(("task.of.vocab_size", "model.vocab_size", "model.num_classes"), 400)
    section = config.override(pretrain.get_config("task=intents,smoke"), TINY | words)
    program = train.make(section)
    record = {"digest": "0" * 16, "row": "it", "seed": 0, "config": config.plain(section)}
    weights.save(folder / records.WEIGHTS, program.init(0).theta, digest=record["digest"])
    for name, content in program.task.files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return program, (folder, record | {"status": "ok"})


def test_a_masked_run_tells_the_likeliest_words(tmp_path):
    program, run = kept(tmp_path)
    lines = ["Say  [MASK] everywhere [MASK]", "[MASK] w1 please", "say it [MASK]"]
    found = list(predict.answers(*run, lines))
    assert [len(answer["answer"]) for answer in found] == [2, 1, 1]
    tokenizer = _tokens.Tokenizer.from_str(program.task.files[_tokens.FILE])
    size = tokenizer.get_vocab_size()
    ids = np.zeros((3, 32), np.int32)
    hidden, valid = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
    for row, line in enumerate(lines):
        for place, word in enumerate(["[CLS]", *line.lower().split()]):
            hidden[row, place], valid[row, place] = word == "[mask]", True
            unknown = 2 if word == "[CLS]" else tokenizer.token_to_id(_tokens.UNKNOWN)
            given = tokenizer.token_to_id(word)
            ids[row, place] = 0 if word == "[mask]" else unknown if given is None else given
    test = program.task.test._replace(inputs=ids, key_valid=valid, masked=hidden)
    split = test._replace(at=None, segment_ids=None)
    logits = np.asarray(program.predict(program.init(0).theta, split))
    # Nothing else is ever a label.
    shares = scipy.special.softmax(logits[hidden][:, 4:size], axis=-1)
    told = [(a, p) for x in found for a, p in zip(x["answer"], x["probabilities"], strict=True)]
    for (answer, named), share in zip(told, shares, strict=True):
        order = np.argsort(-share)[:3]
        assert list(named) == [tokenizer.id_to_token(int(i) + 4) for i in order]
        assert answer == next(iter(named)) and answer.islower()
        np.testing.assert_allclose(list(named.values()), share[order], atol=1e-4)
    for line, message in (
        ("say it", r"line 1 has no \[MASK\]; write it for each token"),
        ("[MASK] " * 32, "line 1 has 33 tokens, and the model reads 32"),
    ):
        with pytest.raises(ValueError, match=message):
            list(predict.answers(*run, [line]))


def test_a_run_of_images_is_not_asked():
    task = tasks.load(tasks.spec("masked", patch=4))
    with pytest.raises(ValueError, match=r"hidden of the inputs of 'digits' .* fine-tune the run"):
        tasks.asked(tasks.spec("masked", patch=4), task.files, ["three.png"])


def ids(name, line, fields):
    """The ids of a line, without padding."""
    section = tasks.spec("masked", of=tasks.spec(name, **fields))
    split = tasks.asked(section, tasks.load(section).files, [line]).split
    return split.inputs[0][split.key_valid[0]].tolist(), split


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *(("snips", {"tokenizer": kind, "length": 80}) for kind in _tokens.KINDS),
        ("chars", {}),
        ("words", {}),
        ("words", {"tokenizer": "bpe"}),
        ("slots", {"tokenizer": "bpe"}),
        ("multi30k", {}),
    ],
)
def test_what_stands_around_a_mask_is_read_as_without_it(name, fields):
    """The word of a space and a mask, or the letters of a mask within a word."""
    fields = {"vocab_size": 400} | fields
    pieces = fields.get("tokenizer") in ("byte", "char") or name == "chars"
    before, word, after = ("the wi", "n", "ter of") if pieces else ("say", " dog", " please")
    gap = "" if pieces else " "
    line, split = ids(name, f"{before}{gap}[MASK]{after}", fields)
    place = int(split.at[0, 0])
    assert split.masked.sum() == 1 and split.masked[0, place] and line[place] == 0
    section = tasks.spec(name, **fields)
    files = tasks.load(section).files
    whole = tasks.asked(section, files, [f"{before}{word}{after}"]).split
    plain = whole.inputs[0][whole.key_valid[0]].tolist()
    rest = len(line) - place - 1
    assert plain[:place] == line[:place] and plain[len(plain) - rest :] == line[place + 1 :]
    tokenizer = _tokens.Tokenizer.from_str(files[_tokens.FILE])
    told = tokenizer.decode(plain[place : len(plain) - rest]).strip()
    assert told in (word.strip(), _tokens.UNKNOWN)


def test_pairs_are_asked_with_a_tab_and_far_masks_are_refused():
    section = tasks.spec("masked", of=tasks.spec("pairs", vocab_size=900))
    files = tasks.load(section).files
    split = tasks.asked(section, files, ["a [MASK] sat\ta [MASK]"]).split
    assert split.token_types[0][split.masked[0]].tolist() == [0, 1] and split.at.shape == (1, 2)
    section = tasks.spec("masked", of=tasks.spec("chars"))
    files = tasks.load(section).files
    with pytest.raises(ValueError, match=r"has 2 \[MASK\], of which the model reads 1: shorten it"):
        tasks.asked(section, files, ["[MASK]" + "a" * 40 + "[MASK]"])
