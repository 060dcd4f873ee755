"""The encoder: equal to plain NumPy, scanned or not; padding, positions, pools, refusals."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, cost, initializers, model
from tinyattn.model import _layers, _transformer

# All different, so that no transposition can hide.
B, T, N, D, F, L, CLASSES = 3, 7, 4, 16, 10, 2, 5
SIZES = {"width": D, "ffn_width": F, "num_layers": L, "num_classes": CLASSES, "max_length": 9}
PATCHES = {"inputs": "patches", "patch": 2}
TOKENS = {"inputs": "tokens", "vocab_size": 11, "patch": 1}
RNG = jax.random.PRNGKey(3)
DRAW = np.random.default_rng(0)
IDS = DRAW.integers(0, 11, (B, T))
LENGTHS = np.array([4, 7, 6])
VALID = np.arange(T) < LENGTHS[:, None]
IMAGES = DRAW.standard_normal((B, 4, 6, 2)).astype(np.float32)


class Net(NamedTuple):
    """A model, parameters none of which is 0 or 1, and its compiled `apply` over them."""

    encoder: model.Transformer
    params: Any

    @property
    def config(self):
        return self.encoder.config

    def apply(self, *args, **kwargs):
        return compiled(self.encoder)(self.params, *args, **kwargs)


def encoder(variant="dense", **changes):
    fields = {"num_heads": N, **attention.load(variant).CASES[0]}
    section = SIZES | TOKENS | {"attention": attention.spec(variant, **fields)} | changes
    return model.build(model.spec(**section))


def net(*args, **changes):
    made = encoder(*args, **changes)
    inputs = IDS if made.config.inputs == "tokens" else IMAGES
    shapes = jax.eval_shape(made.init, RNG, inputs)["params"]
    draw = np.random.default_rng(1)
    draws = jax.tree.map(lambda x: 0.4 * draw.standard_normal(x.shape).astype(x.dtype), shapes)
    return Net(made, draws)


# Variants unlike one another, for what every variant passes through alike.
FEW = ("dense", "window", "linear")

# By the repr of the config, as a section within it cannot be hashed.
PROGRAMS = {}


def compiled(encoder):
    def apply(params, *args, **kwargs):
        return encoder.apply({"params": params}, *args, **kwargs)

    return PROGRAMS.setdefault(repr(encoder.config), jax.jit(apply))


def close(got, want, atol=1e-5, **kwargs):
    np.testing.assert_allclose(got, want, atol=atol, rtol=atol, **kwargs)


# The encoder again, from the papers' formulas, in NumPy and float64.


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turned(x):
    """[t, H]: pairs of features as complex numbers, times e^(i t w)."""
    half = x.shape[1] // 2
    w = 10_000.0 ** (-np.arange(half) / half)
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * np.arange(len(x))[:, None] * w)
    return np.concatenate([z.real, z.imag], axis=1)


def attended(config, x, p, valid):
    """One example [t, D] with the keys `valid` [t]."""
    heads, kv_heads = config.attention["num_heads"], config.attention["num_kv_heads"]
    H, turn = D // heads, turned if config.positions == "rotary" else np.asarray
    query, key, value = (linear(x, p[name]) for name in ("query", "key", "value"))
    outs = []
    for n in range(heads):
        own = slice(n * H, (n + 1) * H)
        k = n // (heads // kv_heads)
        shared = slice(k * H, (k + 1) * H)
        scores = turn(query[:, own]) @ turn(key[:, shared]).T / np.sqrt(H)
        weights = np.where(valid, np.exp(scores), 0)
        outs.append(weights / weights.sum(1, keepdims=True) @ value[:, shared])
    return linear(np.concatenate(outs, axis=1), p["out"])


def expected(config, params, inputs, valid, types=None):
    """The logits of one example: ids [T], or an image [height, width, channels]."""
    p = params["embedding"]
    if config.inputs == "tokens":
        x = p["tokens"]["embedding"][inputs] + p["token_types"]["embedding"][types]
    else:
        s = config.patch
        corners = [(i, j) for i in range(0, 4, s) for j in range(0, 6, s)]
        x = np.stack([inputs[i : i + s, j : j + s].reshape(-1) for i, j in corners])
        x = linear(x, p["patches"])
    if config.pool == "cls":
        x, valid = np.concatenate([p["cls"][0], x]), np.concatenate([[True], valid])
    if config.positions == "learned":
        x = x + p["positions"][: len(x)]
    if config.embed_width:
        x = linear(x, p["project"])
    for i in range(config.num_layers):
        p = params[f"block_{i}"]
        x = x + attended(config, norm(x, p["norm_attention"]), p["attention"], valid)
        hidden = gelu(linear(norm(x, p["norm_ffn"]), p["ffn"]["up"]))
        x = x + linear(hidden, p["ffn"]["down"])
    x = norm(x, params["norm"])
    pooled = x[valid].mean(0) if config.pool == "mean" else x[0]
    if config.pooler:
        pooled = np.tanh(linear(pooled, params["pooler"]))
    return linear(pooled, params["head"])


def grouped(K):
    return attention.spec("dense", num_heads=N, num_kv_heads=K)


@pytest.mark.parametrize("scan", [False, True])
def test_equals_numpy_on_tokens(scan):
    """Factorised embeddings, token types, class token, pooler, grouped heads, padding."""
    parts = {"token_types": 2, "embed_width": 6, "pool": "cls", "pooler": True}
    rich = net(**parts, attention=grouped(2), scan=scan)
    types = DRAW.integers(0, 2, (B, T))
    double = jax.tree.map(np.float64, rich.params)
    got = rich.apply(IDS, VALID, types)
    assert got.shape == (B, CLASSES) and got.dtype == jnp.float32
    for b in range(B):
        close(got[b], expected(rich.config, double, IDS[b], VALID[b], types[b]))


@pytest.mark.parametrize("size", [1, 0.01])
def test_equals_numpy_on_patches(size):
    """Rotary positions, the mean over tokens that are not padding; a small stream shows each epsilon."""
    rich = net(inputs="patches", patch=2, positions="rotary", attention=grouped(4))
    writes = ("patches", "out", "down")
    small = jax.tree_util.tree_map_with_path(
        lambda path, x: x * np.float32(size if path[-2].key in writes else 1), rich.params
    )
    rich = rich._replace(params=small)
    double = jax.tree.map(np.float64, rich.params)
    valid = np.arange(6) < np.array([6, 1, 4])[:, None]
    got = rich.apply(IMAGES, valid)
    for b in range(B):
        close(got[b], expected(rich.config, double, IMAGES[b], valid[b]))


@pytest.mark.parametrize("name", FEW)
def test_scan_changes_no_number(name):
    nets = [net(name, dropout=0.3, scan=scan) for scan in (False, True)]
    weight = DRAW.standard_normal((B, CLASSES))

    def outputs_and_gradients(made):
        def loss(params, rng):
            logits = made.encoder.apply({"params": params}, IDS, VALID, rng=rng)
            return (weight * logits).sum(), logits

        lowered = jax.jit(jax.grad(loss, has_aux=True)).lower(made.params, RNG)
        # Compiling is most of this file's time.
        return lowered.compile({"xla_backend_optimization_level": 0})(made.params, RNG)

    (grads, logits), (scanned_grads, scanned_logits) = map(outputs_and_gradients, nets)
    close(scanned_logits, logits)
    jax.tree.map(functools.partial(close, atol=1e-4), scanned_grads, grads)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        leaf = jax.tree_util.keystr(path, simple=True, separator="/")
        # A softmax does not see the key's bias, which moves all scores of a query alike.
        assert np.abs(grad).max() > 1e-4 or leaf.endswith("attention/key/bias"), leaf

    counts = [cost.count(n.encoder.apply, {"params": n.params}, IDS, VALID) for n in nets]
    assert counts[0].products == counts[1].products


def test_scan_changes_no_initial_value():
    inits = [encoder(scan=scan).init for scan in (False, True)]
    programs = [str(jax.make_jaxpr(init)(RNG, IDS)) for init in inits]
    assert programs[0] == programs[1]
    names = jax.eval_shape(inits[0], RNG, IDS)["params"]
    assert sorted(names) == ["block_0", "block_1", "embedding", "head", "norm"]


def test_depth_scaling_is_of_what_writes_to_the_residual_stream(monkeypatch):
    """And of nothing else: 1 / sqrt(2 L) of the named initialiser's."""
    monkeypatch.setitem(initializers.INITIALIZERS, "ones", lambda: nn.initializers.ones)
    made = encoder(**PATCHES, positions="none", init="ones", depth_scaling="residual", num_layers=3)
    params = jax.jit(made.init)(RNG, IMAGES)["params"]
    kernels = {
        leaf: set(np.asarray(kernel).flat)
        for path, kernel in jax.tree_util.tree_leaves_with_path(params)
        if (leaf := jax.tree_util.keystr(path, simple=True, separator="/")).endswith("kernel")
    }
    writes = {
        f"block_{i}/{leaf}/kernel" for i in range(3) for leaf in ("attention/out", "ffn/down")
    }
    assert {leaf for leaf, values in kernels.items() if values == {np.float32(6**-0.5)}} == writes
    assert {leaf for leaf, values in kernels.items() if values == {1}} == kernels.keys() - writes


def test_counted_flops_are_those_of_the_formula():
    made = net()
    layer = 2 * T * (4 * D * D + 2 * D * F) + 4 * T * T * D
    counted = cost.count(made.encoder.apply, {"params": made.params}, IDS[:1]).products
    assert counted == L * layer + 2 * D * CLASSES
    seen = model.mask(made.config, VALID)
    missing = T * T - T * LENGTHS.mean()
    assert model.unneeded_flops(made.config, T, seen) == pytest.approx(L * 4 * D * missing)
    assert model.unneeded_flops(made.config, T) == 0


@pytest.mark.parametrize(
    ("variant", "pool", "positions"),
    [
        ("dense", "mean", "learned"),
        ("dense", "cls", "rotary"),
        ("dense", "first", "sinusoidal"),
        ("window", "cls", "none"),
        ("linear", "mean", "rotary"),
    ],
)
def test_padding_is_not_seen(variant, pool, positions):
    made = net(variant, pool=pool, positions=positions, token_types=2)
    types = np.zeros_like(IDS)
    before = made.apply(IDS, VALID, types)
    other = np.where(VALID, IDS, (IDS + 1 + np.arange(T)) % 11)
    dirty = made.apply(other, VALID, np.where(VALID, types, 1))
    np.testing.assert_array_equal(dirty, before)
    # What could not change cannot fail.
    last = IDS.copy()
    last[0, LENGTHS[0] - 1] += 1
    assert (made.apply(last % 11, VALID, types)[0] != before[0]).any()
    n = LENGTHS[0]
    close(made.apply(IDS[:1, :n], None, types[:1, :n]), before[:1])


def test_a_patch_is_cut_row_by_row():
    image = np.arange(24).reshape(1, 4, 6, 1)
    pairs = np.concatenate([image, image + 100], axis=-1)
    assert model.cut(image, 2).tolist() == [
        [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
        + [[12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]]
    ]
    assert model.cut(pairs, 2)[0, 1].tolist() == [2, 102, 3, 103, 8, 108, 9, 109]
    np.testing.assert_array_equal(model.cut(IMAGES, 1), IMAGES.reshape(B, 24, 2))


@pytest.mark.parametrize("positions", model.POSITIONS)
def test_what_positions_tell(positions):
    """Rotary scores and biases depend on differences alone, and ALiBi's not on their sign."""
    ids = np.array([3, 1, 4, 1, 5])
    rows = [np.pad(x, ends) for x, ends in ((ids, (0, 2)), (ids, (2, 0)), (ids[::-1], (0, 2)))]
    valid = np.array([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], bool)
    plain, shifted, turned_round = net(positions=positions).apply(np.stack(rows), valid)
    assert np.allclose(plain, shifted, atol=1e-5) == (positions not in ("learned", "sinusoidal"))
    assert np.allclose(plain, turned_round, atol=1e-5) == (positions in ("alibi", "none"))


def test_rotary_scores_depend_on_differences():
    query, key = DRAW.standard_normal((2, 1, 1, N, 6))
    turn = [model.rotate(jnp.broadcast_to(x, (1, T, N, 6))) for x in (query, key)]
    scores = np.einsum("btnh,bsnh->nts", *turn)
    close(scores[:, 1:, 1:], scores[:, :-1, :-1])
    assert np.abs(np.diff(scores[0, 0])).min() > 1e-3
    lengths = [np.linalg.norm(x, axis=-1) for x in (turn[0], query)]
    close(lengths[0], np.broadcast_to(lengths[1], (1, T, N)))
    close(turn[0][0, :, 0], turned(np.broadcast_to(query[0, 0, 0], (T, 6))))
    assert model.rotate(jnp.ones((1, T, N, 6), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("width", [6, 5])
def test_sinusoids_are_those_of_the_paper(width):
    half = (width + 1) // 2
    for t, row in enumerate(model.sinusoids(jnp.arange(T), width)):
        angles = [t / 10_000 ** (i / half) for i in range(half)]
        close(row, [*np.sin(angles), *np.cos(angles)][:width])


def test_sinusoids_are_added_to_embeddings_times_the_root_of_their_width():
    embed = model.Embedding(encoder(positions="sinusoidal", pool="cls").config)
    table, first = DRAW.standard_normal((11, D)), DRAW.standard_normal((1, 1, D))
    got = embed.apply({"params": {"tokens": {"embedding": table}, "cls": first}}, IDS)
    close(got[:, 1:], D**0.5 * table[IDS] + model.sinusoids(jnp.arange(1, T + 1), D))
    close(got[:, :1], D**0.5 * first.repeat(B, 0) + model.sinusoids(jnp.arange(1), D))


def test_pools():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    valid = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(model.pool(x, None, "mean"), [[2, 3], [8, 9]])
    np.testing.assert_array_equal(model.pool(x, valid, "mean"), [[1, 2], [0, 0]])
    for how in ("cls", "first"):
        np.testing.assert_array_equal(model.pool(x, valid, how), [[0, 1], [6, 7]])


def test_without_classes_the_pooled_vector_is_returned():
    made, bare = net(pooler=True), encoder(pooler=True, num_classes=0)
    body = {name: leaf for name, leaf in made.params.items() if name != "head"}
    shapes = jax.eval_shape(bare.init, RNG, IDS)["params"]
    assert jax.tree.structure(shapes) == jax.tree.structure(body)
    pooled = Net(bare, body).apply(IDS)
    assert pooled.shape == (B, D) and np.abs(pooled).max() <= 1
    close(linear(pooled, made.params["head"]), made.apply(IDS))


def test_token_types_and_factorised_embeddings():
    made = net(token_types=2, embed_width=6)
    shapes = jax.tree.map(np.shape, made.params["embedding"])
    assert shapes == {
        "tokens": {"embedding": (11, 6)},
        "token_types": {"embedding": (2, 6)},
        "positions": (9, 6),
        "project": {"kernel": (6, D), "bias": (D,)},
    }
    zeros = made.apply(IDS, None, np.zeros_like(IDS))
    np.testing.assert_array_equal(made.apply(IDS), zeros)
    assert np.abs(made.apply(IDS, None, np.ones_like(IDS)) - zeros).max() > 1e-2


def test_dropout_zeroes_a_share_and_scales_the_rest():
    x = 1 + jax.random.uniform(RNG, (200, 500))
    assert model.dropout(x, 0.3, None) is x and model.dropout(x, 0.0, RNG) is x
    kept = model.dropout(x, 0.3, RNG)
    share = np.asarray(kept == 0).mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / x.size)
    np.testing.assert_array_equal(kept, np.where(kept == 0, 0, x / (1.0 - 0.3)))
    assert model.dropout(x.astype(jnp.bfloat16), 0.3, RNG).dtype == jnp.bfloat16


def test_dropout_is_off_without_an_rng_and_repeats_with_one():
    dropped, plain = net(dropout=0.2), net()
    np.testing.assert_array_equal(dropped.apply(IDS), plain.apply(IDS))
    first = dropped.apply(IDS, rng=RNG)
    np.testing.assert_array_equal(dropped.apply(IDS, rng=RNG), first)
    assert np.abs(dropped.apply(IDS, rng=jax.random.PRNGKey(4)) - first).max() > 1e-2


@pytest.mark.parametrize("scan", [False, True])
def test_no_two_dropouts_draw_alike(scan, monkeypatch):
    """Every place of every layer has bits of its own; the scan's are those of its loop."""
    used = []

    def draw(x, rate, rng):
        jax.debug.callback(lambda bits: used.append(tuple(bits.tolist())), rng)
        return x

    monkeypatch.setattr(_transformer, "dropout", draw)
    monkeypatch.setattr(_layers, "dropout", draw)
    made = net(scan=scan, dropout=0.1)
    jax.jit(made.encoder.apply)({"params": made.params}, IDS, rng=RNG).block_until_ready()
    jax.effects_barrier()
    assert len(used) == len(set(used)) == 1 + 2 * L


@pytest.mark.parametrize("name", FEW)
def test_bfloat16_computes_in_it_and_returns_float32(name):
    exact, made = (net(name, dtype=dtype) for dtype in ("float32", "bfloat16"))
    params = jax.eval_shape(made.encoder.init, RNG, IDS)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    got, want = made.apply(IDS, VALID), exact.apply(IDS, VALID)
    assert got.dtype == jnp.float32
    scanned = encoder(name, dtype="bfloat16", scan=True)
    assert jax.eval_shape(scanned.apply, params, IDS).dtype == jnp.float32
    assert 1e-4 < np.abs(got - want).max() < 0.1 * np.abs(want).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "token"}, "model.inputs='token'; did you mean 'tokens'"),
        ({"positions": "lerned"}, "model.positions='lerned'; did you mean 'learned'"),
        ({"pool": "men"}, "model.pool='men'; did you mean 'mean'"),
        ({"init": "lecun"}, "model.init='lecun'; did you mean 'lecun_normal'"),
        ({"depth_scaling": "resid"}, "model.depth_scaling='resid'; did you mean 'residual'"),
        ({"dtype": "float16"}, "model.dtype='float16'; did you mean .*'bfloat16'"),
        ({"patch": 0}, "model.patch=0 must be at least 1"),
        ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
        ({"num_classes": -1}, "model.num_classes=-1 must be at least 0"),
        ({"embed_width": -6}, "model.embed_width=-6 must be at least 0"),
        ({"vocab_size": 0}, "model.vocab_size=0: tokens need a vocabulary"),
        ({"inputs": "patches", "token_types": 2}, "model.token_types=2: patches have no"),
        ({"dropout": 1.0}, r"model.dropout=1.0 must be a rate in \[0, 1\)"),
        ({"dropout": -0.1}, r"model.dropout=-0.1 must be a rate"),
        ({"width": 18}, "num_heads=4 must divide the model width 18"),
        ({"width": 12, "positions": "rotary"}, "head width 3 is odd"),
        ({"widht": 12}, "model has no field 'widht'; did you mean 'width'"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        encoder(**changes)


def test_a_section_must_be_whole():
    section = model.spec()
    del section["width"]
    with pytest.raises(ValueError, match="model lacks width"):
        model.build(section)


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        ({}, (IDS[0],), r"tokens need ids \[B, T\]: \(7,\)"),
        ({"max_length": 6}, (IDS,), "7 tokens; raise model.max_length=6"),
        ({"max_length": 7, "pool": "cls"}, (IDS,), "8 tokens; raise model.max_length=7"),
        ({}, (IDS, VALID[:, 1:]), "query length is 6 in key_valid but 7 in x"),
        ({}, (IDS, VALID.astype(int)), "dtype int64; True may attend"),
        ({}, (IDS, None, IDS), "token types are given; set model.token_types"),
        (PATCHES, (IMAGES[..., 0],), r"need images \[B, height, width, channels\]: \(3, 4, 6\)"),
        (PATCHES | {"patch": 3}, (IMAGES,), "model.patch=3 must divide the image's sides 4x6"),
        (PATCHES | {"patch": 4}, (IMAGES,), "model.patch=4 must divide the image's sides 4x6"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, inputs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: encoder(**changes).init(RNG, *inputs))


def test_places_are_of_models_with_an_output_for_each_token():
    with pytest.raises(
        ValueError, match=r"outputs are asked for: model.pool='mean' .* set pool='none'"
    ):
        jax.eval_shape(lambda: encoder(pool="mean").init(RNG, IDS, at=IDS[:, :2]))


def test_only_learned_positions_bound_the_length():
    for positions in ("sinusoidal", "rotary", "none"):
        assert model.length(encoder(max_length=6, positions=positions).config, IDS) == T
