"""cuDNN's attention in the core's place, without a GPU: the choice, the wrapper and what is lowered."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import biases, cost, masks
from tinyattn.attention._core import softmax, vendor
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

B, T, N, K, H = 2, 12, 4, 2, 8
HOPPER = (9, 0)
CAUSAL_WINDOW = Mask(lookback=4, lookahead=0)
TAKEN = {
    "no mask": (T, Mask()),
    "other keys": (8, Mask()),
    "causal": (T, masks.causal()),
    "causal window": (T, CAUSAL_WINDOW),
    "itself only": (T, Mask(lookback=0, lookahead=0)),
    "window of all": (T, Mask(lookback=T + 3, lookahead=0)),
}
LEFT = {
    "padding": masks.causal() & masks.padding(np.ones((B, T), bool)),
    "segments": masks.segments(np.zeros((B, T), int)),
    "window to both sides": masks.window(5),
    "all behind and some ahead": Mask(lookahead=2),
    "a window without an end": Mask(lookback=4),
    "rows that see nothing": Mask(lookback=-1, lookahead=0),
    "strictly behind": Mask(lookahead=-1),
}


def shapes(dtype=jnp.bfloat16, S=T, H=H, values=None):
    make = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
    return make((B, T, N, H)), make((B, S, K, H)), make((B, S, K, values or H))


@pytest.mark.parametrize("case", TAKEN)
def test_takes(case):
    S, mask = TAKEN[case]
    for dtype in (jnp.float16, jnp.bfloat16):
        assert vendor.applies(*shapes(dtype, S=S), mask, HOPPER)
    assert not vendor.applies(*shapes(jnp.float32, S=S), mask, HOPPER)


@pytest.mark.parametrize("case", LEFT)
def test_leaves_masks_to_the_core(case):
    assert not vendor.applies(*shapes(), LEFT[case], HOPPER)


@pytest.mark.parametrize(
    ("given", "mask", "capability"),
    [
        (shapes(), Mask(), None),
        (shapes(), Mask(), (7, 5)),
        (shapes(H=12), Mask(), HOPPER),
        (shapes(H=136), Mask(), HOPPER),
        (shapes(values=16), Mask(), HOPPER),
        (shapes(S=10), masks.causal(), HOPPER),
        (shapes(S=9), Mask(), HOPPER),
        ((*shapes()[:2], shapes(jnp.float16)[2]), Mask(), HOPPER),
    ],
)
def test_leaves_devices_and_heads_to_the_core(given, mask, capability):
    assert not vendor.applies(*given, mask, capability)


def test_no_device_here_has_the_kernel():
    assert jax.default_backend() != "cpu" or vendor.capability() is None


@pytest.fixture
def calls(monkeypatch):
    """A device with the kernel, whose place XLA takes, and float32 as half precision: its calls."""
    found, original, applies = [], jax.nn.dot_product_attention, vendor.applies

    def stand_in(*heads, implementation, **options):
        assert implementation == "cudnn"
        found.append(options)
        return original(*heads, implementation="xla", **options)

    def as_half(*given):
        half = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in given[:3]]
        return applies(*half, *given[3:])

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(vendor, "applies", as_half)
    monkeypatch.setattr(vendor, "capability", lambda: HOPPER)
    return found


def draws(S=T, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def same(function, *heads):
    """Of what this makes of the core and of the reference."""
    got, want = (jax.jit(function(f))(*heads) for f in (dense.attend, dense.reference))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=1e-5)


@pytest.mark.parametrize("case", TAKEN)
def test_equals_reference_in_outputs_and_gradients(case, calls):
    S, mask = TAKEN[case]

    def both(attend):
        def run(*given):
            config = dense.Config(num_kv_heads=K)
            out, pull = jax.vjp(lambda *heads: attend(config, *heads, mask), *given[:3])
            return out, pull(given[3])

        return run

    same(both, *draws(S))
    assert len(calls) == 1


def test_differentiable_twice(calls):
    *heads, weight = draws()

    def curvature(attend):
        def loss(*heads):
            out = attend(dense.Config(num_kv_heads=K), *heads, CAUSAL_WINDOW)
            return (jnp.square(out) * weight).sum()

        def slope(*heads):
            grads = jax.grad(loss, (0, 1, 2))(*heads)
            return sum((g * x).sum() for g, x in zip(grads, heads, strict=True))

        return jax.grad(slope, (0, 1, 2))

    same(curvature, *heads)
    assert calls


@pytest.mark.parametrize("mask", [masks.causal(), CAUSAL_WINDOW])
def test_nan_is_read_by_those_that_see_it(mask, calls):
    query, key, value, weight = draws()
    seen = mask.dense(T, T)[0, :, 5]

    @jax.jit
    def run(key):
        out, pull = jax.vjp(lambda *x: softmax.attend(query, *x, mask), key, value)
        return out, pull(weight.at[0, np.flatnonzero(seen)].set(0.0))

    # One head of the keys is read by two of the queries.
    (clean, clean_grads), (out, grads) = run(key), run(key.at[0, 5, 1].set(jnp.nan))
    assert len(calls) == 1
    assert np.isnan(out[0, seen, 2:]).all()
    for part in (np.s_[1], np.s_[0, ~seen], np.s_[0, :, :2]):
        np.testing.assert_array_equal(out[part], clean[part])
    for a, b in zip(clean_grads, grads, strict=True):
        np.testing.assert_array_equal(a[1], b[1])
        assert np.isfinite(b).all()


def test_options_stay_with_the_core(calls):
    query, key, value = shapes(jnp.float32)
    bias = biases.Linear(np.zeros(N, np.float32))
    rng = jax.random.PRNGKey(0)
    spans = (softmax.Spans(np.zeros((1, 1, 3, 1), int), 4),)
    for options in (
        {"cap": 1.0},
        {"bias": bias},
        {"sink": jnp.zeros(N)},
        {"dropout": 0.1, "rng": rng},
        {"block": 4},
        {"block": 4, "spans": spans},
    ):
        run = functools.partial(softmax.attend, mask=Mask(), **options)
        jax.eval_shape(run, query, key, value)
    # Values that lie side by side may be as wide as the keys.
    aside = jax.ShapeDtypeStruct((B, T, 2 * K, H // 2), jnp.float32)
    jax.eval_shape(functools.partial(softmax.attend, mask=Mask()), query, key, aside)
    assert not calls
    jax.eval_shape(functools.partial(softmax.attend, mask=Mask(), dropout=0.1), query, key, value)
    assert len(calls) == 1


def test_lowers_to_the_kernel_whose_products_are_those_declared(monkeypatch):
    """For a GPU that is not here, with a gradient and for many seeds at once."""
    private = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(private, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(private, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(private, "is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr(vendor, "capability", lambda: HOPPER)
    config = dense.Config(num_kv_heads=K)

    def run(*heads):
        out, pull = jax.vjp(lambda *x: dense.attend(config, *x, CAUSAL_WINDOW), *heads)
        return pull(out)

    traced = jax.jit(run).trace(*shapes())
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for part in ("__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("):
        assert part in text
    assert text.count("\\22mask_type\\22: \\22CAUSAL\\22") == 2
    assert text.count("\\22sliding_window_length\\22: 5") == 2
    many = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in shapes()]
    assert [x.shape for x in jax.eval_shape(jax.vmap(run), *many)] == [x.shape for x in many]

    forward = functools.partial(dense.attend, config, mask=CAUSAL_WINDOW)
    declared = dense.flops(config, CAUSAL_WINDOW, D=N * H, T=T, S=T)
    counted = cost.count(forward, *shapes())
    assert counted.products == B * (declared["scores"].executed + declared["mix"].executed)
    assert counted.elementwise is None
