"""What a newcomer adds: a variant in a package of their own, rows in a table, a config file.

The package is `tests/myfork`, whose one file is also the example of the README.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fake_data
import jax
import numpy as np
import pytest

from configs import digits
from configs.ablations import first
from experiments import cli
from tinyattn import attention, config, cost, model, records, sweep, train, weights

ROOT = Path(__file__).parent.parent
TINY = {
    "task.shift": 0,
    "model.patch": 4,
    "model.width": 8,
    "model.num_layers": 1,
    "model.ffn_width": 8,
    "train.steps": 4,
    "train.batch_size": 16,
    "train.eval_every": 0,
    "train.steps_per_dispatch": 4,
    "optim.warmup_steps": 1,
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The fork's own folder, which Python finds and we do not know of."""
    shutil.copytree(ROOT / "tests" / "myfork", tmp_path / "myfork")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("myfork", "myfork.cosine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_the_example_is_short():
    lines = (ROOT / "tests" / "myfork" / "cosine.py").read_text().splitlines()
    assert len(lines) <= 65 and max(map(len, lines)) <= 100
    assert len([line for line in lines if line.strip()]) <= 50


def test_it_passes_the_conformance_suite(elsewhere):
    # Tests that are imported as plain files do not put our copy of the fork on the path.
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--durations=0"]
    command += ["--import-mode=importlib", str(ROOT / "tests" / "test_attention.py")]
    command += ["--attention=myfork.cosine", "-k=cosine"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(elsewhere), str(ROOT)]),
    }
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = dict(re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1]))
    counts = {word: int(number) for number, word in counts.items()}
    # Skipped: where it is dense, the useful pairs there, and decoding.
    assert counts["skipped"] == 3 and counts["passed"] >= 24, counts


def test_it_is_a_row_of_a_table(elsewhere):
    rows = [
        ("dense", {}),
        ("cosine", {"model.attention": attention.spec("myfork.cosine", temperature=0.5)}),
    ]
    base = config.override(digits.get_config(), TINY)
    table = sweep.expand(base, rows)
    module = importlib.import_module("myfork.cosine")
    assert Path(module.__file__).is_relative_to(elsewhere)
    # The heads of the base stay; the table remembers what was run.
    assert table[1].runs[0].config["model"]["attention"] == {
        "name": "myfork.cosine",
        "num_heads": 4,
        "num_kv_heads": 0,
        "head_dim": 0,
        "temperature": 0.5,
    }

    def buggy(state, data, indices):
        raise TypeError("first line\nsecond line")

    run = table[1].runs[0]._replace(row="buggy", digest="buggy")
    bug = sweep.Row("buggy", table[1].program._replace(run=buggy), (run,))
    dense, failed, cosine = sweep.run_table([table[0], bug, table[1]], elsewhere / "work")
    # A bug shows where it is, and the other rows go on.
    assert failed["status"] == "failed" and "in buggy" in failed["error"]
    assert failed["error"].startswith("TypeError: first line\nTraceback")
    assert cosine["status"] == "ok" and cosine["metrics"]["test_accuracy"] > 0
    assert set(cosine["costs"]) == {column.key for column in cost.COLUMNS}
    # Turning is elementwise work and no product.
    for key in ("useful_flops", "executed_flops", "params", "stored_bytes"):
        assert cosine["costs"][key] == dense["costs"][key]
    assert cosine["costs"]["elementwise_ops"] > dense["costs"]["elementwise_ops"]
    assert cosine["metrics"]["test_loss"] != dense["metrics"]["test_loss"]
    assert records.load(elsewhere / "work")["config.model.attention.temperature"].tolist()[2] == 0.5


def test_a_mistake_in_it_is_said_before_anything_runs(elsewhere):
    with pytest.raises(
        ValueError, match=r"'myfork.cosine' has no field 'temperatur'; did you mean 'temperature'"
    ):
        attention.spec("myfork.cosine", temperatur=1)
    with pytest.raises(ValueError, match=r"no module called 'myfork.rign'"):
        attention.spec("myfork.rign")
    stale = config.override(digits.get_config(), {"model.attention.name": "myfork.cosine"})
    with pytest.raises(ValueError, match=r"row 'x': the section .* has no field 'block'"):
        sweep.expand(stale, [("x", {})])


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({}, [("a", {}), ("a", {})], "row 'a': there are two rows"),
        ({}, [], "the table has no row"),
        ({}, [("a", {}), ("b", {"modle.width": 3})], "row 'b': unknown key 'modle.width'"),
        ({}, [("a", {"model.width": 9})], "row 'a': num_heads=4 must divide the model width 9"),
        ({}, [("a", {"weights": (weights.spec("share", groups=2),)})], "row 'a': share: groups=2"),
        ({}, [("a", {"weights": (weights.spec("delta", leaves="x"),)})], "no leaf matches 'x'"),
        ({}, [("a", {"checkpoint.keep": 0})], "row 'a': keep=0"),
        ({}, [("a", {"train.batch_size": 2000})], "batch_size=2000 is more than the 1257"),
        ({}, [("a", {"train.micro_batches": 3})], "must be a multiple of micro_batches = 3"),
        ({"seeds": ()}, [("a", {})], "row 'a': seeds="),
        ({"seeds": (1, 1)}, [("a", {})], "must be one or more different whole numbers"),
        ({"seeds": (2**32,)}, [("a", {})], "whole numbers, 0 to"),
        ({"seeds": (0.5,)}, [("a", {})], "whole numbers, 0 to"),
    ],
)
def test_every_row_is_checked_before_the_first_one_runs(changes, rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep.expand(config.override(digits.get_config(), TINY | changes), rows)


def test_every_config_file_makes_a_program(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYATTN_DATA", str(fake_data.everything(tmp_path)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = [path for path in (ROOT / "configs").rglob("*.py") if "get_config" in path.read_text()]
    assert len(files) >= 2
    for path in files:
        # As it is trained it needs data that are whole.
        model.build(cli.load(str(path)).get_config(None).lock()["model"])
        program = train.make(cli.load(str(path)).get_config("smoke").lock())
        assert program.config.steps <= 20, path


def test_the_first_table_is_the_issue_s():
    table = {row.name: row for row in sweep.expand(first.get_config(), first.rows())}
    assert list(table) == [
        "dense",
        "grouped-query",
        "window",
        "linear",
        "shared",
        "W0 + D⊙V",
        "shared + D⊙V",
        "window + shared + D⊙V",
    ]
    assert {len(row.runs) for row in table.values()} == {5}
    parts = {name: row.runs[0].config for name, row in table.items()}
    mixing = {name: part["model"]["attention"] for name, part in parts.items()}
    assert {name for name, part in mixing.items() if part["name"] != "dense"} == {
        "window",
        "linear",
        "window + shared + D⊙V",
    }
    assert mixing["window"] == mixing["window + shared + D⊙V"]
    assert 1 < mixing["grouped-query"]["num_kv_heads"] < mixing["grouped-query"]["num_heads"] == 4
    listed = {name: [part["name"] for part in parts[name]["weights"]] for name in parts}
    assert listed["dense"] == listed["window"] == listed["linear"] == listed["grouped-query"] == []
    assert listed["shared"] == ["share"] and listed["W0 + D⊙V"] == ["delta"]
    assert listed["shared + D⊙V"] == listed["window + shared + D⊙V"] == ["delta", "share"]
    delta = parts["shared + D⊙V"]["weights"][0]
    (product,) = delta["products"]
    assert (delta["w0"], product["d"]["kind"], product["v"]["kind"]) == ("seed", "row", "full")
    # A scheme that may refuse a model is asked by its true shapes, not by values.
    zero = weights.presets.delta({"d": {"kind": "row"}, "v": {"std": 0.5}}, leaves="kernel$")
    sweep.expand(first.get_config(), [("D = 0", {"weights": (zero,)})])
    # Layers share all but their own D.
    theta = sizes(table["shared + D⊙V"])
    alone, every = sizes(table["shared"]), sizes(table["W0 + D⊙V"])
    assert alone.params < theta.params < every.params


def sizes(row):
    """Of a theta of zeros, which is all that a count needs."""
    encoder, inputs = row.program.model, row.program.task.train.inputs[:1]
    shapes = jax.eval_shape(encoder.init, jax.random.PRNGKey(0), inputs)["params"]
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return weights.sizes(row.program.scheme.init(jax.random.PRNGKey(0), zeros))
