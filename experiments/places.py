"""Where things stand in a figure, so that they can be told apart."""

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression


def score_range(drawn: pd.DataFrame) -> tuple[float, float]:
    """Returns limits within which rows that are close to each other can be told apart.

    Left out are a row that has collapsed far below the others, and what reaches beyond the rest of
    an interval out of proportion: that of two seeds is seven times as wide as that of five.

    Args:
        drawn: of `report.summarise`, and `good`: the score, or less than nothing where less is better.
    """
    if drawn.empty:
        return 0.0, 100.0
    first = drawn.iloc[0]
    means, halves = drawn["good"], drawn["score_half_width"]
    # A point of a share tells rows apart, and a hundredth of a number that has no scale of its own.
    unit = 1.0 if first["percent"] else abs(means.median()) / 100
    best = (100.0 if first["percent"] else np.inf) if first["higher"] else 0.0
    collapse = means.median() - max(5 * (means.max() - means.median()), 10.0 * unit)
    means, halves = means[means >= collapse], halves[means >= collapse]
    room = max(means.max() - means.min(), 2.5 * np.nan_to_num(halves.median()), 0.5 * unit)
    # No share is less than nothing, whatever an interval of few seeds says.
    worst = 0.0 if first["percent"] and first["higher"] else -np.inf
    low = max((means - halves.fillna(0)).min(), means.min() - room, worst)
    high = min((means + halves.fillna(0)).max(), means.max() + room, best)
    margin = 0.06 * max(high - low, 0.5 * unit)
    return low - margin, high + margin


def spread(wanted, sizes: np.ndarray, low: float, high: float) -> np.ndarray:
    """Moves sorted places apart so that things of these sizes do not overlap.

    Of all such places between `low` and `high` it returns the nearest to those wanted, in least
    squares, which is isotonic regression on the places less the room taken by those before.
    """
    wanted = np.asarray(wanted, dtype=float)
    if wanted.size == 0:
        return wanted
    taken = np.concatenate([[0.0], np.cumsum((sizes[1:] + sizes[:-1]) / 2)])
    free = isotonic_regression(wanted - taken).x
    return np.clip(free, low + sizes[0] / 2, high - sizes[-1] / 2 - taken[-1]) + taken
