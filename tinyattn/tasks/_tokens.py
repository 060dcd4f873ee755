"""Tokenisers, by Hugging Face `tokenizers`: trained on training texts alone, and kept as one JSON text."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tinyattn import records, registry

KINDS = ("word", "wordpiece", "bpe", "byte", "char")
PAD, UNKNOWN, START, SEPARATOR = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
FILE = "tokenizer.json"
# By the types that a file names.
KIND_OF = {
    ("WordLevel", "WhitespaceSplit"): "word",
    ("WordPiece", "BertPreTokenizer"): "wordpiece",
    ("BPE", "ByteLevel"): "bpe",
    ("WordLevel", "Sequence"): "byte",
    ("WordLevel", "Split"): "char",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """The fields of a task whose inputs are texts.

    Attributes:
      tokenizer: `word`, `wordpiece`, `bpe` (of bytes), `byte` or `char`.
      vocabulary: A run, or a tokeniser's file, whose tokeniser is taken and none trained, so that ids mean
        what they mean to the weights of that run; it must be of the kind `tokenizer`. "" trains one.
      vocab_size: Token ids at most, the special ones included; bytes are always 256 more.
      min_frequency: Of a token in the training texts.
      length: Tokens of an example at most (T); what is longer is cut off at its end, and counted.
    """

    tokenizer: str = "word"
    vocabulary: str = ""
    vocab_size: int = 8000
    min_frequency: int = 1
    length: int = 32

    def __post_init__(self):
        if self.tokenizer not in KINDS:
            raise ValueError(
                f"task.tokenizer={self.tokenizer!r}; {registry.nearest(self.tokenizer, KINDS)}"
            )
        for name in ("vocab_size", "min_frequency", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name}={getattr(self, name)} must be at least 1")
        if self.tokenizer in ("wordpiece", "bpe") and self.vocab_size < 300:
            raise ValueError(
                f"task.vocab_size={self.vocab_size} must be at least 300: bytes come first"
            )


def train(fields: Tokens, texts: Iterable[str], specials: Sequence[str] = SPECIALS) -> Tokenizer:
    """A tokeniser of these texts, the same for the same texts; special tokens come first, in order.

    Args:
      fields: Its kind and size, or whose it is.
      texts: Of the training split.
      specials: Of which `[UNK]` stands for what is not in the vocabulary.

    Raises:
      ValueError: The tokeniser that `fields` names cannot be had, or is of another kind.
    """
    specials, kind = list(specials), fields.tokenizer
    if fields.vocabulary:
        return _taken(fields, specials)
    if kind == "byte":
        # All 256, whatever the texts have.
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
        made = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
        split = pre_tokenizers.Split(Regex("."), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([level, split])
        made.decoder = decoders.ByteLevel()
    elif kind == "char":
        counts = collections.Counter(itertools.chain.from_iterable(texts))
        often = sorted(counts, key=lambda x: (-counts[x], x))[: fields.vocab_size - len(specials)]
        found = sorted(often)
        vocab = {token: i for i, token in enumerate([*specials, *found])}
        made = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        made.decoder = decoders.Fuse()
    else:
        texts = list(texts)
        made, trainer = _trainable(fields, specials, texts)
        made.train_from_iterator(texts, trainer)
    # Without them a text that spells a special token would be one.
    return Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | {"added_tokens": []}))


def known(fields: Tokens) -> str:
    """The text of the tokeniser that `fields.vocabulary` names; "" if none is named.

    Raises:
      ValueError: It cannot be had.
    """
    if not fields.vocabulary:
        return ""
    try:
        return records.kept(fields.vocabulary, FILE).read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"task.vocabulary={fields.vocabulary!r}: {error}") from error


def _taken(fields: Tokens, specials: list[str]) -> Tokenizer:
    named = f"task.vocabulary={fields.vocabulary!r}"
    try:
        found = Tokenizer.from_str(text := known(fields))
    except Exception as error:  # the library raises nothing narrower
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{named} is no tokeniser: {error}") from error
    parts = json.loads(text)
    kind = KIND_OF.get((parts["model"]["type"], (parts["pre_tokenizer"] or {}).get("type")))
    if kind != fields.tokenizer:
        raise ValueError(
            f"{named} is of the kind {kind!r}, not {fields.tokenizer!r}: set task.tokenizer to it"
        )
    first = [found.id_to_token(i) for i in range(len(specials))]
    if first != specials:
        raise ValueError(f"{named} begins with {first}, where this task has {specials}")
    return found


def _trainable(fields: Tokens, specials: list[str], texts: list[str]):
    sizes = {
        "vocab_size": fields.vocab_size,
        "min_frequency": fields.min_frequency,
        "show_progress": False,
    }
    if fields.tokenizer == "word":
        made = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return made, trainers.WordLevelTrainer(**sizes, special_tokens=specials)
    if fields.tokenizer == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token=UNKNOWN, max_input_chars_per_word=100))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        # The library numbers these in the order of a hash that is another one each time.
        inner = [f"##{x}" for x in sorted(set().union(*map(set, texts))) if not x.isspace()]
        return made, trainers.WordPieceTrainer(**sizes, special_tokens=specials + inner)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return made, trainers.BpeTrainer(**sizes, special_tokens=specials, initial_alphabet=alphabet)


class Encoded(NamedTuple):
    """Texts as rows of ids.

    Attributes:
      ids: int32 [n, T], padded with that of `[PAD]`.
      key_valid: bool [n, T], False at padding.
      words: int32 [n, T], which word of its text a token is of; -1 for special tokens and padding.
      types: int32 [n, T], 0 for the first text of a pair and 1 for the second.
      cut: Rows that were longer than T.
    """

    ids: np.ndarray
    key_valid: np.ndarray
    words: np.ndarray
    types: np.ndarray
    cut: np.ndarray


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None, *, length: int
) -> Encoded:
    """Rows `[CLS] text`, or `[CLS] text [SEP] pair`; the longer text of a pair gives way to the other.

    Args:
      tokenizer: Of `train`.
      texts: [n].
      pairs: [n], each text's second.
      length: T.
    """
    n = len(texts)
    start, separator = (tokenizer.token_to_id(token) for token in (START, SEPARATOR))
    shape = (n, length)
    ids = np.full(shape, tokenizer.token_to_id(PAD), np.int32)
    words = np.full(shape, -1, np.int32)
    types, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
    cut = []
    first = _pieces(tokenizer, texts)
    second = _pieces(tokenizer, pairs) if pairs is not None else [((), ())] * n
    for row, ((a, a_words), (b, _)) in enumerate(zip(first, second, strict=True)):
        room = length - (1 if pairs is None else 2)
        if len(a) + len(b) > room:
            cut.append(row)
            half = room // 2
            keep = max(half, room - len(b)) if pairs is not None else room
            a, b = a[:keep], b[: room - min(len(a), keep)]
        line = [start, *a] + ([separator, *b] if pairs is not None else [])
        ids[row, : len(line)], valid[row, : len(line)] = line, True
        words[row, 1 : 1 + len(a)] = a_words[: len(a)]
        types[row, 2 + len(a) : len(line)] = 1  # none without a pair
    return Encoded(ids, valid, words, types, np.asarray(cut, np.int64))


def ids(
    tokenizer: Tokenizer, texts: Sequence[str], specials: Sequence[str] = SPECIALS
) -> list[list[int]]:
    """Ids of every text, none of them special but `[UNK]`, whatever a text spells."""
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [_plain(tokenizer, x.ids, specials) for x in found]


def _plain(tokenizer: Tokenizer, found: list[int], specials: Sequence[str]) -> list[int]:
    unknown = tokenizer.token_to_id(UNKNOWN)
    return [unknown if i < len(specials) else i for i in found]


def _pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Ids of every text, and which of its words, as `split` finds them, each is of."""
    kind = tokenizer.pre_tokenizer
    if isinstance(kind, pre_tokenizers.Sequence | pre_tokenizers.Split):  # bytes, characters
        return [(found, [0] * len(found)) for found in ids(tokenizer, texts)]
    lines = [text.split() for text in texts]
    found = tokenizer.encode_batch(lines, is_pretokenized=True, add_special_tokens=False)
    return [(_plain(tokenizer, x.ids, SPECIALS), x.word_ids) for x in found]
