"""Records survive being killed, stay strict JSON, and say where they come from."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_results import record

from tinyattn import records

pytestmark = pytest.mark.filterwarnings("error")


def test_a_run_comes_back_as_it_was_written(tmp_path):
    folder = records.run_dir(tmp_path, "ab12")
    correct = np.array([True, False, True])
    records.write(folder, record("dense", 3, 0.5), {"correct": correct, "label": np.arange(3)})
    assert records.read(folder) == record("dense", 3, 0.5)
    stored = records.arrays(tmp_path, "ab12")
    assert set(stored) == {"correct", "label"}
    np.testing.assert_array_equal(stored["correct"], correct)
    assert stored["correct"].dtype == bool
    assert sorted(path.name for path in folder.iterdir()) == ["record.json", "test.npz"]


def test_what_is_not_there_is_none(tmp_path):
    assert records.read(tmp_path / "runs" / "none") is None
    assert records.arrays(tmp_path, "none") is None


def test_json_is_strict_and_knows_numpy(tmp_path):
    fields = record("dense", 0) | {
        "metrics": {
            "test_accuracy": np.float32(0.5),
            "loss": math.nan,
            "gap": -math.inf,
            "curve": np.array([1.0, math.nan]),
            "best_step": np.int64(7),
            "good": np.bool_(True),
        }
    }
    records.write(tmp_path, fields)
    text = (tmp_path / "record.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    expected = [0.5, None, None, [1.0, None], 7, True]
    assert list(json.loads(text)["metrics"].values()) == expected


def test_a_value_without_json_form_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"record\.config\.rng\[1\] .*object"):
        records.write(tmp_path, record("dense", 0) | {"config": {"rng": [0, object()]}})
    assert records.read(tmp_path) is None


def test_a_record_must_say_which_run_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"\['seed'\]"):
        records.write(tmp_path, {"row": "dense", "status": "ok"})


def test_truncated_record_names_file_and_remedy(tmp_path):
    records.write(tmp_path, record("dense", 0))
    path = tmp_path / "record.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"record\.json .*delete the folder"):
        records.read(tmp_path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="list instead of an object"):
        records.read(tmp_path)


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_dying_while_writing_leaves_the_old_record(tmp_path, monkeypatch, stage):
    records.write(tmp_path, record("dense", 0, 0.25))

    def die(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, stage, die)
    with pytest.raises(KeyboardInterrupt):
        records.write(tmp_path, record("dense", 0, 0.75))
    assert records.read(tmp_path)["metrics"]["test_accuracy"] == 0.25
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_record_implies_its_arrays(tmp_path, monkeypatch):
    """Killed between the two files, a run has no record yet and is done again."""
    moved, replace = [], os.replace

    def once(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target.name)
        replace(source, target)

    monkeypatch.setattr(records.os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        records.write(tmp_path, record("dense", 0), {"correct": np.ones(3, bool)})
    assert moved == ["test.npz"]
    assert records.read(tmp_path) is None


def test_a_workdir_is_one_process_at_a_time(tmp_path):
    folder = tmp_path / "runs"
    code = f"import time; from tinyattn import records\nwith records.alone({str(folder)!r}):"
    code += "\n    print('in', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        refused = pytest.raises(ValueError, match="runs is in use by another process: wait for its")
        with refused, records.alone(folder):
            pass
        # As a cluster ends a job that had its time.
        other.kill()
    for _ in range(2):
        with records.alone(folder):
            pass


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        refused = pytest.raises(
            ValueError, match=r"is no directory that can be written .*give another"
        )
        with refused, records.alone(folder):
            pass


def test_gathered_lines_keep_their_order_and_load_flat(tmp_path):
    written = [record("window", 1), record("dense", 0), record("dense", 1, None)]
    path = records.gather(tmp_path, written)
    frame = records.load(tmp_path)
    assert frame["row"].tolist() == ["window", "dense", "dense"]
    assert frame["costs.stored_bytes"].tolist() == [186_664] * 3
    assert frame["config.model.attention.name"].tolist() == ["window", "dense", "dense"]
    assert frame["metrics.test_accuracy"].isna().tolist() == [False, False, True]
    assert pd.read_json(path, lines=True)["seed"].tolist() == [1, 0, 1]
    records.gather(tmp_path, written[:1])
    assert len(records.load(tmp_path)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.jsonl"]


def test_loading_nothing_names_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"no .*results\.jsonl.*python -m experiments\.ablate"):
        records.load(tmp_path)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no run yet"):
        records.load(tmp_path)


def test_a_broken_line_is_named(tmp_path):
    path = records.gather(tmp_path, [record("dense", 0), record("dense", 1)])
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2: "):
        records.load(tmp_path)


def test_environment_names_versions_and_device(tmp_path):
    found = records.environment()
    assert set(found) == {"versions", "commit", "dirty", "device"}
    expected = {"python", "jax", "jaxlib", "flax", "optax", "numpy", "tinyattn"}
    assert set(found["versions"]) == expected
    assert all(found["versions"].values())
    assert found["device"].endswith(("cores", "devices"))
    records.write(tmp_path, record("dense", 0) | found)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of its own that holds one tracked module."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    source = tmp_path / "package" / "module.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    person = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*person, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    return source


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_revision_is_dirty_by_python_files_only(checkout, monkeypatch):
    commit, dirty = records.revision(checkout)
    assert len(commit) == 40 and dirty is False
    (checkout.parent / "results.jsonl").write_text("{}\n")
    assert records.revision(checkout) == (commit, False)
    variant = checkout.parent / "variant.py"
    variant.write_text("y = 2\n")
    assert records.revision(checkout) == (commit, True)
    assert records.revision(variant) == (None, None)  # not of that commit
    variant.unlink()
    checkout.write_text("x = 2\n")
    assert records.revision(checkout) == (commit, True)
    # As inside a git hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(checkout.parent / "elsewhere"))
    assert records.revision(checkout) == (commit, True)


def test_revision_without_git_or_repository(tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text("")
    assert records.revision(tmp_path / "module.py") == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert records.revision(records.Path(records.__file__)) == (None, None)
