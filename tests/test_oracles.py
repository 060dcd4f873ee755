"""Against numbers that others computed: `tests/oracles` says who, and how to make them again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.kept import FOLDER, near, read, tolerance
from oracles.ours import OURS

from tinyattn import masks
from tinyattn.attention.sparse import dsa, lsh

FILES = read(FOLDER)
# The others are choices, which have no gradient and tests of their own.
CASES = [
    (name, case)
    for name, (_, found) in FILES.items()
    for case, arrays in sorted(found.items())
    if "out" in arrays
]


def test_every_file_is_compared():
    assert set(OURS) | {"indexer"} == set(FILES)
    assert {name for name, _ in CASES} == set(OURS)


@pytest.mark.parametrize("name, case", CASES)
def test_equals_what_others_computed_with_gradients(x64, name, case):
    about, found = FILES[name]
    arrays = found[case]
    inputs = {x.removeprefix("grad_"): x for x in arrays if x.startswith("grad_")}
    make, precision = OURS[name]
    function = make(about["cases"][case], arrays)
    given = {x: arrays[x] for x in inputs}

    @jax.jit
    def both(given, dout):
        out, pull = jax.vjp(lambda given: function(**given), given)
        return out, pull(dout)[0]

    out, grads = both(given, arrays["dout"])
    limit = max(precision, tolerance(about))
    valid = arrays.get("valid", np.ones(out.shape[:2], bool))
    near(np.asarray(out)[valid], arrays["out"][valid], limit, "out")
    for x, path in inputs.items():
        near(grads[x], arrays[path], limit, path)


def test_the_lightning_indexer_keeps_the_keys_that_deepseek_keeps(x64):
    about, found = FILES["indexer"]
    settings, arrays = about["cases"]["causal"], found["causal"]
    B, T, N, H = arrays["query"].shape
    config = dsa.Config(num_heads=1, k=settings["top"], index_heads=N, index_dim=H)
    # Scores are all alike, and values say whose they are: what has a weight was kept.
    heads = jnp.zeros((B, T, 1, T)), jnp.zeros((B, T, 1, T)), jnp.eye(T)[None, :, None].repeat(B, 0)
    index = arrays["query"], arrays["key"], arrays["weight"]
    out = jax.jit(functools.partial(dsa.attend, config))(*heads, masks.causal(), *index)
    np.testing.assert_array_equal(out[:, :, 0] > 0, arrays["selected"])


def test_buckets_of_a_hash_are_those_of_reformer(x64, monkeypatch):
    """Given its random rotations, of which each head has its own there, and all heads share them here."""
    about, found = FILES["reformer_lsh"]
    settings, arrays = about["cases"]["hash"], found["hash"]
    config = lsh.Config(buckets=settings["buckets"], rounds=settings["rounds"])
    assert len(np.unique(arrays["buckets"])) == settings["buckets"]
    for n, rotations in enumerate(arrays["rotations"]):
        monkeypatch.setattr(lsh, "rotations", lambda *_, own=rotations: own.swapaxes(0, 1))
        got = lsh.hashes(config, arrays["query"][:, :, n : n + 1])
        np.testing.assert_array_equal(got[:, 0], arrays["buckets"][:, n])
