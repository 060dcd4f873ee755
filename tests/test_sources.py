"""Datasets as tables: from files and from the hub, and what is said where they cannot be had."""

import datasets
import pytest
from fake_data import TEXT, write

from configs import trec
from tinyattn import config, sweep, tasks
from tinyattn.tasks import Source, _source

NAMES = datasets.ClassLabel(names=["no", "yes"])
FEATURES = {"text": TEXT, "label": NAMES}
ROWS = {"text": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}
READ = ("me/mine", "", ("train",), ("text", "label"))


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No directory of this machine's."""
    monkeypatch.delenv(_source.DIRECTORY, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def home(tmp_path):
    write(tmp_path / "mine", "train", ROWS, FEATURES)
    return tmp_path


def test_a_directory_given_either_way(home, monkeypatch):
    data = Source(dir=str(home)).read(*READ)
    assert data["train"].to_dict() == ROWS and data.names("label") == ("no", "yes")
    assert data.frames()["train"].index.tolist() == [0, 1, 2, 3]
    assert data.renamed(train="test")["test"] is data["train"]
    monkeypatch.setenv(_source.DIRECTORY, str(home))
    assert Source().read(*READ).fingerprint() == data.fingerprint()


@pytest.mark.parametrize("pattern", _source.LAYOUTS[1:])
def test_files_in_parts_are_the_same_rows_in_order(home, tmp_path, pattern):
    whole = Source(dir=str(home)).read(*READ)
    for part, rows in enumerate((slice(0, 3), slice(3, 4))):
        path = tmp_path / "parts" / "mine" / pattern.format(split="train").replace("*", f"0{part}")
        columns = {name: x[rows] for name, x in ROWS.items()}
        write(path.parent, path.stem, columns, FEATURES)
    found = Source(dir=str(tmp_path / "parts")).read(*READ)
    assert found["train"].to_dict() == ROWS and found.fingerprint() == whole.fingerprint()


def test_a_fingerprint_is_of_rows_order_and_names(home, tmp_path):
    seen = {Source(dir=str(home)).read(*READ).fingerprint()}
    others = [
        ({**ROWS, "text": ["a", "b", "c", "x"]}, FEATURES),
        ({name: x[::-1] for name, x in ROWS.items()}, FEATURES),
        (ROWS, {**FEATURES, "label": datasets.ClassLabel(names=["yes", "no"])}),
    ]
    for i, (rows, features) in enumerate(others):
        write(tmp_path / f"{i}" / "mine", "train", rows, features)
        seen.add(Source(dir=str(tmp_path / f"{i}")).read(*READ).fingerprint())
    assert len(seen) == 4


def test_what_is_wrong_with_files_is_said_with_the_remedy(home):
    source, path = Source(dir=str(home)), home / "mine" / "train.parquet"
    for arguments, message in (
        (("me/other", *READ[1:]), r"other of me/other cannot|has no folder|--config.data.dir"),
        (("me/mine", "", ("train", "test"), ("text",)), "no test.parquet, .* files: train.parquet"),
        (
            ("me/mine", "", ("train",), ("text", "answer")),
            "'train' has no column 'answer', only text",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Source(source="dir", dir=str(home)).read(*arguments)
    with pytest.raises(ValueError, match=r"column 'text' is a .*ClassLabel"):
        source.read(*READ).names("text")
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", whole[:4] + bytes(40) + whole[44:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{path} is no whole Parquet file .*copy it again"):
            source.read(*READ)["train"].to_dict()


def test_a_column_of_something_else_is_no_text(tmp_path):
    features = {"text": datasets.Value("int32"), "coarse_label": NAMES}
    for split in ("train", "test"):
        write(tmp_path / "trec", split, {"text": [1, 2], "coarse_label": [0, 1]}, features)
    with pytest.raises(
        ValueError, match=r"CogComp/trec: column 'text' of the train split is .*int32"
    ):
        tasks.load(tasks.spec("trec"), {"dir": str(tmp_path)})


def test_the_hub_is_asked_where_no_directory_has_it(home, monkeypatch):
    asked = []
    made = datasets.DatasetDict(train=datasets.Dataset.from_dict(ROWS, datasets.Features(FEATURES)))

    def load_dataset(name, config, revision=None):
        asked.append((name, config, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found mine.py")
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    want = Source(dir=str(home)).read(*READ).fingerprint()
    assert asked == []
    assert Source(dir=str(home / "empty")).read(*READ).fingerprint() == want
    assert Source(source="hub", dir=str(home)).read(*READ).fingerprint() == want
    assert asked == 2 * [("me/mine", None, None), ("me/mine", None, _source.CONVERTED)]
    with pytest.raises(ValueError, match="me/mine has no split 'test', only train"):
        Source().read("me/mine", "", ("test",), ("text",))


def test_without_a_network_the_error_says_what_provides_the_data(monkeypatch):
    def load_dataset(name, config, revision=None):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (LocalEntryNotFoundError)\nlong")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError) as said:
        tasks.load(tasks.spec("trec"))
    for part in (
        "Couldn't reach 'CogComp/trec'",
        "TINYATTN_DATA",
        "--config.data.dir",
        "hf download",
    ):
        assert part in str(said.value)
    with pytest.raises(
        ValueError, match="snips is not on the hub: give a directory that has snips/"
    ):
        tasks.load(tasks.spec("snips"))
    with pytest.raises(ValueError, match=r"data.source='dir', but no directory is given"):
        tasks.load(tasks.spec("trec"), {"source": "dir"})
    with pytest.raises(ValueError, match=r"data.source='embeded'; Valid names: auto, dir, hub"):
        tasks.load(tasks.spec("trec"), {"source": "embeded"})


def test_a_run_is_known_whatever_the_directory(tmp_path):
    digests = set()
    for place in ("here", "there"):
        rows = {
            "text": [f"what {i}" for i in range(700)],
            "coarse_label": [i % 6 for i in range(700)],
        }
        features = {"text": TEXT, "coarse_label": datasets.ClassLabel(names=list("ABCDEF"))}
        for split, n in (("train", 700), ("test", 6)):
            shown = {name: [f"{split} {x}" if name == "text" else x for x in column[:n]]
                     for name, column in rows.items()}  # fmt: skip
            write(tmp_path / place / "trec", split, shown, features)
        base = config.override(trec.get_config("smoke"), {"data.dir": str(tmp_path / place)})
        (row,) = sweep.expand(base, [("a", {})])
        digests.add(row.runs[0].digest)
        assert "data" not in row.runs[0].config
        assert row.program.task.told["dataset"] == "CogComp/trec"
    assert len(digests) == 1
