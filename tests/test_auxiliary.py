"""Losses that variants add in training: what they are of, whom they move, and what they leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ablations import recall
from tinyattn import attention, config, cost, masks, model, train
from tinyattn.attention.sparse import dsa
from tinyattn.tasks import Split

B, V, T, D, N = 8, 12, 8, 16, 2
INDEX = ("index_query", "index_key", "index_weight")
INDEXED = attention.spec("dsa", num_heads=N, k=3, index_dim=4)
DENSE = attention.spec("dense", num_heads=N)
HYBRID = {"also": (DENSE,), "layout": "010", "num_layers": 3}
DRAW = np.random.default_rng(0)
IDS = DRAW.integers(0, V, (B, T)).astype(np.int32)
# From one label an example to all of them.
LABELED = np.array([1, 8, 2, 1, 5, 1, 3, 7])
LABELS = np.where(np.arange(T) < LABELED[:, None], IDS[::-1], -1).astype(np.int32)
CHANGES = {
    "task.vocab_size": V,
    "task.length": T,
    "task.pairs": 2,
    "model.width": D,
    "model.ffn_width": D,
    "model.num_classes": V,
    "model.vocab_size": V,
    "model.max_length": T,
    "model.num_layers": 1,
    "model.attention": INDEXED,
    "train.batch_size": B,
    # Plain descent shows every factor of a gradient.
    "optim.optimizer": "sgd",
    "optim.clip_norm": 0.0,
    "optim.weight_decay": 0.0,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "optim.learning_rate": 0.5,
}


def make(**changes):
    return train.make(config.override(recall.get_config("smoke"), CHANGES | changes))


def moved(program, state):
    """How far one step takes each leaf, by path."""
    after, sums = jax.jit(program.step)(state, Split(IDS, LABELS))
    apart = jax.tree.map(lambda a, b: np.asarray(a - b), after.trainable, state.trainable)
    return named(apart), jax.tree.map(np.asarray, sums)


def named(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def of_index(path):
    return any(f"/{name}/" in path for name in INDEX)


@functools.cache
def trained():
    """A program whose batches come in two parts, a state of it, and what a step moves."""
    program = make(**{"train.micro_batches": 2})
    state = program.init(0)
    return program, state, *moved(program, state)


def test_the_indexer_learns_from_its_own_loss_alone():
    """Each example's loss counts as its labels do, however a batch is cut into parts."""
    program, state, steps, _ = trained()

    def own(params):
        _, losses = program.model.apply({"params": params}, IDS, auxiliary=True)
        return (losses * LABELED).sum() / LABELED.sum()

    grads = named(jax.jit(jax.grad(own))(state.trainable))
    for path, grad in grads.items():
        if of_index(path):
            # A softmax does not see what the bias of the index adds to all keys of a query.
            assert np.abs(steps[path]).max() > 1e-6 or path.endswith("bias"), path
            np.testing.assert_allclose(steps[path], -0.5 * grad, atol=1e-6, rtol=1e-4, err_msg=path)
        else:
            assert (np.asarray(grad) == 0).all(), path


def test_it_leaves_the_rest_alone(monkeypatch):
    program, state, steps, sums = trained()
    training = cost.count(program.step, state, Split(IDS, LABELS)).products
    monkeypatch.delattr(dsa, "auxiliary")
    bare = make(**{"train.micro_batches": 2})
    other, without = moved(bare, state)
    for path, step in other.items():
        if of_index(path):
            assert (step == 0).all(), path
        else:
            np.testing.assert_allclose(steps[path], step, atol=1e-7, rtol=1e-5, err_msg=path)
    # What is reported is the loss of the task.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), sums, without)
    # Training costs more; the index is computed again for the loss, and then its gradient.
    less = cost.count(bare.step, state, Split(IDS, LABELS)).products
    assert training - less > B * (2 * 2 * (4 + 1) * T * T)


def test_several_steps_bring_the_loss_down():
    program, state, _, _ = trained()
    step = jax.jit(program.step)
    own = jax.jit(lambda p: program.model.apply({"params": p}, IDS, auxiliary=True)[1].mean())
    # The heads stay, so that the indexer follows what does not move.
    frozen = state.trainable
    first = own(frozen)
    for _ in range(5):
        after, _ = step(state, Split(IDS, LABELS))
        kept = jax.tree_util.tree_map_with_path(
            lambda path, old, new: (
                new if of_index(jax.tree_util.keystr(path, simple=True, separator="/")) else old
            ),
            frozen,
            after.trainable,
        )
        state = after._replace(trainable=kept)
    assert own(state.trainable) < first


def encoder(**changes):
    section = {"inputs": "tokens", "vocab_size": V, "num_classes": 5, "max_length": T, "width": D}
    section |= {"attention": INDEXED, "causal": True}
    return model.build(model.spec(**section | changes))


def drawn(made):
    like = jax.eval_shape(made.init, jax.random.PRNGKey(0), IDS)["params"]
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.4 * draw.standard_normal(x.shape).astype(x.dtype), like)


@pytest.mark.parametrize("changes", [{"scan": True}, HYBRID])
def test_it_is_the_sum_over_layers_of_means_over_tokens(changes):
    made = encoder(**changes)
    params, lengths = drawn(made), np.arange(1, B + 1)
    valid = np.arange(T) < lengths[:, None]

    apply = jax.jit(functools.partial(made.apply, auxiliary=True))
    _, got = apply({"params": params}, IDS, valid)
    assert got.shape == (B,) and got.dtype == jnp.float32

    seen, want = masks.causal() & masks.padding(valid), np.zeros(B)
    x = jax.jit(model.Embedding(made.config).apply)({"params": params["embedding"]}, IDS)
    for i, (variant, fields) in enumerate(model.mixers(made.config)):
        block = model.Block(made.config, layer=i)
        x, heads, *_ = jax.jit(block.apply)({"params": params[f"block_{i}"]}, x, seen)
        if variant is dsa:
            own = jax.jit(functools.partial(dsa.auxiliary, fields))
            each = np.asarray(own(**heads, mask=seen), np.float64)
            want += [row[:length].mean() for row, length in zip(each, lengths, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_a_variant_without_one_has_the_program_that_it_had():
    made = encoder(attention=DENSE)
    params, extra = {"params": drawn(made)}, []

    def asked(params):
        logits, losses = made.apply(params, IDS, auxiliary=True)
        extra.append(losses)
        return logits

    plain = jax.make_jaxpr(lambda params: made.apply(params, IDS))(params)
    assert str(jax.make_jaxpr(asked)(params)) == str(plain) and extra == [None]
