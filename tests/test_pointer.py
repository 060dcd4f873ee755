"""A decoder's pointer: equal to a plain mixture, blind behind padding, and the same step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seq2seq import GIVEN, B, D, P, S, W, build, close, draw

from tinyattn import cost, generate, model

FIELDS = {"pointer": True, "vocab_size": W, "shared_table": True, "tied_head": True}
# Without a pointer, the parameters that are left mean the same.
OWN = ("pointer_key", "pointer_query", "pointer_switch")
BUILT = build(**FIELDS)
PARAMS = jax.tree.map(jnp.asarray, draw(BUILT, **GIVEN))
REST = {name: leaf for name, leaf in PARAMS.items() if name not in OWN}
PLAIN = build(**FIELDS | {"pointer": False})
WRITE = jax.jit(lambda given: PLAIN.apply({"params": REST}, **given))
APPLY = jax.jit(lambda params, given: BUILT.apply({"params": params}, **given))


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def mixture(written, x, tokens, ids, valid):
    """The probabilities of one example, [P, W], place by place."""
    query, switch = (linear(x, PARAMS[name]) for name in OWN[1:])
    keys = [
        linear(np.concatenate([tokens[s], tokens[s - 1] if s else np.zeros(D)]), PARAMS[OWN[0]])
        for s in range(S)
    ]
    probabilities = np.zeros((P, W))
    for t in range(P):
        share = np.where(valid, np.exp([query[t] @ key / np.sqrt(D) for key in keys]), 0)
        gate = 1 / (1 + np.exp(-switch[t, 0]))
        probabilities[t] = gate * np.exp(written[t]) / np.exp(written[t]).sum()
        for s in np.flatnonzero(valid):
            probabilities[t, ids[s]] += (1 - gate) * share[s] / share.sum()
    return probabilities


def test_it_is_the_mixture_of_what_is_written_and_what_is_read():
    table = REST["embedding"]["tokens"]["embedding"]
    encoder, decoder = (model.Transformer(f(BUILT.config)) for f in (model.encoder, model.decoder))

    @jax.jit
    def parts(inputs, key_valid, prefix):
        tokens = encoder.apply({"params": REST}, inputs=inputs, key_valid=key_valid)
        memory = model.Memory(tokens, model.mask(BUILT.config, key_valid))
        x = decoder.apply({"params": REST["decoder"]}, prefix, memory=memory, table=table)
        return x, tokens

    written, (x, tokens) = WRITE(GIVEN), parts(**GIVEN)
    got = APPLY(PARAMS, GIVEN)
    close(np.exp(got).sum(-1), 1)
    assert any(len(set(ids)) < S for ids in GIVEN["inputs"])  # some id stands twice
    for b in range(B):
        own = (np.asarray(a[b], np.float64) for a in (written, x, tokens))
        close(np.exp(got[b]), mixture(*own, GIVEN["inputs"][b], GIVEN["key_valid"][b]))


def test_a_switch_that_is_open_writes_and_one_that_is_shut_copies():
    def switched(bias):
        own = {"kernel": jnp.zeros((D, 1)), "bias": jnp.full(1, bias)}
        return APPLY(PARAMS | {"pointer_switch": own}, GIVEN)

    close(switched(50.0), jax.nn.log_softmax(WRITE(GIVEN)))
    found = np.exp(switched(-50.0))
    for b in range(B):
        absent = sorted(set(range(W)) - set(GIVEN["inputs"][b][GIVEN["key_valid"][b]]))
        assert absent and found[b][:, absent].max() < 1e-12


def test_what_is_behind_padding_is_not_picked_and_moves_nothing():
    """Gradients neither; and where all is padding the vocabulary is left, with no NaN."""
    valid = GIVEN["key_valid"]
    other = GIVEN | {"inputs": np.where(valid, GIVEN["inputs"], (GIVEN["inputs"] + 1) % W)}

    @jax.jit
    def both(given):
        loss = lambda p: jnp.sin(BUILT.apply({"params": p}, **given)).sum()  # noqa: E731
        return APPLY(PARAMS, given), jax.grad(loss)(PARAMS)

    (out, grads), (moved, moved_grads) = both(GIVEN), both(other)
    np.testing.assert_array_equal(out, moved)
    jax.tree.map(np.testing.assert_array_equal, grads, moved_grads)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        leaf = jax.tree_util.keystr(path, simple=True, separator="/")
        # A softmax does not see what is added to all of its scores.
        assert np.abs(grad).max() > 1e-5 or leaf.endswith(("key/bias", "_key/bias")), leaf
    nothing, its_grads = both(GIVEN | {"key_valid": np.zeros_like(valid)})
    blind = WRITE(GIVEN | {"key_valid": np.zeros_like(valid)})
    close(nothing, jax.nn.log_softmax(blind))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(its_grads))


def test_step_by_step_it_is_the_same_and_its_state_is_counted():
    given = {name: GIVEN[name] for name in ("inputs", "key_valid")}
    got = generate.beam(BUILT, steps=P, beams=2)(PARAMS, GIVEN["prefix"][:, :1], **given)
    for beam in range(2):
        ids = np.concatenate([GIVEN["prefix"][:, :1], got.ids[:, beam]], axis=1)
        logs = APPLY(PARAMS, GIVEN | {"prefix": ids[:, :-1]})
        own = jnp.take_along_axis(logs, ids[:, 1:, None], axis=-1)[..., 0]
        close(got.score[:, beam], own.sum(-1))

    whole, plain = (model.state_bytes(x.config, S, P) for x in (BUILT, PLAIN))
    state = jax.eval_shape(lambda: model.start(BUILT, PARAMS, 1, P, inputs=GIVEN["inputs"][:1]))
    assert whole - plain == sum(x.size * 4 for x in jax.tree.leaves(state.pointed))


def test_its_products_are_counted():
    def products(built, params):
        one = {name: x[:1] for name, x in GIVEN.items()}
        return cost.count(lambda p: built.apply({"params": p}, **one), params).products

    own = 2 * (S * 2 * D * D + P * D * (D + 1) + P * S * D + P * S * S)
    assert products(BUILT, PARAMS) - products(PLAIN, REST) == own


@pytest.mark.parametrize(
    "changes", [{"vocab_size": W + 1, "shared_table": False}, {"decoder_layers": 0}]
)
def test_where_ids_mean_different_things_it_is_refused(changes):
    with pytest.raises(ValueError, match="pointer lets a decoder write ids that its encoder"):
        build(**FIELDS | {"shared_table": False, "tied_head": False} | changes)
