"""The cost counter against closed forms, and that it refuses what it cannot count."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from tinyattn import cost
from tinyattn.cost import Flops, Uncountable, count

M = 8
UNIT = 2 * M**3  # FLOPs of one product of two [M, M] matrices


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


X = spec(M, M)
INDEX = spec(dtype=jnp.int32)


def layers(n, x, w):
    return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=n)[0]


def power(x, n):
    return lax.fori_loop(0, n, lambda _, c: c @ x, x)


def stepped(start, test, move):
    """A while loop over one integer with a product in its body."""

    def fn(x):
        return lax.while_loop(lambda c: test(c[0]), lambda c: (move(c[0]), c[1] @ x), (start, x))[1]

    return fn


def powers(x, stop, step, n):
    """A while loop whose bound, step and inner bound are all arguments."""
    start = (0, x)
    return lax.while_loop(lambda c: c[0] < stop, lambda c: (c[0] + step, power(c[1], n)), start)[1]


@jax.custom_vjp
def twice(x):
    return x @ x @ x


twice.defvjp(lambda x: (x @ x @ x @ x, x), lambda x, g: (g @ x @ x @ x @ x,))


@custom_partitioning
def partitioned(x):
    return x @ x


partitioned.def_partition(
    lambda *_: None, infer_sharding_from_operands=lambda *_: None, sharding_rule="i j -> i j"
)


def sharded(x):
    mesh = AbstractMesh((2, 3), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    @partial(jax.shard_map, mesh=mesh, in_specs=P(None, "a"), out_specs=P(), axis_names={"a"})
    def product(shard):
        return lax.psum(shard @ shard.T, "a")

    return product(x)


def tiled(x, y, **kwargs):
    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = x_ref[...] @ y_ref[...] + 1

    return pl.pallas_call(
        kernel,
        grid=(M // 2, M // 4),
        in_specs=[
            pl.BlockSpec((2, M), lambda i, j: (i, 0)),
            pl.BlockSpec((M, 4), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((2, 4), lambda i, j: (i, j)),
        out_shape=spec(M, M),
        interpret=True,
        **kwargs,
    )(x, y)


def conv(strides, padding="VALID", **kwargs):
    return lambda x, w: lax.conv_general_dilated(x, w, strides, padding, **kwargs)


def einsum(equation):
    return partial(jnp.einsum, equation)


PRODUCTS = {
    "matmul": (jnp.matmul, (spec(3, 5), spec(5, 7)), 2 * 3 * 5 * 7),
    "batch": (jnp.matmul, (spec(2, 4, 3, 5), spec(2, 4, 5, 7)), 2 * 8 * 3 * 5 * 7),
    "vector": (jnp.matmul, (spec(5), spec(5)), 2 * 5),
    "empty": (jnp.matmul, (spec(0, 5), spec(5, 7)), 0),
    "scores": (einsum("btnh,bsnh->bnts"), (spec(2, 3, 5, 7), spec(2, 4, 5, 7)), 2 * 2 * 5 * 12 * 7),
    "two contracted": (einsum("btnh,nhd->btd"), (spec(2, 3, 5, 7), spec(5, 7, 4)), 2 * 6 * 35 * 4),
    "outer": (einsum("i,j->ij"), (spec(3), spec(5)), 2 * 3 * 5),
    "bfloat16": (jnp.matmul, (spec(3, 5, dtype=jnp.bfloat16), spec(5, 7)), 2 * 3 * 5 * 7),
    "complex": (jnp.matmul, (spec(3, 5, dtype=jnp.complex64), spec(5, 7)), 8 * 3 * 5 * 7),
    "no product": (jnp.cumsum, (X,), 0),
    "vmap": (jax.vmap(jnp.matmul), (spec(4, M, M), spec(4, M, M)), 4 * UNIT),
    "jit": (jax.jit(lambda x: jax.jit(jnp.matmul)(x, x) @ x), (X,), 2 * UNIT),
    "scan": (partial(layers, 12), (X, X), 12 * UNIT),
    "scan unrolled": (
        lambda x: lax.scan(lambda c, _: (c @ x, 0), x, length=6, unroll=3),
        (X,),
        6 * UNIT,
    ),
    "scan of scans": (
        lambda x, w: lax.map(lambda y: layers(3, y, w), x),
        (spec(4, M, M), X),
        12 * UNIT,
    ),
    "map in batches": (
        partial(lax.map, lambda y: y @ y, batch_size=4),
        (spec(10, M, M),),
        10 * UNIT,
    ),
    "cond": (
        lambda p, x: lax.cond(p, lambda: x @ x @ x, lambda: x @ x),
        (spec(dtype=bool), X),
        2 * UNIT,
    ),
    "switch": (
        lambda i, x: lax.switch(i, [lambda: x, lambda: x @ x, lambda: x + 1]),
        (INDEX, X),
        UNIT,
    ),
    "scan in cond": (
        lambda p, x: lax.cond(p, lambda: layers(5, x, x), lambda: x @ x),
        (spec(dtype=bool), X),
        5 * UNIT,
    ),
    "fori": (lambda x: power(x, 12), (X,), 12 * UNIT),
    "fori bound of numpy": (lambda x: power(x, np.int32(12)), (X,), 12 * UNIT),
    "fori bound in while": (lambda x: power(x, jnp.int32(12)), (X,), 12 * UNIT),
    "fori bound through jit": (lambda x: jax.jit(power)(x, 12), (X,), 12 * UNIT),
    "fori bound through scan": (
        lambda x: lax.scan(lambda c, _: (jax.jit(power)(c, 12), c), x, length=3),
        (X,),
        36 * UNIT,
    ),
    "fori bound of scan's input": (
        lambda x: lax.scan(lambda c, y: (jax.jit(power)(y, 12), None), x, x[None]),
        (X,),
        12 * UNIT,
    ),
    "fori bound computed": (
        lambda x: jax.jit(lambda x, n: power(x, 2 * n - 4))(x, 8),
        (X,),
        12 * UNIT,
    ),
    "fori under vmap": (jax.vmap(lambda x: jax.jit(power)(x, 12)), (spec(3, M, M),), 36 * UNIT),
    "fori under jvp": (
        lambda x: jax.jvp(lambda y: jax.jit(power)(y, 3), (x,), (x,)),
        (X,),
        9 * UNIT,
    ),
    "while": (stepped(0, lambda i: i < 10, lambda i: i + 4), (X,), 3 * UNIT),
    "while exact": (stepped(0, lambda i: i < 12, lambda i: i + 4), (X,), 3 * UNIT),
    "while up to": (stepped(0, lambda i: i <= 12, lambda i: 4 + i), (X,), 4 * UNIT),
    "while down": (stepped(9, lambda i: i > 0, lambda i: i - 3), (X,), 3 * UNIT),
    "while down to": (stepped(9, lambda i: i >= 0, lambda i: i - 3), (X,), 4 * UNIT),
    "while reversed": (stepped(0, lambda i: lax.gt(10, i), lambda i: i + 1), (X,), 10 * UNIT),
    "while never": (stepped(5, lambda i: i < 5, lambda i: i - 1), (X,), 0),
    "while of constants": (lambda x: jax.jit(powers)(x, 12, 5, 2), (X,), 3 * 2 * UNIT),
    "grad of a scan": (jax.grad(lambda x, w: layers(12, x, w).sum(), (0, 1)), (X, X), 36 * UNIT),
    "custom_vjp": (twice, (X,), 2 * UNIT),
    "custom_vjp under grad": (jax.grad(lambda x: twice(x).sum()), (X,), 7 * UNIT),
    "custom_jvp": (lambda x: jax.nn.relu(x @ x), (X,), UNIT),
    "remat": (jax.checkpoint(lambda x: x @ x), (X,), UNIT),
    "custom_partitioning": (partitioned, (X,), UNIT),
    "conv 1d": (conv((1,)), (spec(2, 3, 10), spec(5, 3, 4)), 2 * (2 * 5 * 7) * (3 * 4)),
    "conv strided": (conv((2, 3)), (spec(1, 3, 9, 9), spec(5, 3, 3, 3)), 2 * (5 * 4 * 3) * 27),
    "conv padded": (conv((1, 1), "SAME"), (spec(1, 3, 6, 6), spec(5, 3, 3, 3)), 2 * (5 * 36) * 27),
    "conv groups": (
        conv((1,), feature_group_count=2),
        (spec(1, 6, 10), spec(4, 3, 3)),
        2 * (4 * 8) * (3 * 3),
    ),
    "conv depthwise": (
        conv((1,), feature_group_count=6, dimension_numbers=("NWC", "WIO", "NWC")),
        (spec(2, 10, 6), spec(3, 1, 6)),
        2 * (2 * 8 * 6) * 3,
    ),
    "conv batch groups": (
        conv((1,), batch_group_count=2),
        (spec(4, 3, 10), spec(6, 3, 3)),
        2 * (2 * 6 * 8) * (3 * 3),
    ),
    "conv dilated": (
        conv((1,), rhs_dilation=(3,)),
        (spec(1, 2, 10), spec(5, 2, 3)),
        2 * (5 * 4) * (2 * 3),
    ),
    "conv transposed": (
        conv((1,), ((2, 2),), lhs_dilation=(2,)),
        (spec(1, 2, 5), spec(4, 2, 3)),
        2 * (4 * 11) * (2 * 3),
    ),
    "ragged rows": (
        lax.ragged_dot,
        (spec(9, 5), spec(4, 5, 7), spec(4, dtype=jnp.int32)),
        2 * 9 * 5 * 7,
    ),
    "shard_map": (sharded, (X,), 2 * (2 * M * M * (M // 2))),
    "pallas": (tiled, (X, X), UNIT),
    "pallas ignores its estimate": (
        partial(tiled, cost_estimate=pl.CostEstimate(flops=1, transcendentals=0, bytes_accessed=1)),
        (X, X),
        UNIT,
    ),
    "vmapped pallas": (jax.vmap(tiled), (spec(3, M, M), spec(3, M, M)), 3 * UNIT),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    fn, args, expected = PRODUCTS[name]
    assert count(fn, *args).products == expected


def test_a_fourier_transform_has_no_product_and_no_exact_count():
    x = jnp.ones((3, 5))
    assert cost.count(jax.grad(lambda x: jnp.fft.ifft2(x).real.sum()), x) == (0, None)
    two = cost.count(lambda x: jnp.fft.fft(x).real @ jnp.ones((5, 2)), x)
    assert two == (2 * 3 * 5 * 2, None)


def test_gradient_of_ragged_dot_counts_both_factors():
    args = spec(9, 5), spec(4, 5, 7), spec(4, dtype=jnp.int32)
    gradient = jax.grad(lambda x, w, sizes: lax.ragged_dot(x, w, sizes).sum(), (0, 1))
    assert count(gradient, *args).products == 3 * (2 * 9 * 5 * 7)


@pytest.mark.parametrize("remat, expected", [(False, 24), (True, 32)])
def test_recomputation_counts_as_written(remat, expected):
    def block(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w)

    apply = jax.checkpoint(block) if remat else block

    def loss(x, w):
        for layer in range(4):
            x = apply(x, w[layer])
        return x.sum()

    assert count(jax.grad(loss, (0, 1)), X, spec(4, M, M)).products == expected * UNIT


ELEMENTWISE = {
    "arithmetic": (lambda x: jnp.exp(x) * 2 + 1, (spec(5),), 15),
    "relu": (jax.nn.relu, (spec(3, 5),), 15),
    "softmax": (lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), (spec(3, 5),), 4 * 15),
    "where": (lambda x: jnp.where(x > 0, x, 0), (spec(5),), 10),
    "bits": (lambda i: (i << 3) ^ ~(i & 7), (spec(5, dtype=jnp.uint32),), 20),
    "scalar operand": (lambda x, y: x * (y + 1), (spec(5), spec()), 6),
    "movement": (lambda x: x.T.reshape(-1)[::2].astype(jnp.bfloat16)[None], (X,), 0),
    "gather": (lambda x, i: jnp.take(x, i, axis=0, mode="clip"), (X, spec(3, dtype=jnp.int32)), 0),
    "sum": (lambda x: x.sum(0), (spec(3, 5),), 15),
    "argmax": (partial(jnp.argmax, axis=-1), (spec(3, 5),), 15),
    "cumsum": (partial(jnp.cumsum, axis=0), (spec(3, 5),), 15),
    # Four sums, and the additions by which it interleaves padded halves.
    "associative_scan": (partial(lax.associative_scan, jnp.add), (spec(4),), 4 + 6),
    "sort": (jnp.sort, (spec(3, 5),), 15),
    "argsort": (jnp.argsort, (spec(3, 5),), 15),
    "top_k": (lambda x: lax.top_k(x, 2), (spec(3, 5),), 15),
    "scatter": (lambda x, u: lax.dynamic_update_slice(x, u, (0,)), (spec(9), spec(4)), 0),
    "custom reduction": (
        lambda x: lax.reduce(x, 1.0, lambda a, b: a * b + a, (0,)),
        (spec(6),),
        12,
    ),
    "pooling": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (3,), (2,), "SAME"),
        (spec(10),),
        15,
    ),
    "random bits": (lambda r: jax.random.bits(r, (3, 5)), (jax.random.key(0),), 15),
    "scan": (lambda x: lax.scan(lambda c, _: (c * 2 + 1, None), x, length=12)[0], (spec(5),), 120),
    "while": (
        lambda x: lax.while_loop(lambda i: i < 7, lambda i: i + 1, 0) * x,
        (spec(5),),
        8 + 7 + 5,
    ),
    "dearest branch": (
        lambda p, x: lax.cond(p, lambda: x + 1, lambda: x * 2 + 1),
        (spec(dtype=bool), spec(5)),
        10,
    ),
    "product alone": (jnp.matmul, (X, X), 0),
    "pallas": (tiled, (X, X), M * M),
    "shard_map": (sharded, (X,), 2 * M * M),
    "unknown trips": (
        lambda n, x: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, x)),
        (INDEX, spec(5)),
        None,
    ),
    "unknown trips in a scan": (
        lambda x: lax.scan(
            lambda c, _: (lax.while_loop(lambda y: y.sum() > 1, lambda y: y / 2, c), None),
            x,
            length=3,
        ),
        (spec(5),),
        None,
    ),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name):
    fn, args, expected = ELEMENTWISE[name]
    assert count(fn, *args).elementwise == expected


def test_scatter_add_counts_its_updates():
    dims = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    args = spec(9, 4), spec(3, 1, dtype=jnp.int32), spec(3, 4)
    assert count(partial(lax.scatter_add, dimension_numbers=dims), *args) == Flops(0, 12)


def test_dearest_branch_is_one_branch():
    def dear(p, x):
        return lax.cond(p, lambda: x @ x, lambda: jnp.exp(jnp.exp(x)))

    assert count(dear, spec(dtype=bool), X) == Flops(UNIT, 0)


def test_arrays_specs_and_jaxprs_count_alike():
    x = np.ones((M, M), np.float32)
    closed = jax.make_jaxpr(jnp.matmul)(x, x)
    counts = {count(jnp.matmul, X, X), count(jnp.matmul, x, x), count(jnp.matmul, X, b=X)}
    assert counts | {cost.count_jaxpr(closed), cost.count_jaxpr(closed.jaxpr)} == {Flops(UNIT, 0)}


def test_size_does_not_matter():
    big = spec(10**6, 10**6)
    assert count(jnp.matmul, big, big).products == 2 * 10**18


class Model(nn.Module):
    """One Transformer block with what ordinary models hold; V=11, T=6, D=12, N=3, F=20."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 12)(tokens)
        angle = jnp.arange(6)[:, None] / 100 ** (jnp.arange(6) / 6)
        first, second = jnp.split(x, 2, -1)
        x = jnp.concatenate([first * jnp.cos(angle), second * jnp.sin(angle)], -1)
        mask = nn.make_causal_mask(tokens)
        x += nn.MultiHeadDotProductAttention(3, dropout_rate=0.1, deterministic=False)(
            nn.LayerNorm()(x), mask=mask
        )
        y = nn.gelu(nn.Dense(20)(nn.RMSNorm()(x)), approximate=False)
        y = nn.Dropout(0.1, deterministic=False)(nn.gelu(y))
        x += checkpoint_name(nn.Dense(12)(y), "ffn")
        return nn.Dense(11)(lax.optimization_barrier(x))


FORWARD = 2 * 6 * (4 * 12 * 12 + 2 * 12 * 20 + 12 * 11) + 2 * 2 * 6 * 6 * 12


def ordinary_step():
    model = Model()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    tokens = spec(2, 6, dtype=jnp.int32)

    def forward(params, tokens, rng):
        return model.apply(params, tokens, rngs={"dropout": rng})

    def step(params, state, tokens, rng):
        def loss(params):
            logits = forward(params, tokens, rng)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    rng = jax.random.key(0)
    params = jax.eval_shape(model.init, {"params": rng, "dropout": rng}, tokens)
    return forward, step, params, jax.eval_shape(optimizer.init, params), tokens, rng


def test_an_ordinary_training_step_counts():
    forward, step, params, state, tokens, rng = ordinary_step()
    assert count(forward, params, tokens, rng).products == 2 * FORWARD
    executed = count(step, params, state, tokens, rng)
    assert executed.products == 3 * 2 * FORWARD
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert executed.elementwise > 10 * weights  # AdamW alone does more than this


ORDINARY = {
    "logsumexp": (jax.nn.logsumexp, (X,)),
    "one_hot": (lambda i: jax.nn.one_hot(i, 5), (spec(4, dtype=jnp.int32),)),
    "permutation": (lambda r: jax.random.permutation(r, 7), (jax.random.key(0),)),
    "raw rng": (lambda r: jax.random.normal(r, (3,)), (jax.random.PRNGKey(0),)),
    "split": (
        lambda r: jax.random.categorical(jax.random.fold_in(r, 3), jnp.ones(5)),
        (jax.random.key(0),),
    ),
    "choice": (
        lambda r: jax.random.truncated_normal(jax.random.split(r)[0], -2, 2, (4,)),
        (jax.random.key(0),),
    ),
    "segment_sum": (lambda x, i: jax.ops.segment_sum(x, i, 4), (X, spec(M, dtype=jnp.int32))),
    "scatter ops": (lambda x: x.at[0].max(1).at[1].mul(2).at[2].set(0).at[3].apply(jnp.sin), (X,)),
    "gather of a batch": (
        lambda x, i: jnp.take_along_axis(x, i, -1),
        (X, spec(M, 3, dtype=jnp.int32)),
    ),
    "reduce_precision": (lambda x: lax.stop_gradient(lax.reduce_precision(x, 8, 7)), (X,)),
    "fake quantisation": (lambda x: jnp.clip(jnp.round(x / 0.1), -128, 127).astype(jnp.int8), (X,)),
    "integers": (lambda i: (i // 3 % 5, lax.population_count(i)), (spec(4, dtype=jnp.int32),)),
    "max pooling": (jax.grad(lambda x: nn.max_pool(x, (2, 2)).sum()), (spec(1, 4, 4, 1),)),
    "references": (lambda x: jax.new_ref(x)[...], (X,)),
    "callback": (lambda x: jax.debug.print("{}", x) or x, (X,)),
    "platform": (lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos), (X,)),
    "sdpa": (lambda x: jax.nn.dot_product_attention(x, x, x, is_causal=True), (spec(1, 4, 2, 8),)),
    "logdet": (lambda x: jnp.cumprod(lax.cummax(x)) + lax.cumlogsumexp(x), (spec(5),)),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_operations_count(name):
    fn, args = ORDINARY[name]
    assert count(fn, *args).elementwise is not None


unheard_of = Primitive("unheard_of")
unheard_of.def_abstract_eval(lambda x, **_: x)

REFUSED = {
    "svd": (jnp.linalg.svd, (X,), "'svd' in jit(svd)"),
    "cholesky": (lax.linalg.cholesky, (X,), "'cholesky'"),
    "triangular_solve": (lambda x: lax.linalg.triangular_solve(x, x), (X,), "'triangular_solve'"),
    "eigh": (jnp.linalg.eigh, (X,), "'eigh'"),
    "solve": (jnp.linalg.solve, (X, X), "'lu'"),
    "pure_callback": (lambda x: jax.pure_callback(np.sin, x, x), (X,), "'pure_callback'"),
    "ffi": (lambda x: jax.ffi.ffi_call("my_target", X)(x), (X,), "'ffi_call'"),
    "unknown": (unheard_of.bind, (X,), "'unheard_of' in the outermost jaxpr"),
    "unknown with a jaxpr": (
        lambda x: unheard_of.bind(x, jaxpr=jax.make_jaxpr(jnp.sin)(1.0)),
        (X,),
        "no table of tinyattn.cost lists it. Remedy: give tinyattn.cost.RULES['unheard_of']",
    ),
    "unknown inside": (
        jax.jit(
            lambda x: lax.scan(
                lambda c, _: (lax.cond(True, jnp.sin, unheard_of.bind, c), 0), x, length=2
            )
        ),
        (X,),
        "in jit(<lambda>) > scan > cond[0]: ",
    ),
    "bound of an argument": (
        power,
        (X, INDEX),
        "'while' in the outermost jaxpr: it holds a matrix",
    ),
    "bound computed": (
        lambda x: power(x, jnp.argmax(x)),
        (X,),
        "lax.fori_loop over Python integers",
    ),
    "bound that a scan carries": (
        lambda x: lax.scan(
            lambda c, _: ((c[0] + 1, jax.jit(power)(c[1], c[0])), None), (3, x), jnp.zeros(2)
        ),
        (X,),
        "'while' in scan > jit(power): ",
    ),
    "data-dependent": (
        lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ x, x),
        (X,),
        "'while'",
    ),
    "product in the condition": (
        lambda x: lax.while_loop(lambda c: (c @ x).sum() < 9, lambda c: c + 1, x),
        (X,),
        "'while'",
    ),
    "never ends": (stepped(0, lambda i: i < 9, lambda i: i - 1), (X,), "'while'"),
    "stands still": (stepped(0, lambda i: i < 9, lambda i: i), (X,), "'while'"),
    "not a constant step": (stepped(1, lambda i: i < 9, lambda i: i + i), (X,), "'while'"),
    "step from the left": (stepped(1, lambda i: i < 9, lambda i: 9 - i), (X,), "'while'"),
    "not an order": (stepped(0, lambda i: i != 9, lambda i: i + 2), (X,), "'while'"),
    "wraps around": (
        stepped(np.int8(0), lambda i: i < 127, lambda i: i + np.int8(50)),
        (X,),
        "'while'",
    ),
    "float counter": (stepped(0.0, lambda i: i < 1.0, lambda i: i + 0.1), (X,), "'while'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    fn, args, message = REFUSED[name]
    with pytest.raises(Uncountable) as error:
        count(fn, *args)
    assert message in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("name", ["jit", "pjit", "closed_call", "remat", "checkpoint", "remat2"])
@pytest.mark.parametrize("parameter", ["jaxpr", "call_jaxpr"])
def test_calls_of_any_release(name, parameter):
    call = Primitive(name)
    call.def_abstract_eval(lambda x, **_: x)
    body = jax.make_jaxpr(jnp.matmul)(X, X)
    assert count(lambda x: call.bind(x, **{parameter: body}), X).products == UNIT
    with pytest.raises(Uncountable, match="none of its parameters"):
        count(lambda x: call.bind(x, another=body), X)


def test_rules_extend_and_replace(monkeypatch):
    monkeypatch.setitem(cost.RULES, "unheard_of", lambda eqn: Flops(7, eqn.invars[0].aval.size))

    def twelve(x):
        return lax.scan(lambda c, _: (unheard_of.bind(c), None), x, length=12)

    assert count(twelve, X) == Flops(12 * 7, 12 * M * M)
    monkeypatch.setitem(cost.RULES, "dot_general", lambda eqn: Flops(1, 0))
    assert count(jnp.matmul, X, X) == Flops(1, 0)


@pytest.mark.parametrize(
    "layout, query, key", [(0, (2, 6, 3, 8), (2, 5, 1, 8)), (1, (2, 3, 6, 8), (2, 1, 5, 8))]
)
def test_fused_attention_counts_every_pair(layout, query, key):
    args = spec(*query), spec(*key), spec(*key)
    for direction, products in (("fwd", 2), ("bwd", 5)):
        kernel = Primitive(f"dot_product_attention_{direction}_wrapper")
        kernel.def_abstract_eval(lambda q, *_, **__: q)
        fused = count(partial(kernel.bind, layout=layout), *args)
        assert fused == Flops(products * 2 * (2 * 3 * 6 * 5) * 8, None)


def test_no_primitive_is_in_two_tables():
    from tinyattn.cost import counter, primitives

    tables = [primitives.ELEMENTWISE, primitives.REDUCTIONS, primitives.WINDOWS, primitives.FREE]
    tables += [primitives.COMBINERS, primitives.CALLS, cost.RULES.keys(), counter._CONTROL.keys()]
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.fixture(scope="module")
def compiled():
    """Programs of 12 products of [64, 64], and one that donates its argument."""
    x = spec(64, 64)

    def unrolled(x, w):
        for _ in range(12):
            x = jnp.tanh(x @ w)
        return x

    programs = {
        "scan": (jax.jit(partial(layers, 12)), (x, x)),
        "unrolled": (jax.jit(unrolled), (x, x)),
        "donated": (jax.jit(lambda x: x + 1, donate_argnums=0), (x,)),
        "kept": (jax.jit(lambda x: x + 1), (x,)),
    }
    return {name: (fn, args, fn.lower(*args).compile()) for name, (fn, args) in programs.items()}


@pytest.mark.cpu
def test_compiler_counts_a_scan_once_and_we_do_not(compiled):
    unit = 2 * 64**3
    ours = {name: count(fn, *args).products / unit for name, (fn, args, _) in compiled.items()}
    theirs = {name: cost.compiler_flops(program) / unit for name, (*_, program) in compiled.items()}
    assert ours["scan"] == ours["unrolled"] == 12
    assert 1 <= theirs["scan"] < 1.1
    assert 12 <= theirs["unrolled"] < 12.2  # one tanh and its polynomial an element at most


@pytest.mark.cpu
def test_peak_bytes_leaves_out_what_is_donated(compiled):
    assert cost.peak_bytes(compiled["kept"][2]) == 64 * 64 * 4
    assert cost.peak_bytes(compiled["donated"][2]) == 0
    assert cost.peak_bytes(compiled["unrolled"][2]) >= 64 * 64 * 4


class Backend:
    """A compiled program whose backend reports what it is told to."""

    def __init__(self, report):
        self.cost_analysis = self.memory_analysis = lambda: report


@pytest.mark.parametrize(
    "report, flops",
    [
        (None, None),
        ({}, None),
        ([], None),
        ({"flops": -1.0}, None),
        ([{"flops": 3}], 3),
        ({"flops": 0.0}, 0),
    ],
)
def test_compiler_flops_of_other_backends(report, flops):
    assert cost.compiler_flops(Backend(report)) == flops


def test_peak_bytes_where_the_backend_gives_none():
    assert cost.peak_bytes(Backend(None)) is None


def test_latency_orders_and_interleaves():
    x = jnp.ones((256, 256))
    calls = []

    def thunk(name, n):
        fn = jax.jit(lambda x: layers(n, x, x))
        return lambda: calls.append(name) or fn(x)

    fns = {"fast": thunk("fast", 1), "slow": thunk("slow", 200)}
    timed = cost.latency(fns, seconds=0.05, rounds=5)
    fast, slow = timed["fast"], timed["slow"]
    assert fast["rounds"] >= 5
    assert calls == ["fast"] * 2 + ["slow"] * 2 + ["fast", "slow"] * fast["rounds"]
    assert fast["latency_ratio"] == 1
    assert slow["latency_ratio_low"] <= slow["latency_ratio"] <= slow["latency_ratio_high"]
    assert slow["latency_ratio"] > 2
    assert slow["latency_seconds"] > 2 * fast["latency_seconds"] > 0


def test_latency_needs_something_to_time():
    with pytest.raises(ValueError, match="rounds=5"):
        cost.latency({})
    with pytest.raises(ValueError, match="rounds=0"):
        cost.latency({"a": lambda: 0}, rounds=0)


def test_columns_have_distinct_keys_and_are_described():
    keys = [column.key for column in cost.COLUMNS]
    assert len(set(keys)) == len(keys) == 12
    assert all(column.unit and column.heading and column.description for column in cost.COLUMNS)
    timed = cost.latency({"a": lambda: 0}, seconds=0, rounds=1)["a"]
    assert {key for key in keys if key.startswith("latency")} <= timed.keys()
    assert math.isfinite(timed["latency_seconds"])
