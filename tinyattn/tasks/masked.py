"""What is hidden of a text, an image or a recording, to be told from the rest: pretraining without labels.

    read     who ▢ ▢ ?        of 15% of the tokens 80% are hidden, 10% are any token, 10% stay
    labels   .   wrote faust .

The inputs are those of any other task, whose labels are not looked at. In training other tokens are hidden
at each step; of validation and test they are always the same ones. Outputs are asked for where something is
to be told and nowhere else (`Split.at`), for a head may be as wide as a vocabulary.

Source: Devlin et al. 2019, "BERT", https://arxiv.org/abs/1810.04805, section 3.1; hidden anew each step as
  Liu et al. 2019, "RoBERTa", https://arxiv.org/abs/1907.11692, section 4.1; patches as Xie et al. 2022,
  "SimMIM", https://arxiv.org/abs/2111.09886, section 3; frames as Liu et al. 2020, "Mockingjay",
  https://arxiv.org/abs/1910.12638, section 2.2.
Differs: What stands in the place of a token is an embedding without an id (`model.masked`), so that the ids
  are those of the tasks that follow. A label is never a special or unknown token. There is no second
  sentence to be told apart. Patches and frames are hidden one by one, always, and the error is squared.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tokenizers import AddedToken

from tinyattn import tasks
from tinyattn.tasks import (
    Asked,
    Split,
    Task,
    _asked,
    _generated,
    _hidden,
    _metrics,
    _steps,
    _tokens,
)
from tinyattn.tasks._hidden import Draws, Tokens, hide

OF = ("of",)
MASK = "[MASK]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      of: Section of the task whose inputs these are.
      share: Of the tokens, patches or frames of an example, to be told; at least one is.
      patch: Side of a patch (pixels), or frames of a token, as the model has them: `model.patch`, or 2 to
        the power of `model.tokeniser`; texts have tokens whatever it is.
    """

    of: Mapping[str, Any] = dataclasses.field(default_factory=lambda: tasks.spec("digits"))
    share: float = 0.15
    patch: int = 1

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise ValueError(f"task.share={self.share} must be a share above 0 and below 1")
        if self.patch < 1:
            raise ValueError(f"task.patch={self.patch} must be at least 1")


def asked(config: Config, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Texts with `[MASK]` in the place of each token that is to be told.

    Raises:
      ValueError: The run's inputs are no texts, or a line has nothing to tell, or is too long.
    """
    if _tokens.FILE not in files:
        raise ValueError(
            f"what is hidden of the inputs of {config.of['name']!r} is no text that an answer could name:"
            f" fine-tune the run (train.pretrained=RUN) on a task with labels, and ask that one"
        )
    tokenizer = _tokens.Tokenizer.from_str(files[_tokens.FILE])
    size, first = tokenizer.get_vocab_size(), len(_tokens.SPECIALS)
    # What the steps make of it is a token of its own; pieces of words have the space before them.
    (spelled,) = _steps.normalise([MASK], config.of.get("steps", ()))
    mask = AddedToken(spelled, special=True, lstrip=config.of.get("tokenizer") == "bpe")
    tokenizer.add_special_tokens([mask])
    split = tasks.asked(config.of, {**files, _tokens.FILE: tokenizer.to_str()}, lines).split
    hidden = split.inputs == tokenizer.token_to_id(spelled)
    counts = hidden.sum(1)
    for number, (line, count) in enumerate(zip(lines, counts, strict=True), 1):
        if not count:
            raise ValueError(f"line {number} has no {MASK}; write it for each token to be told")
        if count != line.count(MASK):
            raise ValueError(
                f"line {number} has {line.count(MASK)} {MASK}, of which the model reads {count}: shorten it"
            )
    names = _names(tokenizer, range(first, size))
    likeliest = _asked.classes(names)

    def answers(logits: np.ndarray) -> list[dict[str, Any]]:
        found = []
        for row, count in zip(logits, counts, strict=True):
            told = likeliest(row[:count, first:size])
            found.append({key: [one[key] for one in told] for key in told[0]})
        return found

    at = _hidden.places(hidden, int(counts.max()))
    inputs = np.where(hidden, 0, split.inputs)
    return Asked(split._replace(inputs=inputs, masked=hidden, at=at), answers)


def _names(tokenizer: _tokens.Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each id spells, or its token where that is a part of a character."""
    found = zip(ids, tokenizer.decode_batch([[i] for i in ids]), strict=True)
    return [tokenizer.id_to_token(i) if "\N{REPLACEMENT CHARACTER}" in x else x for i, x in found]


def wrap(config: Config, task: Task) -> Task:
    """The task of telling what is hidden of another task's inputs.

    Raises:
      ValueError: Patches do not divide these, or they are several in one.
    """
    if isinstance(task.train.inputs, tuple):
        raise ValueError(
            f"task.of.name={config.of['name']!r} has a pair of inputs; give one of them"
        )
    made = _tokens_of(config, task)
    text = made.kind == "tokens"
    splits, empty = {}, []
    for number, name in enumerate(_generated.SPLITS):
        whole = getattr(task, name)
        may = made.candidates(whole)
        if rows := int((~may.any(1)).sum()):
            empty.append({"step": "masked", "split": name, "what": "nothing to hide", "rows": rows})
        kept = may.any(1)
        own = {key: x for key, x in whole.given.items() if key != "prefix"}
        own = jax.tree.map(lambda x, i=kept: x[i], Split(**own, labels=whole.labels))
        may = may[kept]
        if name == "train":
            # All of it is there to be hidden at each step; till then it has its first places.
            told = _hidden.chosen(made, may, np.arange(may.shape[1]))
            own = _hidden.ask(made, told, own)
            splits[name] = own._replace(masked=np.zeros_like(may), targets=None)
        else:
            splits[name] = hide(made, _fixed(number, may.shape, made), own)
    train, test = splits["train"], splits["test"]
    # As many as are asked for, whether or not a text has them: a model's sizes hang on no data.
    classes = (
        max(task.vocab_size, config.of.get("vocab_size", 0)) if text else test.targets.shape[-1]
    )

    def augment(rng: jax.Array, batch: Split) -> Split:
        own_rng, *rngs = jax.random.split(rng, 4)
        batch, shape = task.augment(own_rng, batch), batch.masked.shape
        order, kind = (jax.random.uniform(one, shape) for one in rngs[:2])
        ids = jax.random.randint(rngs[2], shape, made.first, made.ids) if text else None
        return hide(made, Draws(order, kind, ids), batch)

    return Task(
        **splits,
        num_classes=classes,
        vocab_size=task.vocab_size,
        augment=augment,
        metric=_metrics.LOSS,
        measure=lambda split, predicted: _metrics.perplexity(predicted.losses) if text else {},
        baselines=lambda: (
            _frequencies(made, train, test, classes) if text else _mean(made, train, test)
        ),
        files=task.files,
        told={**task.told, "masked": empty},
    )


def _tokens_of(config: Config, task: Task) -> Tokens:
    if task.vocab_size:
        # Generated tokens are none of them special.
        special = len(_tokens.SPECIALS) if task.vocabulary else 0
        return Tokens("tokens", config.share, 1, special, task.vocab_size)
    sides = task.train.inputs.shape[1:-1]
    if any(side % config.patch for side in sides):
        shape = "x".join(map(str, sides))
        raise ValueError(
            f"task.patch={config.patch} must divide the {shape} pixels or frames of an input"
        )
    return Tokens("patches" if len(sides) == 2 else "frames", config.share, config.patch, 0, 0)


def _fixed(number: int, shape: tuple[int, int], made: Tokens) -> Draws:
    """The draws of a whole split, the same on every machine and in every release."""
    bits = np.random.Philox(np.random.SeedSequence([0, number]))
    order, kind = (
        ((bits.random_raw(shape) >> np.uint64(40)) * 2.0**-24).astype(np.float32) for _ in range(2)
    )
    text = made.kind == "tokens"
    return Draws(
        order, kind, _generated.integers(bits, shape, made.first, made.ids) if text else None
    )


def _frequencies(made: Tokens, train: Split, test: Split, classes: int) -> dict[str, float]:
    """Test numbers of telling every token by how often it stands in training, each once more."""
    counts = 1 + np.bincount(train.inputs[made.candidates(train)], minlength=classes)
    labels = test.labels[test.labels >= 0]
    loss = -np.log(counts / counts.sum())[labels].mean()
    return {"accuracy": float((labels == counts.argmax()).mean()), "loss": float(loss)}


def _mean(made: Tokens, train: Split, test: Split) -> dict[str, float]:
    """Test numbers of telling every patch or frame by the mean of training at its place."""
    there = made.candidates(train)[..., None]
    whole = made.cut(train.inputs)
    mean = np.where(there, whole, 0).sum(0) / np.maximum(there.sum(0), 1)
    errors = ((test.targets - mean[test.at]) ** 2).mean(-1)
    return {"loss": float(errors[test.labels >= 0].mean())}
