"""What tasks of texts have in common: cleaning, rows, splits, augmentation."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import registry
from tinyattn.tasks import Split, _pack, _steps, _tokens
from tinyattn.tasks._cache import Prepared
from tinyattn.tasks._source import Dataset

SPLITS = _steps.SPLITS
UNLABELLED = _pack.EMPTY["labels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts(_tokens.Tokens):
    """
    Attributes:
      steps: Names of the steps of preparation, in order; see `tinyattn.tasks._steps`.
      pack: Tokens of a row that several short texts share, told apart by `segment_ids`, the label of each
        at its first token, so that `model.pool` is "none"; 0 is a row a text, for any other pool. Of texts
        with answers these share a row as well, but for those of the test split, which are to be written.
      broken: What becomes of rows without a text or a valid label: `drop`, and say so, or `raise`.
      token_dropout: Augmentation: share of a training text's tokens that are `[UNK]`, others each time.
      token_swap: Augmentation: share of a training text's tokens that change places with the next.
    """

    steps: tuple[str, ...] = ("nfkc", "lower", "whitespace", "missing", "duplicates", "dedupe")
    pack: int = 0
    broken: str = "drop"
    token_dropout: float = 0.0
    token_swap: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name in self.steps:
            _steps.step(name)
        if self.broken not in _steps.BROKEN:
            raise ValueError(
                f"task.broken={self.broken!r}; {registry.nearest(self.broken, _steps.BROKEN)}"
            )
        if self.pack and self.pack < self.length:
            raise ValueError(
                f"task.pack={self.pack} must be at least task.length={self.length}, or 0"
            )
        for name in ("token_dropout", "token_swap"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"task.{name}={getattr(self, name)} must be a share in [0, 1)")


def clean(
    config: Texts, name: str, data: Dataset, columns: _steps.Columns, told: _steps.Told
) -> _steps.Frames:
    """The splits after the config's steps, what they did said once in the log.

    Raises:
      ValueError: A broken row where these are fatal, or a split of which nothing is left.
    """
    for split, column in ((split, column) for split in data for column in columns.texts):
        kind = data[split].features[column]
        if getattr(kind, "dtype", "") not in ("string", "large_string"):
            raise ValueError(
                f"{name}: column {column!r} of the {split} split is {kind}, not text: make the files with"
                f" the hub's schema"
            )
    frames = data.frames()
    for step in config.steps:
        _steps.step(step)(frames, columns, told)
    told.log(name)
    for split, frame in frames.items():
        if frame.empty:
            raise ValueError(f"no row of the {split} split of {name} is left: {told.lines}")
    return frames


def named(
    split: str,
    fields: _pack.Arrays,
    labels: np.ndarray,
    pack: int,
    targets: np.ndarray | None = None,
) -> _pack.Arrays:
    """The arrays of a split by their names in the cache, packed or not.

    Args:
      split: Its name.
      fields: [n, T] each.
      labels: One a text, [n], or one a token, [n, T].
      pack: Tokens of a packed row, or 0.
      targets: Of a regression, of each text [n, features].
    """
    told = {"labels": labels} if targets is None else {"labels": labels, "targets": targets}
    if pack:
        if labels.ndim == 1:
            told = {name: _at_first(name, x, fields["inputs"].shape) for name, x in told.items()}
        fields = _pack.pack({**fields, **told}, pack)
    else:
        fields = {**fields, **told}
    return {f"{split}/{name}": x for name, x in fields.items()}


def _at_first(name: str, x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[n, ...] of texts as [n, T, ...] of tokens: that of a text stands at its first."""
    made = np.full((*shape, *x.shape[1:]), _pack.EMPTY.get(name, 0), x.dtype)
    made[:, 0] = x
    return made


def splits(found: Prepared) -> dict[str, Split]:
    """The splits of prepared arrays."""
    fields: dict[str, dict[str, np.ndarray]] = {}
    for name, array in found.arrays.items():
        split, _, field = name.partition("/")
        fields.setdefault(split, {})[field] = array
    return {name: Split(**arrays) for name, arrays in fields.items()}


def size(found: Prepared) -> int:
    """Token ids of a prepared task."""
    return _tokens.Tokenizer.from_str(found.files[_tokens.FILE]).get_vocab_size()


def augmentation(config: Texts) -> Callable[[jax.Array, Split], Split]:
    """(rng, batch) -> batch: tokens swapped with their next, and replaced by `[UNK]`.

    Special tokens and padding stay what and where they are.
    """
    special = len(_tokens.SPECIALS)
    unknown = _tokens.SPECIALS.index(_tokens.UNKNOWN)

    if not (config.token_swap or config.token_dropout):
        return lambda rng, batch: batch

    def augment(rng, batch):
        inputs = batch.inputs
        swap_rng, drop_rng = jax.random.split(rng)
        if config.token_swap:
            # A swap for every second pair of neighbours at most, from a first place by chance.
            start_rng, pick_rng = jax.random.split(swap_rng)
            T = inputs.shape[1]
            place = jnp.arange(T) + jax.random.randint(start_rng, (inputs.shape[0], 1), 0, 2)
            left = (place % 2 == 0) & (jnp.arange(T) < T - 1)
            left &= jax.random.bernoulli(pick_rng, config.token_swap, inputs.shape)
            after = jnp.roll(inputs, -1, axis=1)
            left &= (inputs >= special) & (after >= special)
            right = jnp.roll(left, 1, axis=1)
            inputs = jnp.where(left, after, jnp.where(right, jnp.roll(inputs, 1, axis=1), inputs))
        if config.token_dropout:
            lost = jax.random.bernoulli(drop_rng, config.token_dropout, inputs.shape)
            inputs = jnp.where(lost & (inputs >= special), unknown, inputs)
        return batch._replace(inputs=inputs)

    return augment
