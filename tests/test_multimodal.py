"""A digit shown and a digit spoken in one sequence: embeddings, padding, pairs, and a run that is asked."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from fake_data import pictures, serving
from PIL import Image
from tiny import ENCODER

from configs import multimodal
from experiments import predict
from tinyattn import attention, config, model, records, sweep, tasks

B, FRAMES, MELS, D = 2, 10, 3, 8
DRAW = np.random.default_rng(0)
IMAGES = DRAW.standard_normal((B, 4, 4, 1)).astype(np.float32)
SOUNDS = DRAW.standard_normal((B, FRAMES, MELS)).astype(np.float32)
VALID = np.arange(FRAMES) < np.array([[10], [5]])
TINY = ENCODER | {
    "task.pairs": 1,
}


home = serving(pictures)


def build(**changes):
    sizes = {"inputs": "patches+frames", "width": D, "ffn_width": 8, "num_layers": 1}
    sizes |= {"attention": attention.spec("dense", num_heads=2), "num_classes": 5}
    return model.build(model.spec(**sizes | changes))


def drawn(made):
    shapes = jax.eval_shape(made.init, jax.random.PRNGKey(0), (IMAGES, SOUNDS), VALID)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tokeniser": 1, "pool": "cls", "positions": "sinusoidal"}, {"embed_width": 4}],
    ids=["patches", "tokeniser", "narrow"],
)
def test_patches_come_first_then_frames_each_with_its_kind(changes):
    """Each is what the embedding of its kind alone makes of it, and both are padded as one is."""
    made = build(**changes)
    params = drawn(made)["embedding"]
    embed = jax.jit(model.Embedding(made.config).apply)
    got = embed({"params": params}, (IMAGES, SOUNDS), None, VALID)
    assert got.shape[1] == model.length(made.config, (IMAGES, SOUNDS))
    parts = []
    for i, (name, own) in enumerate(model.kinds(made.config).items()):
        x, valid = ((IMAGES, None), (SOUNDS, VALID))[i]
        alone = model.Embedding(own).apply({"params": params[name]}, x, None, valid)
        parts.append(alone + params["kinds"][i])
    want = jnp.concatenate(parts, axis=1)
    if "pool" in changes:
        want = jnp.concatenate([jnp.broadcast_to(params["cls"], (B, 1, D)), want], axis=1)
    if "embed_width" in changes:
        want = want @ params["project"]["kernel"] + params["project"]["bias"]
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("variant", ["dense", "linear"])
def test_padding_of_frames_is_not_seen_and_patches_are(variant):
    made = build(tokeniser=1, attention=attention.spec(variant, num_heads=2))
    apply = jax.jit(lambda x, valid: made.apply({"params": params}, x, valid))
    params = drawn(made)
    other = np.where(VALID[..., None], SOUNDS, 7.0).astype(np.float32)
    got = apply((IMAGES, SOUNDS), VALID)
    np.testing.assert_array_equal(got, apply((IMAGES, other), VALID))
    heard = SOUNDS.copy()
    heard[:, 0] += 1
    for inputs in ((IMAGES + 1, SOUNDS), (IMAGES, heard)):
        assert (np.abs(got - apply(inputs, VALID)) > 1e-5).any(1).all()
    seen = model.mask(made.config, VALID, T=model.length(made.config, (IMAGES, SOUNDS)))
    assert seen.key_valid.sum(1).tolist() == [4 + 5, 4 + 3]


def test_a_label_is_the_sum_and_splits_stay_apart():
    task = tasks.load(tasks.spec("addition", pairs=2))
    seen, heard = tasks.load(tasks.spec("digits")), tasks.load(tasks.spec("fsdd"))
    shown, spoken = set(), set()
    for split, images, sounds in zip(task[:3], seen[:3], heard[:3], strict=True):
        digit = {x.tobytes(): y for x, y in zip(images.inputs, images.labels, strict=True)}
        word = {x.tobytes(): y for x, y in zip(sounds.inputs, sounds.labels, strict=True)}
        pairs = [(a.tobytes(), b.tobytes()) for a, b in zip(*split.inputs, strict=True)]
        assert [digit[a] + word[b] for a, b in pairs] == split.labels.tolist()
        assert len(pairs) == 2 * len(sounds.labels) and {b for _, b in pairs} == set(word)
        valid = np.abs(split.inputs[1]).sum(-1) > 0
        np.testing.assert_array_equal(split.key_valid, valid)
        assert not shown & set(digit) and not spoken & set(word)
        shown, spoken = shown | set(digit), spoken | set(word)
    assert 0 < task.baselines()["accuracy"] < 0.3 and task.num_classes == 19


@pytest.mark.parametrize("without", ["seen", "heard"])
def test_what_is_left_out_tells_nothing(without):
    whole = tasks.load(tasks.spec("addition", pairs=1))
    task = tasks.load(tasks.spec("addition", pairs=1, without=without))
    batch = jax.tree.map(lambda x: x[:4], task.train)
    shifted = task.augment(jax.random.PRNGKey(0), batch)
    for split, same in ((task.test, whole.test), (shifted, batch)):
        images, sounds = split.inputs
        gone, left = (images, sounds) if without == "seen" else (sounds, images)
        assert not np.asarray(gone).any() and np.asarray(left).any()
        assert (split.key_valid == same.key_valid).all() == (without == "seen" or split is shifted)
        np.testing.assert_array_equal(split.labels, same.labels)
    if without == "heard":
        assert task.test.key_valid.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.spec("addition", pairs=0), "task.pairs=0 must be at least 1"),
        (lambda: tasks.spec("addition", without="hear"), "'hear'; did you mean 'heard'"),
        (
            lambda: tasks.load(tasks.spec("addition", seen=tasks.spec("parity"))),
            "task.seen has . classes and task.heard 10: give digits",
        ),
        (lambda: tasks.load(tasks.spec("masked", of=tasks.spec("addition"))), "a pair of inputs"),
        (lambda: build(masked=True), "hides inputs of one kind"),
        (lambda: drawn(build(token_types=2)), "have no token types"),
        (lambda: model.length(build().config, IMAGES), r"need a pair \(images, frames\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_run_adds_and_is_asked(tmp_path):
    changes = {"train.steps": 2, "train.eval_every": 0, "optim.warmup_steps": 1, "seeds": (0,)}
    base = config.override(multimodal.get_config("smoke"), TINY | changes)
    rows = sweep.expand(base, multimodal.rows())
    assert [row.name for row in rows] == ["both", "seen alone", "heard alone"]
    (record,) = sweep.run_table(rows[:1], tmp_path)
    assert record["status"] == "ok", record.get("error")
    assert 0 < record["costs"]["useful_flops"] < record["costs"]["executed_flops"]
    run = records.run_dir(tmp_path, record["digest"]), record
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "it.png")
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(4000)), 8000, format="WAV")
    (tmp_path / "it.wav").write_bytes(file.getvalue())
    line = f"{tmp_path / 'it.png'}\t{tmp_path / 'it.wav'}"
    first, second = predict.answers(*run, [line, line])
    assert first == second and first["answer"] in map(str, range(19))
    with pytest.raises(ValueError, match="line 2 has 1 parts; give an image file and a WAV file"):
        list(predict.answers(*run, [line, str(tmp_path / "it.png")]))
    with pytest.raises(ValueError, match=r"it.png' is no sound file"):
        list(predict.answers(*run, [f"{tmp_path / 'it.png'}\t{tmp_path / 'it.png'}"]))
