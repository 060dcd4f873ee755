"""Which tokens, patches or frames of a batch are to be told, and the batch without what is hidden."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.tasks import Split, _generated

# Of the tokens that are to be told; the rest are other tokens.
HIDDEN, STAY = 0.8, 0.1
UNLABELLED = _generated.UNLABELLED


class Draws(NamedTuple):
    """What chance decides of a batch.

    Attributes:
      order: [B, T], 0 to 1: those of the least are to be told.
      kind: [B, T], 0 to 1: which of them are hidden, stay, or are another token.
      ids: int32 [B, T], that token.
    """

    order: jax.Array
    kind: jax.Array
    ids: jax.Array


class Tokens(NamedTuple):
    """What a task's inputs are for a model, and how many of them are to be told.

    Attributes:
      kind: `tokens`, `patches` or `frames`.
      share: Of the config.
      patch: Of the config.
      first: Least id that may be told and drawn; those below are special.
      ids: Number of token ids.
    """

    kind: str
    share: float
    patch: int
    first: int
    ids: int

    def cut(self, inputs):
        """[B, height, width, C] or [B, frames, features] to [B, T, features] of a token."""
        B, p = inputs.shape[0], self.patch
        if self.kind == "frames":
            return inputs.reshape(B, inputs.shape[1] // p, -1)
        rows, columns = (side // p for side in inputs.shape[1:3])
        parts = inputs.reshape(B, rows, p, columns, p, -1).swapaxes(2, 3)
        return parts.reshape(B, rows * columns, -1)

    def blank(self, inputs, hidden):
        """The inputs without what is hidden, bool [B, T]: the mean of training, or padding."""
        if self.kind == "tokens":
            return _of(hidden).where(hidden, 0, inputs)
        whole = hidden.reshape(-1, *(side // self.patch for side in inputs.shape[1:-1]))
        for axis in range(1, whole.ndim):
            whole = whole.repeat(self.patch, axis)
        return _of(hidden).where(whole[..., None], np.float32(0), inputs)

    def candidates(self, batch: Split):
        """bool [B, T], what may be told: no special token, no padding."""
        if self.kind == "tokens":
            here = batch.inputs >= self.first
            return here if batch.key_valid is None else here & batch.key_valid
        if batch.key_valid is not None:
            return batch.key_valid.reshape(len(batch.key_valid), -1, self.patch).all(-1)
        return np.ones(self.cut(batch.inputs).shape[:2], bool)

    def counts(self, T: int) -> np.ndarray:
        """How many are to be told where 0..T may be, int [T + 1]; the last is the most."""
        n = np.arange(T + 1)
        return np.minimum(np.maximum(np.round(self.share * n), 1), n).astype(np.int32)


def hide(made: Tokens, draws: Draws, batch: Split) -> Split:
    """The batch with labels, or targets, of what is to be told, and without what is hidden."""
    xp, told = _of(draws.order), chosen(made, made.candidates(batch), draws.order)
    asked = ask(made, told, batch)
    if made.kind != "tokens":
        return asked._replace(inputs=made.blank(batch.inputs, told), masked=told)
    hidden = told & (draws.kind < HIDDEN)
    other = told & (draws.kind >= HIDDEN + STAY)
    inputs = xp.where(other, draws.ids, batch.inputs)
    return asked._replace(inputs=made.blank(inputs, hidden), masked=hidden)


def chosen(made: Tokens, may, order):
    """bool [B, T]: the share of what may be told whose `order` is the least."""
    xp = _of(order)
    count = xp.asarray(made.counts(may.shape[1]))[may.sum(1)]
    sorted_ = xp.argsort(xp.where(may, order, np.inf), axis=1, stable=True)
    return may & (xp.argsort(sorted_, axis=1, stable=True) < count[:, None])


def ask(made: Tokens, told, batch: Split) -> Split:
    """The batch with labels, or targets, of the places `told`, bool [B, T], and with no others."""
    xp = _of(told)
    at = places(told, int(made.counts(told.shape[1])[-1]))
    here = xp.take_along_axis(told, at, axis=1)
    if made.kind == "tokens":
        ids = xp.take_along_axis(batch.inputs, at, axis=1)
        return batch._replace(at=at, labels=xp.where(here, ids, np.int32(UNLABELLED)))
    return batch._replace(
        at=at,
        labels=xp.where(here, np.int32(0), np.int32(UNLABELLED)),
        targets=xp.take_along_axis(made.cut(batch.inputs), at[..., None], axis=1),
    )


def places(told, most: int):
    """int32 [B, most]: where `told`, bool [B, T], in order, and then others where these are fewer."""
    return _of(told).argsort(~told, axis=1, stable=True)[:, :most].astype(np.int32)


def _of(array):
    """What computes with it: NumPy where a split is in memory, so that nothing is compiled for it."""
    return np if isinstance(array, np.ndarray) else jnp
