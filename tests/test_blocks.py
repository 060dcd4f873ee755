"""Grids of blocks: which cells are set, drawn and run."""

import numpy as np

from tinyattn import attention, masks
from tinyattn.attention.sparse import bigbird
from tinyattn.masks import Mask


def make(name, **fields):
    return attention.build(attention.spec(name, **{"num_heads": 1, **fields}))


def test_random_blocks_are_drawn_once_and_for_all():
    config = bigbird.Config(block=4, random_blocks=2, seed=0)
    layout, _ = bigbird.grid(config, 48)
    i = np.arange(12)
    set_before = (abs(i[:, None] - i) <= 1) | (i == 0)
    # The bits are promised never to change, so neither may these.
    drawn = [tuple(np.flatnonzero(layout[row] & ~set_before[row])) for row in range(1, 12)]
    assert drawn[:4] == [(3, 5), (6, 10), (5, 6), (6, 10)]
    assert all(len(cells) == 2 for cells in drawn)
    np.testing.assert_array_equal(bigbird.grid(config, 48)[0], layout)
    other, _ = bigbird.grid(bigbird.Config(block=4, random_blocks=2, seed=1), 48)
    assert (other != layout).any()
    # As many as there are, and no more.
    assert bigbird.grid(bigbird.Config(block=4, random_blocks=99), 48)[0].all()
    # Six blocks are too few for the authors' code, which would switch to dense attention.
    assert not bigbird.grid(bigbird.Config(block=4, random_blocks=1), 24)[0].all()


def test_only_set_blocks_are_run():
    def run(layout, mask=Mask(), n=64):
        module, config = make("blocks", block=4, layout=layout)
        return module.flops(config, mask, D=2, T=n, S=n)["scores"].executed / 4 / 16

    # Cells of a grid of 16 x 16.
    assert run(("1",)) == 256
    assert run(("10", "01")) == 128
    assert run(("1000", "0100", "0010", "0001")) == 64
    assert run(("1" * 16, *["1" + "0" * 15] * 15)) == 16 + 15
    # A causal mask's own reach: half of what is set, and some for rows that are run together.
    assert run(("1",), masks.causal()) < 0.65 * 256
    assert run(("1",), masks.window(5)) == 16 * 3


def test_layouts_of_strings_and_tuples_are_one():
    module, config = make("blocks", layout=((1, 0), [True, False]))
    assert config.layout == ("10", "10")
    assert config == make("blocks", layout=("10", "10"))[1]
    assert module.grid(config, 64 * 3)[0].tolist() == [[True, False, True]] * 3
