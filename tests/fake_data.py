"""Small datasets with the schemas that they have on the hub, as Parquet files."""

import contextlib
import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

TEXT = datasets.Value("string")
SPLITS = ("train", "validation", "test")
TAGS = ["O", *(f"B-{i}" for i in range(39)), *(f"I-{i}" for i in range(32))]  # 72, as SNIPS has


@contextlib.contextmanager
def served(folder: Path, fill):
    """The folder with what `fill` puts there as the source of datasets, and nobody's cache."""
    fill(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TINYATTN_DATA", str(folder))
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield patched


def serving(fill):
    """A fixture for all tests of a module: `served`, whose folder it gives."""

    @pytest.fixture(scope="module", autouse=True, name="home")
    def home(tmp_path_factory):
        folder = tmp_path_factory.mktemp("data")
        with served(folder, fill):
            yield folder

    return home


def write(folder: Path, split: str, columns: dict, features: dict) -> Path:
    """One split of a dataset as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.parquet"
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)
    return path


def texts(split: str, rows: int, classes: int) -> list[str]:
    """Different texts, whose second word tells their class, row % classes; one is in every split."""
    places = ["everywhere" if i == 3 else f"{split}{i}" for i in range(rows)]
    return [f"Say  w{i % classes} {place} please" for i, place in enumerate(places)]


def labelled(folder, sizes, column, label, names, **more):
    """A dataset of one text a row."""
    features = {column: TEXT, label: datasets.ClassLabel(names=names)}
    for split, rows in sizes.items():
        columns = {
            column: texts(split, rows, len(names)),
            label: [i % len(names) for i in range(rows)],
        }
        write(folder, split, columns, features)


def everything(home: Path) -> Path:
    """All datasets of texts, in their folders."""
    labelled(home / "trec", {"train": 1000, "test": 12}, "text", "coarse_label", list("ABCDEF"))
    sentiment = {"train": 2500, "validation": 16, "test": 4}
    labelled(home / "sst2", sentiment, "sentence", "label", ["negative", "positive"])
    intents = [f"i{i}" for i in range(151)]
    intents[42] = "oos"
    sizes = {"train": 302, "validation": 151, "test": 151}
    labelled(home / "clinc_oos/plus", sizes, "text", "intent", intents)
    for split, rows in {"train": 450, "validation": 16, "test": 16}.items():
        columns = {"text": texts(split, rows, 7), "intent": [i % 7 for i in range(rows)]}
        columns["slots"] = [f"O {TAGS[1 + i % 39]} {TAGS[40 + i % 32]} O" for i in range(rows)]
        names = datasets.ClassLabel(names=[f"s{i}" for i in range(7)])
        write(home / "snips", split, columns, {"text": TEXT, "slots": TEXT, "intent": names})
        play = {"text": ["Now is the winter\nof our " * (2 * rows)]}
        write(home / "tiny_shakespeare", split, play, {"text": TEXT})
        lines = {
            "text": ["", " = Title = \n"] + [f" a b <unk> w{i % 5} \n" for i in range(3 * rows)]
        }
        write(home / "wikitext/wikitext-2-v1", split, lines, {"text": TEXT})
    glue(home, ("mrpc",))
    pictures(home)
    answers(home)
    return home


def glue(home: Path, names=None) -> None:
    """GLUE's tasks of pairs: the first word tells the class, or the words that both have the score."""
    sentences = ("sentence1", "sentence2")
    made = {
        "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
        "mrpc": (sentences, ["not_equivalent", "equivalent"]),
        "qnli": (("question", "sentence"), ["entailment", "not_entailment"]),
        "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"]),
        "rte": (sentences, ["entailment", "not_entailment"]),
        "stsb": (sentences, None),
        "wnli": (sentences, ["not_entailment", "entailment"]),
    }
    for name, (columns, classes) in made.items():
        if names is not None and name not in names:
            continue
        label = datasets.ClassLabel(names=classes) if classes else datasets.Value("float32")
        features = dict.fromkeys(columns, TEXT) | {"label": label}
        matched = ("validation_matched", "validation_mismatched") if name == "mnli" else ()
        for split, rows in {"train": 450, **dict.fromkeys(matched or ("validation",), 16)}.items():
            first, second = texts(split, rows, 1), ["a dog sat"] * rows
            if classes:
                given = [(i + 1) % len(classes) for i in range(rows)]
                first = [
                    f"{('cat', 'dog', 'cow')[k]} {x}" for k, x in zip(given, first, strict=True)
                ]
            else:
                given = [i % 11 / 2 for i in range(rows)]
                words = [f"u{i} " for i in range(10)]
                first = ["".join(words) + x for x in first]
                second = ["".join(words[: int(2 * k)]) + "and no more" for k in given]
            pair = dict(zip(columns, (first, second), strict=True))
            write(home / "glue" / name, split, pair | {"label": given}, features)


def answers(home: Path) -> None:
    """Texts with the texts that answer them."""
    for split, rows in {"train": 60, "validation": 10, "test": 10}.items():
        read = [f"Der {split[:2]} Hund {i % 7} und {i}" for i in range(rows)]
        written = [f"The {split[:2]} dog {i % 7} and {i}" for i in range(rows)]
        if split == "train":  # longer than all others, in tokens too
            read[0], written[0] = (
                f"{x} xyz zyx yzx qwv vqw wvq jkp" for x in (read[0], written[0])
            )
        write(home / "multi30k", split, {"de": read, "en": written}, {"de": TEXT, "en": TEXT})
        columns = {"email_body": [f"{x}. Bye" for x in read], "subject_line": written}
        write(home / "aeslc", split, columns, {"email_body": TEXT, "subject_line": TEXT})
        columns = {"source": [[x, "And more."] for x in read]}
        columns["target"] = [[x, f"Another {x}"] for x in written]
        lists = datasets.Sequence(TEXT)
        write(home / "scitldr", split, columns, {"source": lists, "target": lists})


def pictures(home: Path) -> None:
    """Digits drawn and spoken: noise, as files within rows."""
    rng = np.random.default_rng(0)
    digit = datasets.ClassLabel(names=list("0123456789"))
    file = {"bytes": datasets.Value("binary"), "path": TEXT}
    for split, rows in {"train": 180, "test": 10}.items():
        drawn, spoken = [], []
        for _ in range(rows):
            png, wav = io.BytesIO(), io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(png, "PNG")
            soundfile.write(wav, rng.normal(0, 0.1, 4000), 8000, format="WAV")
            drawn.append({"bytes": png.getvalue(), "path": None})
            spoken.append({"bytes": wav.getvalue(), "path": None})
        label = [i % 10 for i in range(rows)]
        columns = {"image": drawn, "label": label}
        write(home / "mnist", split, columns, {"image": file, "label": digit})
        columns = {"audio": spoken, "label": label, "take": [5 + i % 45 for i in range(rows)]}
        take = datasets.Value("int32")
        write(home / "fsdd", split, columns, {"audio": file, "label": digit, "take": take})
