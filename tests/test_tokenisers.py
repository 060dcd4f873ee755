"""Tokenisers: the same for the same texts, and no text breaks them; rows of ids; packing."""

import numpy as np
import pytest

from tinyattn import tasks
from tinyattn.tasks import _pack, _tokens
from tinyattn.tasks._tokens import KINDS, SPECIALS, Tokens

TEXTS = ["the cat sat on the mat", "naïve cats sat, and sat", "a mat\nfor the cat"] * 3
PAD, UNKNOWN, START, SEPARATOR = range(4)


def made(kind, texts=TEXTS, **fields):
    return _tokens.train(Tokens(tokenizer=kind, **{"vocab_size": 400, **fields}), texts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_make_the_same_tokeniser(kind):
    first = made(kind)
    assert {first.token_to_id(token) for token in SPECIALS} == set(range(4))
    assert {made(kind).to_str() for _ in range(5)} == {first.to_str()}
    # It is one text, which is all that is kept of it.
    again = _tokens.Tokenizer.from_str(first.to_str())
    want, found = (_tokens.encode(x, TEXTS, length=40) for x in (first, again))
    np.testing.assert_array_equal(want.ids, found.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_has_ids_and_none_becomes_a_special_token(kind):
    tokenizer = made(kind)
    strange = ["[PAD] [CLS] [SEP]", "", "\x00\ud7ff\U0001f600 zebra", "[CLS]"]
    rows = _tokens.encode(tokenizer, strange, length=60)
    assert (rows.ids < tokenizer.get_vocab_size()).all() and (rows.ids[:, 0] == START).all()
    inside = rows.ids[:, 1:][rows.key_valid[:, 1:]]
    assert not set(inside) & {PAD, START, SEPARATOR}
    assert rows.key_valid.sum(1)[1] == 1  # an empty text is its first token
    assert (rows.ids[~rows.key_valid] == PAD).all()
    if kind in ("byte", "bpe"):
        assert UNKNOWN not in inside
        assert tokenizer.decode(inside[-5:].tolist()).strip() == "[CLS]"


def test_unknown_words_and_characters_are_unknown():
    words = _tokens.encode(made("word"), ["the zebra sat"], length=5)
    assert (words.ids[0, :4] == UNKNOWN).tolist() == [False, False, True, False]
    chars = _tokens.encode(made("char"), ["caz\n"], length=5)
    assert (chars.ids[0] == UNKNOWN).tolist() == [False, False, False, True, False]
    assert made("word", min_frequency=6).token_to_id("naïve") is None
    often = made("char", vocab_size=4 + 3)
    assert {often.id_to_token(i) for i in range(4, 7)} == {" ", "a", "t"}


def test_rows_say_words_and_what_was_cut_off():
    rows = _tokens.encode(made("wordpiece"), ["the catmat sat", "the"], length=6)
    assert rows.words[1].tolist() == [-1, 0, -1, -1, -1, -1]
    assert rows.words[0, 1] == 0 and rows.words[0, 2] == 1 == rows.words[0, 3]
    rows = _tokens.encode(made("word"), ["the cat sat on", "the"], length=3)
    assert rows.cut.tolist() == [0] and rows.words.tolist() == [[-1, 0, 1], [-1, 0, -1]]


def test_the_longer_text_of_a_pair_gives_way():
    tokenizer = made("word")
    long, short = "the cat sat on the mat", "the mat"
    for first, second, types in (
        (long, short, [0] * 6 + [1] * 2),
        (short, long, [0] * 4 + [1] * 4),
        (long, long, [0] * 5 + [1] * 3),
    ):
        rows = _tokens.encode(tokenizer, [first], [second], length=8)
        assert rows.types[0].tolist() == types and rows.cut.tolist() == [0]
        assert rows.ids[0, types.index(1) - 1] == SEPARATOR
    rows = _tokens.encode(tokenizer, [short], [short], length=8)
    assert rows.key_valid[0].tolist() == [True] * 6 + [False] * 2 and rows.cut.size == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": "wrod"}, "task.tokenizer='wrod'; did you mean 'word'"),
        ({"tokenizer": "bpe", "vocab_size": 200}, "task.vocab_size=200 must be at least 300"),
        ({"length": 0}, "task.length=0 must be at least 1"),
        ({"pack": 8}, "task.pack=8 must be at least task.length=32, or 0"),
        ({"token_dropout": 1.0}, r"task.token_dropout=1.0 must be a share in \[0, 1\)"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tasks.spec("trec", **fields)


def test_packed_rows_hold_every_text_once_and_little_else():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 200)
    valid = np.arange(12) < lengths[:, None]
    ids = np.where(valid, 100 * np.arange(200)[:, None] + np.arange(12), 0)
    labels = np.where(np.arange(12) == 0, np.arange(200)[:, None], -100)
    found = _pack.pack({"inputs": ids, "labels": labels, "key_valid": valid}, 16)
    assert found["inputs"].shape == found["segment_ids"].shape == found["labels"].shape
    assert sorted(found["labels"][found["labels"] >= 0]) == list(range(200))
    assert found["key_valid"].mean() > 0.97
    seen = 0
    for row in range(len(found["inputs"])):
        kept = found["key_valid"][row]
        assert not found["inputs"][row, ~kept].any() and (found["labels"][row, ~kept] == -100).all()
        segments = found["segment_ids"][row]
        assert (np.diff(segments) >= 0).all() and segments[0] == 0  # runs, as the model needs them
        for segment in range(segments.max() + 1):
            part = found["inputs"][row, kept & (segments == segment)]
            text = part[0] // 100
            assert part.tolist() == ids[text, : lengths[text]].tolist()
            seen += 1
    assert seen == 200
    with pytest.raises(ValueError, match=r"task.pack=8 is less than a text of 11 tokens: raise it"):
        _pack.pack({"inputs": ids, "labels": labels, "key_valid": valid}, 8)
