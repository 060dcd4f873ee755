"""Products in factors: the same outputs and gradients as of the folded model, for fewer FLOPs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schemes import IDS, NETS, RNG, assert_trees, encoder, moved, normal_like, params_of, scheme

from tinyattn import affine, cost, weights
from tinyattn.attention.full import dense
from tinyattn.weights import presets

# d_in, d_out and tokens of one layer, and a rank.
I, O, T, R = 40, 30, 7, 2  # noqa: E741
COL, TIED = {"kind": "col"}, {"kind": "tied"}
LOW = {"d": {"kind": "const"}, "v": {"kind": "lowrank", "rank": 1, "std": 0.3}}
KERNELS = {
    "lora": presets.lora(1),
    "vera": presets.vera(1),
    "ia3 row": presets.ia3("row"),
    "ia3 col": presets.ia3("col"),
    "lora and ia3": presets.delta(LOW, {"d": COL, "v": TIED}),
}


class Dense(nn.Module):
    """Flax's own layers, one of them without a bias, computing in a dtype."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(12, dtype=self.dtype, name="block_0")(x))
        return nn.Dense(9, use_bias=False, dtype=self.dtype, name="block_1")(x)


def both(module, section, params, *inputs):
    """(output, gradient) in factors and folded, and how many kernels came in factors."""
    takes = affine.takes(module, *inputs)
    theta = moved(scheme(section).init(RNG, params))
    trainable, rest = weights.partition(theta)

    def loss(factored, trainable):
        theta = weights.combine(trainable, rest)
        params = weights.layers(theta, takes) if factored else weights.fold(theta)
        found.append(sum(isinstance(x, affine.Factored) for x in flat(params)))
        out = affine.apply(module, params, *inputs).astype(jnp.float32)
        return jnp.square(out - 1).sum(), out

    found = []
    runs = [
        jax.jit(jax.grad(functools.partial(loss, factored), has_aux=True))(trainable)
        for factored in (True, False)
    ]
    return *runs, found[0]


def flat(params):
    return jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, affine.Factored))


def close(a, b, tolerance=1e-5):
    def check(x, y, err_msg):
        # A key's bias adds the same to all scores of a query: its gradient is rounding.
        if "['key']['bias']" in err_msg:
            return
        scale = max(1e-3, np.abs(y).max())
        np.testing.assert_allclose(x / scale, y / scale, atol=tolerance, err_msg=err_msg)

    assert_trees(check, a, b)


@pytest.fixture
def double(x64, monkeypatch):
    """All in float64, attention by its reference, for the softmax core is made for float32."""
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    monkeypatch.setattr(dense, "attend", dense.reference)


@pytest.mark.parametrize(
    ("name", "scan"), [*((name, False) for name in KERNELS), ("lora and ia3", True)]
)
def test_our_encoder_equals_itself_folded(name, scan, double):
    module = encoder(scan=scan, num_layers=1 + scan)
    object.__setattr__(module.config, "dtype", "float64")
    params = normal_like(jax.eval_shape(module.init, RNG, IDS)["params"], 0)
    params = jax.tree.map(jnp.float64, params)
    factored, folded, count = both(module, KERNELS[name], params, IDS)
    close(factored, folded, 1e-10)
    assert count == (1 + scan) * 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["lora and ia3", "ia3 row"])
def test_flaxs_dense_layers_equal_themselves_folded(name, dtype):
    x = np.random.default_rng(1).standard_normal((2, 3, 10)).astype(np.float32)
    module = Dense(dtype)
    params = jax.jit(module.init)(RNG, x)["params"]
    factored, folded, count = both(module, KERNELS[name], params, x)
    close(factored, folded, {"float32": 1e-5, "bfloat16": 0.03}[dtype])
    assert count == 2


def test_kernels_of_several_axes_are_built(double):
    """Flax's attention has those; the two layers after it are taken in factors."""
    module, params = NETS["flax"](), jax.tree.map(jnp.float64, params_of("flax"))
    factored, folded, count = both(module, KERNELS["lora and ia3"], params, IDS)
    close(factored, folded, 1e-10)
    assert count == 8


X = jax.ShapeDtypeStruct((T, I), jnp.float32)


class One(nn.Module):
    @nn.compact
    def __call__(self, x):
        return affine.dense(x, {"block_0": O})[0]


def flops(section, *, dx=True, module=None, x=X):
    """Products of a forward and backward pass, in those of one forward product."""
    module = One() if module is None else module
    params = jax.eval_shape(module.init, RNG, x)["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda s: draw.standard_normal(s.shape).astype(s.dtype), params)
    theta = scheme(section).init(RNG, params) if section else params
    trainable, rest = weights.partition(theta)
    takes = affine.takes(module, x)

    def loss(trainable, x):
        params = weights.layers(weights.combine(trainable, rest), takes)
        return affine.apply(module, params, x).sum()

    wanted = (0, 1) if dx else 0
    counted = cost.count(jax.value_and_grad(loss, wanted), trainable, x).products
    return counted / (2 * T * I * O)


PAIR = R * (I + O) / (I * O)  # of a product of a low rank with the tokens; with no tokens, over T
TRAINED = {
    "dense": (None, 3),
    "w0 + d v": (presets.both("full", "full"), 3),
    "w0 + row v": (presets.both("row", "full"), 3),
    "lora": (presets.lora(R), 2 + 3 * PAIR),
    "vera": (presets.vera(R), 2 + 3 * PAIR),
    "ia3 row": (presets.ia3("row"), 2),
    "ia3 col": (presets.ia3("col"), 2),
    # Built once, whatever the number of tokens: AB, and the gradients of A and of B.
    "hira": (presets.hira(R), 3 + 3 * R / T),
    "loha": (presets.loha(R), 3 + 6 * R / T),
    # A rank at which the factors' products are no fewer than the kernel's own.
    "lora of a high rank": (presets.lora(6), 3 + 3 * 6 / T),
}


@pytest.mark.parametrize("case", TRAINED)
def test_training_costs_what_the_table_says(case):
    section, want = TRAINED[case]
    assert flops(section) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("case", "saved"), [("dense", 1), ("lora", 1 + PAIR * I / (I + O)), ("ia3 row", 1)]
)
def test_the_first_layer_pays_for_no_gradient_of_its_input(case, saved):
    section, want = TRAINED[case]
    assert flops(section, dx=False) == pytest.approx(want - saved, rel=1e-12)


class Three(nn.Module):
    """Three layers that read the same x, as queries, keys and values do."""

    @nn.compact
    def __call__(self, x):
        return jnp.concatenate(affine.dense(x, {"query": O, "key": O, "value": O}), -1)


@pytest.mark.parametrize(
    "frozen", [("query",), ("key",), ("query", "value"), ("query", "key", "value")]
)
def test_a_frozen_layer_beside_others_pays_for_no_gradient(frozen):
    def fix(rng, params):
        return params | {name: jax.tree.map(weights.Fixed, params[name]) for name in frozen}

    module = Three()
    params = jax.jit(module.init)(RNG, jnp.ones((T, I)))["params"]
    x = np.random.default_rng(1).standard_normal((T, I)).astype(np.float32)
    trainable, rest = weights.partition(fix(RNG, params))

    def loss(trainable, x):
        params = weights.fold(weights.combine(trainable, rest))
        return jnp.sin(module.apply({"params": params}, x)).sum()

    def plain(params, x):
        layers = [x @ params[n]["kernel"] + params[n]["bias"] for n in ("query", "key", "value")]
        return jnp.sin(jnp.concatenate(layers, -1)).sum()

    got = jax.grad(loss, (0, 1))(trainable, x)
    want = jax.grad(plain, (0, 1))(params, x)
    np.testing.assert_allclose(got[1], want[1], atol=1e-4)
    for name in set(params) - set(frozen):
        close(got[0][name], want[0][name])
    counted = cost.count(jax.value_and_grad(loss, (0, 1)), trainable, x).products
    assert counted == 2 * T * I * O * (9 - len(frozen))


def test_a_folded_model_is_the_dense_one():
    module, params = encoder(), params_of("encoder")
    theta = scheme(presets.lora(1)).init(RNG, params)

    def forward(params):
        return module.apply({"params": params}, IDS)

    folded = weights.fold(theta)
    assert str(jax.make_jaxpr(forward)(folded)) == str(jax.make_jaxpr(forward)(params))
    run = jax.jit(forward)
    np.testing.assert_array_equal(run(folded), run(params))


def test_symbolic_zeros_survive_vmap_scan_and_a_second_backward(x64):
    draw = np.random.default_rng(0)
    kernel, bias = jnp.asarray(draw.standard_normal((5, 5))), jnp.asarray(draw.standard_normal(5))
    x = jnp.asarray(draw.standard_normal((3, 2, 5)))

    def deep(function, kernel, x):
        def layer(x, _):
            return jnp.tanh(function(x, kernel, bias)), None

        return jax.lax.scan(layer, x, None, length=3)[0].sum()

    def penalty(function, kernel, x):
        return jnp.square(jax.grad(deep, 2)(function, kernel, x)).sum()

    def plain(x, kernel, bias):
        return x @ kernel + bias

    for argument in (1, 2):  # the kernel is frozen, or x is
        for function in (deep, penalty):
            got, want = (
                jax.vmap(jax.grad(functools.partial(function, f), argument - 1), (None, 0))(
                    kernel, x
                )
                for f in (affine.affine, plain)
            )
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
