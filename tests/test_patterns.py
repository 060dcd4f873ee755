"""Static patterns: which pairs they really have, that no other work is done, and what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, masks
from tinyattn.attention._core import softmax
from tinyattn.attention.sparse import window
from tinyattn.masks import Mask

# Every way through the executor: several parts, tiles, ragged ends, rows without a run.
SETTINGS = [
    ("longformer", {"window": 2, "global_tokens": 2, "block": 4}),
    ("bigbird", {"block": 2, "random_blocks": 1}),
    ("blocks", {"block": 3, "layout": ("0001", "1111", "0100")}),
    ("strided", {"stride": 4, "block": 2}),
    ("fixed", {"stride": 5, "summary": 2}),
]
NAMES = [name for name, _ in SETTINGS]
T = 35


def make(name, **fields):
    return attention.build(attention.spec(name, **{"num_heads": 1, **fields}))


def weights(module, config, mask, T):
    """The table of probabilities that is really run, [T, T]: equal scores, and values that say who."""
    zeros = np.zeros((1, T, 1, T), np.float32)
    one_hot = np.eye(T, dtype=np.float32)[None, :, None]
    out = jax.jit(module.attend, static_argnums=0)(config, zeros, zeros, one_hot, mask)
    return np.asarray(out)[0, :, 0]


def table(*rows):
    return np.array([[x == "x" for x in row] for row in rows])


HAND = {
    "longformer": (
        {"window": 2, "global_tokens": 1},
        table("xxxxxx", "xxx...", "xxxx..", "x.xxx.", "x..xxx", "x...xx"),
    ),
    "bigbird": (
        {"block": 2, "window_blocks": 1, "random_blocks": 0},
        table("xxxxxx", "xxxxxx", "xxxx..", "xxxx..", "xx..xx", "xx..xx"),
    ),
    "blocks": (
        {"block": 2, "layout": ("110", "010", "101")},
        table("xxxx..", "xxxx..", "..xx..", "..xx..", "xx..xx", "xx..xx"),
    ),
    # |t - s| is 0, 1, 2, 3 or 4 less than 2, or even.
    "strided": (
        {"stride": 2, "block": 1},
        table("xxx.x.", "xxxx.x", "xxxxx.", ".xxxxx", "x.xxxx", ".x.xxx"),
    ),
    "fixed": (
        {"stride": 3, "summary": 1},
        table("xxx..x", "xxx..x", "xxx..x", "..xxxx", "..xxxx", "..xxxx"),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_pattern_drawn_by_hand(name):
    fields, want = HAND[name]
    module, config = make(name, **fields)
    np.testing.assert_array_equal(module.effective(config, Mask(), 6)[0], want)
    np.testing.assert_array_equal(module.effective(config, masks.causal(), 6)[0], np.tril(want))


@pytest.mark.parametrize(("name", "fields"), SETTINGS)
@pytest.mark.parametrize("mask", [Mask(), masks.causal()], ids=["full", "causal"])
def test_what_is_run_is_the_pattern_and_not_the_table(name, fields, mask):
    module, config = make(name, **fields)
    pattern = np.asarray(module.effective(config, mask, T)[0])
    want = pattern / np.maximum(pattern.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(weights(module, config, mask, T), want, atol=1e-6)
    executed = module.flops(config, mask, D=2, T=T, S=T)["scores"].executed
    assert executed < 4 * T * T, "the setting must not fall back to the dense table"


@pytest.mark.parametrize(("name", "fields"), SETTINGS)
def test_gradients_through_orders_and_parts(name, fields):
    module, config = make(name, **{**fields, "num_heads": 2, "num_kv_heads": 1})
    rng = np.random.default_rng(0)
    shapes = (2, T, 2, 3), (2, T, 1, 3), (2, T, 1, 3), (2, T, 2, 3)
    *heads, weight = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    mask = masks.causal() & masks.padding(np.arange(T)[None] % 7 != np.array([[0], [3]]))
    got, want = (
        jax.jit(jax.grad(lambda *x, f=f: (f(config, *x, mask) * weight).sum(), argnums=(0, 1, 2)))(
            *heads
        )
        for f in (module.attend, module.reference)
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(("name", "fields"), SETTINGS)
def test_no_pair_is_counted_twice_or_missed(name, fields):
    module, config = make(name, **fields)
    rng = np.random.default_rng(0)
    for n in (1, 2, 6, 29, 64):
        valid = masks.padding(jnp.array(rng.random((2, n)) > 0.5))
        ids = masks.segments(jnp.array(rng.integers(0, 2, (2, n))))
        for mask in (Mask(), masks.causal(), masks.window(5), valid & masks.window(9), ids):
            work = module.flops(config, mask, D=2, T=n, S=n)["scores"]
            effective = np.asarray(module.effective(config, mask, n))
            assert work.useful == 4 * effective.sum((1, 2)).mean()
            assert work.useful <= work.executed


@pytest.mark.parametrize("mask", [Mask(), masks.causal()], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("name", "keys"),
    # Keys run for a query: both sides of a window of 64 and its block; a window, a global and three
    # random blocks, and the global row; both sides of a stride, its block, up to 15 that fill these up to
    # whole vectors, and every stride-th; a block and 8 summaries of each.
    [
        ("longformer", lambda n: 3 * 64 + 2),
        ("bigbird", lambda n: 64 * 8),
        ("strided", lambda n: 4 * math.sqrt(n) + 2 + 15),
        ("fixed", lambda n: 9 * math.sqrt(n) + 9),
    ],
)
def test_work_grows_as_the_paper_says(name, keys, mask):
    for n in (512, 2048, 8192):
        stride = {"stride": math.isqrt(n)} if name in ("strided", "fixed") else {}
        module, config = make(name, **stride)
        executed = module.flops(config, mask, D=2, T=n, S=n)["scores"].executed / 4
        assert executed <= min(keys(n), n) * n * 1.02


def test_summaries_of_later_blocks_are_not_run():
    """Four parts of the blocks: 5/8 of all summaries, where a triangle has half of them; a window's own."""
    n, (module, config) = 8192, make("fixed", stride=64, summary=8)
    work = module.flops(config, masks.causal(), D=2, T=n, S=n)["scores"]
    assert work.executed <= 4 * n * (64 + 5 / 8 * n / 8)
    assert work.useful > 0.75 * work.executed
    near = module.flops(config, masks.causal() & masks.window(128), D=2, T=n, S=n)["scores"]
    assert near.executed <= 4 * n * (64 + 3 * 8)


@pytest.mark.cpu
def test_neither_pass_holds_the_table_of_pairs():
    n = 2048
    for name in ("longformer", "strided"):
        module, config = make(name, **({"stride": 45} if name == "strided" else {}))
        x = jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32)

        def loss(*heads, module=module, config=config):
            return module.attend(config, *heads, masks.causal()).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * n * n / 4


@pytest.mark.parametrize(("name", "fields"), SETTINGS)
def test_a_second_call_is_the_same_program(name, fields, monkeypatch):
    found = []

    def record(query, key, value, mask, *, spans=(), block=0, return_lse=False):
        found[-1].extend((span.length, span.allowed) for span in spans)
        return (query, query[..., 0]) if return_lse else query

    monkeypatch.setattr(softmax, "attend", record)
    x = jax.ShapeDtypeStruct((1, T, 1, 2), jnp.float32)
    for _ in range(2):
        found.append([])
        module, config = make(name, **fields)
        jax.eval_shape(lambda x, m=module, c=config: m.attend(c, x, x, x, masks.causal()), x)
    first, second = found
    assert first
    assert first == second
    assert hash(tuple(first)) == hash(tuple(second))


def test_longformer_without_global_tokens_is_the_window():
    module, config = make("longformer", window=3, global_tokens=0)
    heads = np.random.default_rng(0).standard_normal((3, 2, 20, 1, 4)).astype(np.float32)
    got, want = (
        jax.jit(f, static_argnums=0)(chosen, *heads, masks.causal())
        for f, chosen in (
            (module.attend, config),
            (window.attend, window.Config(num_heads=1, window=3)),
        )
    )
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("longformer", {"window": 0}, "window=0 must be at least 1"),
        ("longformer", {"global_tokens": -1}, "global_tokens=-1 at least 0"),
        ("bigbird", {"window_blocks": 4}, "window_blocks=4 must be odd.*try 5"),
        ("bigbird", {"seed": -1}, "seed=-1 must be in 0 to"),
        ("bigbird", {"block": 0}, "block=0 must be at least 1"),
        ("blocks", {"layout": ()}, "must have rows"),
        ("blocks", {"layout": ("11", "1")}, "all of one length"),
        ("blocks", {"layout": ("12",)}, "holds '2': give 0 and 1"),
        ("blocks", {"layout": ("10", "00")}, "row 1 of layout=.* sets no block"),
        ("blocks", {"block": 0}, "block=0 must be at least 1"),
        ("strided", {"stride": 0}, "stride=0 must be at least 1, and block=0"),
        ("fixed", {"stride": 4, "summary": 5}, "summary=5 must be in 1 to stride=4"),
    ],
)
def test_illegal_settings_are_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        make(name, **fields)


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_another_sequence_are_refused(name):
    module, config = make(name)
    x = jnp.ones((1, 5, 1, 2))
    with pytest.raises(ValueError, match=f"{name} needs keys of the queries' own.*T=5, S=4"):
        module.attend(config, x, x[:, :4], x[:, :4], Mask())


def test_a_dense_table_is_run_where_patterns_save_nothing():
    for name in ("strided", "fixed"):
        module, config = make(name, stride=8)
        work = module.flops(config, Mask(), D=2, T=16, S=16)["scores"]
        assert work.executed == 4 * softmax.pairs(16, 16)
