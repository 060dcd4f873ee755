"""Images and speech from files: pixels, frames and bands, what is damaged, and runs that are asked."""

import io

import jax
import numpy as np
import pandas as pd
import pytest
import soundfile
from fake_data import everything, pictures, serving
from PIL import Image
from tiny import ENCODER

from configs import chars as chars_config
from configs import digits as digits_config
from configs import fsdd as fsdd_config
from configs import slots as slots_config
from configs import trec as trec_config
from configs.ablations import first, images, speech, text
from experiments import predict
from tinyattn import config, records, sweep, tasks, train, weights
from tinyattn.tasks import _speech, fsdd, mnist

RATE = 8000


home = serving(everything)


def test_mnist_is_normalised_by_its_training_images():
    task = tasks.load(tasks.spec("mnist"))
    assert task.train.inputs.shape == (150, 28, 28, 1) and task.train.inputs.dtype == np.float32
    assert len(task.validation.labels) == 30 and len(task.test.labels) == 10
    assert abs(task.train.inputs.mean()) < 1e-4 and abs(task.train.inputs.std() - 1) < 1e-4
    raw = tasks.load(tasks.spec("mnist", normalise="none"))
    assert raw.train.inputs.max() == 255
    unit = tasks.load(tasks.spec("mnist", normalise="unit"))
    np.testing.assert_allclose(unit.test.inputs, raw.test.inputs / 255, rtol=1e-6)
    images = [x.tobytes() for split in raw[:3] for x in split.inputs]
    assert len(set(images)) == 190
    assert len(tasks.load(tasks.spec("mnist", train_examples=20)).train.labels) == 20


def test_a_picture_of_another_size_or_none_is_named():
    file = io.BytesIO()
    Image.new("L", (20, 28)).save(file, "PNG")
    with pytest.raises(ValueError, match=r"train image 7 has \(28, 20\) pixels, not 28x28"):
        mnist.grey({"bytes": file.getvalue()}, "train image 7")
    with pytest.raises(ValueError, match="train image 8 is no image"):
        mnist.grey({"bytes": b"nothing"}, "train image 8")


def test_a_tone_is_loudest_in_its_band_and_a_band_is_a_triangle():
    time = np.arange(RATE) / RATE
    bands = _speech.bands(20, 256, RATE)
    assert bands.shape == (129, 20) and bands.min() == 0 and bands.max() <= 1
    middle = np.linspace(0, _speech.mel(RATE / 2), 22)[1:-1]
    # Neighbours together are 1 between the first middle and the last.
    at = _speech.mel(np.arange(129) * RATE / 256)
    inside = (at >= middle[0]) & (at <= middle[-1])
    np.testing.assert_allclose(bands[inside].sum(1), 1, atol=1e-12)
    for band in (3, 11, 18):
        tone = 700 * (10 ** (middle[band] / 2595) - 1)
        found = _speech.log_mel(np.sin(2 * np.pi * tone * time), RATE, 20)
        assert found.shape == (98, 20) and (found.argmax(1) == band).all()
    assert _speech.log_mel(np.ones(3), RATE, 4).shape == (1, 4)


def test_frames_have_mean_0_over_training_and_padding_is_0():
    task = tasks.load(tasks.spec("fsdd", length=60))
    valid = task.train.key_valid
    assert valid.sum(1).tolist() == [48] * len(valid)
    assert abs(task.train.inputs[valid].mean(0)).max() < 1e-4
    assert abs(task.train.inputs[valid].std(0) - 1).max() < 1e-3
    assert not task.train.inputs[~valid].any()
    # Takes 5 to 9 are the validation split: 5 + i % 45 of 180 recordings.
    assert (len(task.train.labels), len(task.validation.labels)) == (160, 20)


def test_few_recordings_are_of_all_digits_and_always_the_same():
    # The second is prepared anew, for it has a name of its own.
    few, again = (
        tasks.load(tasks.spec("fsdd", train_examples=20, mels=8, broken=broken))
        for broken in ("drop", "raise")
    )
    assert np.bincount(few.train.labels).tolist() == [2] * 10
    np.testing.assert_array_equal(few.train.inputs, again.train.inputs)
    # Mean and deviation are of what is trained on alone.
    assert abs(few.train.inputs[few.train.key_valid].mean(0)).max() < 1e-4
    assert (len(few.validation.labels), len(few.test.labels)) == (20, 10)
    with pytest.raises(ValueError, match="train_examples=-1 must not be negative"):
        fsdd.Config(train_examples=-1)
    with pytest.raises(ValueError, match=r"train_examples=9 must be 10 \(the classes\) to 150 of"):
        tasks.load(tasks.spec("fsdd", train_examples=9, mels=8))


def test_masks_are_of_frames_and_bands():
    section = tasks.spec("fsdd", length=60, time_mask=10, mel_mask=6)
    task = tasks.load(section)
    ones = tasks.Split(np.ones((64, 60, 40), np.float32), np.zeros(64, np.int32))
    masked = np.asarray(task.augment(jax.random.PRNGKey(0), ones).inputs) == 0
    frames, bands = masked.all(2), masked.all(1)
    np.testing.assert_array_equal(masked, frames[:, :, None] | bands[:, None, :])
    for hidden, most in ((frames, 10), (bands, 6)):
        counts = hidden.sum(1)
        assert counts.max() == most and counts.min() == 0
        edges = np.abs(np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1)
        assert edges.max() <= 2  # one stretch


def wav(samples, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return {"bytes": file.getvalue()}


def test_silence_and_damage_are_dropped_or_fatal(tmp_path):
    sounds = pd.Series({4: wav(np.zeros(800)), 7: {"bytes": b"RIFF"}, 9: wav(np.full(800, 0.5))})
    for broken in ("drop", "raise"):
        asked = fsdd.Config(broken=broken)
        said = fsdd._steps.Told(broken)
        if broken == "raise":
            with pytest.raises(
                ValueError, match=r"train recording 4 is silent.*task.broken='drop'"
            ):
                fsdd._heard(sounds, "train", asked, said)
            continue
        assert list(fsdd._heard(sounds, "train", asked, said)) == [9]
        assert said.lines[0]["first"] == [4, 7] and said.lines[0]["rows"] == 2


def test_other_rates_are_resampled():
    time = np.arange(16_000) / 16_000
    slow = _speech.samples(wav(np.sin(2 * np.pi * 440 * time), 16_000), RATE, "it")
    assert slow.dtype == np.float32 and len(slow) == RATE
    np.testing.assert_allclose(
        slow[500:-500], np.sin(2 * np.pi * 440 * time[::2])[500:-500], atol=1e-2
    )


TINY = ENCODER


def kept(file, folder, **changes):
    """A run of fresh weights, as a sweep leaves it."""
    section = config.override(file.get_config("smoke"), TINY | changes)
    program = train.make(section)
    record = {"digest": "0" * 16, "row": "it", "seed": 0, "config": config.plain(section)}
    folder.mkdir(exist_ok=True)
    weights.save(folder / records.WEIGHTS, program.init(0).theta, digest=record["digest"])
    for name, content in program.task.files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder, record | {"status": "ok"}


def test_images_are_asked_about(tmp_path):
    run = kept(digits_config, tmp_path)
    for side in (8, 30):
        Image.fromarray(np.eye(side, dtype=np.uint8) * 255).save(tmp_path / f"{side}.png")
    small, large = predict.answers(*run, [str(tmp_path / "8.png"), str(tmp_path / "30.png")])
    for answer in (small, large):
        assert answer["answer"] in set("0123456789")
        shares = list(answer["probabilities"].values())
        assert len(shares) == 3 and shares == sorted(shares, reverse=True)
    (tmp_path / "no.png").write_text("text")
    for name in ("no.png", "missing.png"):
        with pytest.raises(ValueError, match=f"{name}' is no image file"):
            list(predict.answers(*run, [str(tmp_path / name)]))


def test_sounds_are_asked_about(tmp_path):
    run = kept(fsdd_config, tmp_path, **{"model.tokeniser": 0})
    name = tmp_path / "it.wav"
    name.write_bytes(wav(np.sin(np.arange(4000)))["bytes"])
    (answer,) = predict.answers(*run, [str(name)])
    assert answer["answer"] in set("0123456789")
    name.write_bytes(wav(np.sin(np.arange(RATE)))["bytes"])
    with pytest.raises(ValueError, match=r"98 frames of 10 ms, and the model hears 96"):
        list(predict.answers(*run, [str(name)]))
    name.write_bytes(wav(np.zeros(4000))["bytes"])
    with pytest.raises(ValueError, match=r"it.wav' is silent"):
        list(predict.answers(*run, [str(name)]))


def test_texts_are_asked_about(tmp_path):
    run = kept(trec_config, tmp_path / "trec")
    found = list(predict.answers(*run, ["Say w1 now", "unknown words, and ünknöwn bytes \x00"]))
    assert [answer["answer"] in set("ABCDEF") for answer in found] == [True] * 2
    run = kept(slots_config, tmp_path / "slots")
    (answer,) = predict.answers(*run, ["Say w1 train5 please"])
    assert len(answer["words"]) == len(answer["answer"]) == 4
    assert all(tag == "O" or tag[:2] in ("B-", "I-") for tag in answer["answer"])
    run = kept(chars_config, tmp_path / "chars")
    longer, shorter = predict.answers(*run, ["Now is the winter", "Now"])
    assert set(longer) == set(shorter) == {"answer"}
    (alone,) = predict.answers(*run, ["Now"])
    assert alone == shorter  # whatever else is asked
    with pytest.raises(ValueError, match="takes no inputs of a person's"):
        tasks.asked(tasks.spec("parity"), {}, ["1"])


@pytest.mark.parametrize("table", [text, speech, images])
def test_a_table_of_each_family_has_the_first_ones_rows(table):
    base = config.override(table.get_config("smoke"), {"model.num_layers": 2})
    made = sweep.expand(base, table.rows())
    assert [row.name for row in made] == [name for name, _ in first.rows()]
    assert len(made[0].runs) == 5


def test_all_pictures_are_of_one_grey(tmp_path):
    pictures(tmp_path)
    with pytest.raises(ValueError, match="all of one grey"):
        mnist.pixels(mnist.Config(), np.zeros((3, 28, 28), np.uint8), 255.0)
