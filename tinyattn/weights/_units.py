"""Units: the elements of a leaf that are pruned together, in groups within which units compete."""

import dataclasses
import math

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Units:
    """How a leaf falls into groups of units of elements.

    Attributes:
      shape: Of the leaf.
      split: The same with some axes cut in two.
      order: Axes of `split`, those that number groups first, then units, then elements of a unit.
      groups: G.
      units: U, of each group.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    groups: int
    units: int

    def gather(self, x):
        """x of the leaf's shape as [G, U, elements of a unit]."""
        return x.reshape(self.split).transpose(self.order).reshape(self.groups, self.units, -1)

    def spread(self, kept: jax.Array | np.ndarray):
        """kept [G, U] for every element, of the leaf's shape."""
        elements = math.prod(self.shape) // (self.groups * self.units)
        turned = kept[..., None].repeat(elements, -1).reshape([self.split[i] for i in self.order])
        return turned.transpose(tuple(np.argsort(self.order))).reshape(self.shape)


def single(shape: tuple[int, ...]) -> Units:
    """Every element for itself, all in one group."""
    size = math.prod(shape)
    return Units(shape, (size,), (0,), 1, size)


def neighbours(path: str, shape: tuple[int, ...], of: int) -> Units:
    """Every element for itself, in groups of `of` consecutive inputs of one output."""
    if not shape or shape[0] % of:
        raise ValueError(
            f"prune: of={of} must divide the inputs of {path}, {shape}: exclude it by 'leaves', or"
            f" choose a divisor of {shape[0] if shape else 1}"
        )
    d_out = math.prod(shape[1:])
    return Units(shape, (shape[0] // of, of, d_out), (0, 2, 1), shape[0] // of * d_out, of)


def blocks(path: str, shape: tuple[int, ...], rows: int, columns: int) -> Units:
    """Blocks of `rows` inputs by `columns` outputs."""
    d_in, d_out = (*shape, 1, 1)[0], math.prod(shape[1:])
    if len(shape) < 2 or d_in % rows or d_out % columns:
        raise ValueError(
            f"prune: blocks of {rows}x{columns} must fill {path}, which is {shape}: exclude it by"
            f" 'leaves', or choose rows and columns that divide {d_in} and {d_out}"
        )
    down, across = d_in // rows, d_out // columns
    return Units(shape, (down, rows, across, columns), (0, 2, 1, 3), 1, down * across)


def slices(path: str, shape: tuple[int, ...], axis: int, units: int) -> Units:
    """Equal slices of one axis, 0 or 1, as heads are of the outputs of a query's kernel."""
    if len(shape) <= axis or shape[axis] % units:
        raise ValueError(
            f"prune: {path}, {shape}, does not fall into units={units} along axis {axis}: give the"
            f" model's number of key/value heads, or other 'outputs' and 'inputs'"
        )
    if axis == 0:
        return Units(shape, (units, math.prod(shape) // units), (0, 1), 1, units)
    split = (shape[0], units, math.prod(shape[1:]) // units)
    return Units(shape, split, (1, 0, 2), 1, units)
