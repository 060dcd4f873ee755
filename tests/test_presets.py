"""Every preset in a table: where it starts, what it counts, trains and stores."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from schemes import RNG, check_kept, moved, scheme

from tinyattn import weights
from tinyattn.weights import presets

# Four layers of one kernel 6 by 5 and a bias that no preset touches.
I, O, L = 6, 5, 4  # noqa: E741
DRAW = np.random.default_rng(0)
PARAMS = {
    f"block_{i}": {
        "kernel": jnp.asarray(DRAW.standard_normal((I, O)), jnp.float32),
        "bias": jnp.asarray(DRAW.standard_normal(O), jnp.float32),
    }
    for i in range(L)
}
N, SEED = I * O, 16
LOW = I + O  # of a rank of 1
BITS = 4  # 30 bits, in bytes

# Section; whether it starts as the params; params, trainable and bytes, those of the biases apart.
TABLE = {
    "both": (presets.both(), True, L * (2 * N + O), L * (N + O), 4 * L * (2 * N + O)),
    "train_d": (presets.train_d(), True, L * (2 * N + O), L * O, L * (4 * (N + O) + SEED)),
    "train_v": (presets.train_v(), True, L * 2 * N, L * N, 4 * L * 2 * N),
    "frozen": (presets.frozen(), False, L * N, 0, L * SEED),
    "lora": (presets.lora(2), True, L * (N + 2 * LOW), L * 2 * LOW, 4 * L * (N + 2 * LOW)),
    "hira": (presets.hira(2), True, L * (N + 2 * LOW), L * 2 * LOW, 4 * L * (N + 2 * LOW)),
    "loha": (presets.loha(1), True, L * (N + 2 * LOW), L * 2 * LOW, 4 * L * (N + 2 * LOW)),
    "ia3": (presets.ia3(), True, L * (N + O), L * O, 4 * L * (N + O)),
    "ia3 col": (presets.ia3("col"), True, L * (N + I), L * I, 4 * L * (N + I)),
    "vera": (
        presets.vera(3),
        True,
        L * (N + O + 3) + 3 * LOW,
        L * (O + 3),
        4 * L * (N + O + 3) + 2 * SEED,
    ),
    "shira": (presets.shira(0.1), True, L * (N + 3), L * 3, L * (4 * (N + 3) + SEED)),
    # A file has the values of the mask, not its scores.
    "diff_pruning": (presets.diff_pruning(), True, L * 3 * N, L * 2 * N, 4 * L * 3 * N),
    # A file has the weights that the mask leaves, here all, and its bits.
    "piggyback": (presets.piggyback(), True, L * 2 * N, L * N, L * (4 * N + BITS)),
    "supermask": (presets.supermask(), False, L * 2 * N, L * N, L * (SEED + BITS)),
    "batch_ensemble": (
        presets.batch_ensemble(4),
        True,
        L * (N + LOW),
        L * (N + LOW),
        4 * L * (N + LOW),
    ),
    "batch_ensemble of one": (
        presets.batch_ensemble(),
        False,
        N + L * LOW,
        N + L * LOW,
        4 * (N + L * LOW),
    ),
    "masa": (presets.masa(2, 2), False, 4 * N + L * 2, 4 * N + L * 2, 4 * (4 * N + L * 2)),
    "hashed": (presets.hashed(7), False, 7, 7, 4 * 7 + L * SEED),
    "pranc": (presets.pranc(3), False, L * (3 * N + 3), L * 3, L * (12 + SEED)),
    "relaxed": (presets.relaxed(2), False, N + L * 2 * LOW, N + L * 2 * LOW, 4 * (N + L * 2 * LOW)),
    "relaxed alone": (
        presets.relaxed(0, "row", 4),
        True,
        L * (N + O),
        L * (N + O),
        4 * L * (N + O),
    ),
}


def test_every_preset_has_its_row():
    public = {
        name
        for name, f in inspect.getmembers(presets, inspect.isfunction)
        if f.__module__ == presets.__name__ and not name.startswith("_")
    }
    assert {row.split()[0] for row in TABLE} == public - {"delta", "factor"}


@pytest.mark.parametrize("row", TABLE)
def test_where_it_starts_and_what_it_holds(row):
    section, same, *sizes = TABLE[row]
    theta = scheme(section).init(RNG, PARAMS)
    built = weights.fold(theta)
    for i in range(L):
        got, want = (x[f"block_{i}"]["kernel"] for x in (built, PARAMS))
        assert np.array_equal(got, want) or not same
        assert same or i == 0 or not np.array_equal(got, want)
    assert weights.sizes(theta) == tuple(
        n + b for n, b in zip(sizes, (L * O, L * O, 4 * L * O), strict=True)
    )
    check_kept(moved(theta))
