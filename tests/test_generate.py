"""Writing: out of each variant's state as from scratch, and searched as exhaustively."""

import functools
import itertools

import jax
import numpy as np
import pytest

from tinyattn import attention, generate, model

B, P, STEPS, V, D, N = 3, 4, 5, 7, 8, 2
DRAW = np.random.default_rng(0)
PROMPT = DRAW.integers(0, V, (B, P))
LENGTH = np.array([1, 3, 4])
RNG = jax.random.PRNGKey(0)


def spec(name, **fields):
    return attention.spec(name, num_heads=N, **fields)


DECODER = {"inputs": "tokens", "vocab_size": V, "num_classes": V, "width": D, "ffn_width": 6}
DECODER |= {"causal": True, "pool": "none", "max_length": P + STEPS, "attention": spec("dense")}
SOURCE = {"inputs": DRAW.integers(0, 9, (B, 6)), "key_valid": np.arange(6) < [[4], [6], [5]]}
BOTH = DECODER | {"causal": False, "decoder_layers": 2, "num_layers": 1, "vocab_size": 9}
BOTH |= {"decoder_attention": spec("dense")}
CASES = {
    "dense, rotary, tied": DECODER
    | {"positions": "rotary", "tied_head": True, "activations": "int8"},
    "window, convolution, post-norm": DECODER
    | {"attention": spec("window", window=3), "conv": 3, "norm_place": "post"},
    "recurrent and dense in turn": DECODER
    | {"attention": spec("deltanet"), "also": (spec("dense", forget=True),), "layout": "01"},
    "one cache for two layers": DECODER | {"reuse": "key_value", "positions": "sinusoidal"},
    "gates of layers that share": DECODER
    | {"reuse": "key_value", "attention": spec("dense", forget=True), "positions": "none"},
    "alibi": DECODER
    | {"positions": "alibi", "attention": spec("dense", forget=True), "layout": "0123"}
    | {"also": (spec("sigmoid"), spec("talking"), spec("collaborative")), "num_layers": 4},
    "relative": DECODER
    | {"positions": "relative", "attention": spec("differential"), "layout": "012"}
    | {"also": (spec("mla", latent=3), spec("synthesizer", length=P + STEPS)), "num_layers": 3},
    "encoder-decoder": BOTH
    | {"cross_attention": spec("dense", num_kv_heads=1), "qkv": "ffn", "positions": "relative"},
    "latent cross-attention": BOTH
    | {"cross_attention": spec("mla", latent=3), "norm": "rmsnorm", "ffn": "geglu"},
}


@functools.cache
def made(name):
    """A model, its parameters, and what it is given beside a prompt."""
    built = model.build(model.spec(**CASES[name]))
    given = SOURCE if built.config.decoder_layers else {}
    like = jax.eval_shape(lambda: built.init(RNG, **call(given, PROMPT)))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: 0.6 * rng.standard_normal(x.shape).astype(np.float32), like)
    return built, params, given


def call(given, ids):
    return given | {"prefix": ids} if given else {"inputs": ids}


@functools.cache
def logs(name):
    """From scratch: the logarithms of the probabilities after every token of ids [B, P + STEPS - 1]."""
    built, params, given = made(name)

    @jax.jit
    def run(ids):
        return jax.nn.log_softmax(built.apply({"params": params}, **call(given, ids)))

    return lambda ids: np.asarray(run(ids), np.float64)


def from_scratch(name, eos=None):
    """The likeliest token every time, all before it read anew: ids, lengths and scores."""
    ids = np.zeros((B, P + STEPS), int)
    ids[:, :P] = PROMPT
    at, score, going = LENGTH.copy(), np.zeros(B), np.ones(B, bool)
    for _ in range(STEPS):
        found = logs(name)(ids[:, :-1])[np.arange(B), at - 1]
        new = found.argmax(-1)
        ids[going, at[going]] = new[going]
        score += np.where(going, found.max(-1), 0)
        at += going
        going &= new != eos
    rows = np.full((B, STEPS), 0 if eos is None else eos)
    for b, (first, end) in enumerate(zip(LENGTH, at, strict=True)):
        rows[b, : end - first] = ids[b, first:end]
    return rows, at - LENGTH, score


@pytest.mark.parametrize("name", CASES)
def test_out_of_the_state_as_from_scratch(name):
    """Prompts of unequal length in one batch; scores tell apart what the same tokens could hide."""
    built, params, given = made(name)
    got = generate.greedy(built, steps=STEPS)(params, PROMPT, LENGTH, **given)
    ids, length, score = from_scratch(name)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(got.length, length)
    np.testing.assert_allclose(got.score, score, atol=1e-5, rtol=1e-5)


TIED = "dense, rotary, tied"


def test_it_ends_at_the_end_and_one_beam_is_greedy():
    """Also where to end at once comes second, and is likelier than all that is written instead."""
    name, eos = "one cache for two layers", 2
    built, params, _ = made(name)
    ids, length, score = from_scratch(name, eos)
    assert length.tolist() == [5, 2, 5]
    first = logs(name)(np.pad(PROMPT, ((0, 0), (0, STEPS - 1))))[1, LENGTH[1] - 1]
    assert first.argsort()[-2] == eos and first[eos] > score[1]
    greedy, one = (
        make(built, steps=STEPS, eos=eos)(params, PROMPT, LENGTH)
        for make in (generate.greedy, functools.partial(generate.beam, beams=1))
    )
    for got in (greedy, jax.tree.map(lambda x: x[:, 0], one)):
        np.testing.assert_array_equal(got.ids, ids)
        np.testing.assert_array_equal(got.length, length)
        np.testing.assert_allclose(got.score, score, atol=1e-5, rtol=1e-5)


def exhaustive(name, steps, eos, alpha):
    """Every text of at most `steps` tokens after each prompt, best first: (score, ids)."""
    found = []
    texts = [
        text
        for n in range(1, steps + 1)
        for text in itertools.product(range(V), repeat=n)
        if eos not in text[:-1] and (n == steps or text[-1] == eos)
    ]
    scores = np.zeros((B, len(texts)))
    for i, text in enumerate(texts):
        ids = np.zeros((B, P + STEPS - 1), int)
        ids[:, :P] = PROMPT
        for b in range(B):
            ids[b, LENGTH[b] : LENGTH[b] + len(text)] = text
        each = logs(name)(ids)
        for b in range(B):
            own = sum(each[b, LENGTH[b] - 1 + j, token] for j, token in enumerate(text))
            scores[b, i] = own / ((5 + len(text)) / 6) ** alpha
    for b in range(B):
        order = np.argsort(-scores[b])
        found.append([(scores[b, i], texts[i]) for i in order])
    return found


@pytest.mark.parametrize("name", [TIED, "encoder-decoder"])
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_wide_beam_is_an_exhaustive_search(name, alpha):
    built, params, given = made(name)
    beams, steps, eos = 60, 3, 2
    got = generate.beam(built, steps=steps, eos=eos, beams=beams, alpha=alpha)(
        params, PROMPT, LENGTH, **given
    )
    for b, texts in enumerate(exhaustive(name, steps, eos, alpha)):
        # Near the edge a better text may have been left out early.
        for k, (score, text) in enumerate(texts[:20]):
            assert tuple(got.ids[b, k, : got.length[b, k]].tolist()) == text, (b, k)
            np.testing.assert_allclose(got.score[b, k], score, atol=1e-5, rtol=1e-5)
    if alpha:
        orders = (exhaustive(name, steps, eos, a)[0][:20] for a in (0.0, alpha))
        assert len({tuple(text for _, text in order) for order in orders}) == 2


def test_calls_of_one_shape_are_one_program():
    built, params, _ = made(TIED)
    write = generate.greedy(built, steps=2)
    write(params, PROMPT, LENGTH)
    write(jax.tree.map(lambda x: x + 1, params), PROMPT[::-1], LENGTH[::-1])
    assert write.programs() == 1
    write(params, PROMPT[:2])
    assert write.programs() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"causal": False}, "a model that writes is causal"),
        ({"pool": "mean"}, "a model that writes is causal, .*pool='mean'"),
        ({"max_length": 5}, "8 tokens with those to write; raise model.max_length=5"),
        ({"num_classes": 0}, "without a head there is nothing to write"),
    ],
)
def test_models_that_do_not_write_are_refused(changes, message):
    built = model.build(model.spec(**DECODER | changes))
    with pytest.raises(ValueError, match=message):
        generate.greedy(built, steps=STEPS)({}, PROMPT)


def test_what_is_asked_has_to_make_sense():
    built, params, _ = made(TIED)
    for make, options, message in (
        (generate.greedy, {"steps": 0}, "steps=0 must be at least 1"),
        (generate.greedy, {"steps": 2, "eos": V}, "eos=7 must be an id, 0..6"),
        (generate.sample, {"steps": 2, "temperature": 0.0}, "temperature=0.0 must be positive"),
        (generate.sample, {"steps": 2, "top_k": V + 1}, "top_k=8 in 0..7"),
        (generate.sample, {"steps": 2, "top_p": 0.0}, "top_p=0.0 in"),
        (generate.beam, {"steps": 2, "beams": 0}, "beams=0 must be at least 1"),
        (generate.beam, {"steps": 2, "alpha": -1.0}, "alpha=-1.0 at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(built, **options)
    write = generate.greedy(built, steps=2)
    for prompt, length, message in (
        (PROMPT[:, :0], None, "at least one id a row"),
        (PROMPT, [0, 1, 2], "must be 1..4 for each prompt"),
        (PROMPT, [1, 2], "must be 1..4 for each prompt"),
        (PROMPT + V, None, "the model reads 0..6"),
    ):
        with pytest.raises(ValueError, match=message):
            write(params, prompt, length)
    with pytest.raises(ValueError, match="a decoder its prompt alone"):
        write(params, PROMPT, **SOURCE)
    with pytest.raises(ValueError, match="reads 'inputs' beside its prompt"):
        generate.greedy(made("encoder-decoder")[0], steps=2)({}, PROMPT)
