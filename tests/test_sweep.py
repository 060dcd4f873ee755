"""A table runs each configuration once, remembers it, and says what it cost."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from configs import digits
from tinyattn import attention, config, cost, records, sweep, train, weights

DELTA = weights.presets.delta({"d": {"value": 0.5, "role": "fixed", "kind": "row"}}, w0="seed")
SHARE = weights.spec("share")
TINY = {
    "seeds": (0, 1),
    "task.shift": 0,
    "model.patch": 4,
    "model.width": 8,
    "model.ffn_width": 8,
    "model.attention.num_heads": 2,
    "train.batch_size": 16,
    "train.steps": 6,
    "train.eval_every": 3,
    "train.steps_per_dispatch": 3,
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0.5,
    "optim.clip_norm": 0.0,
}
WILD = {"optim.optimizer": "sgd", "optim.learning_rate": 1e30}
ROWS = {
    "dense": {},
    "seeded": {"weights": (DELTA, weights.spec("share", keep="/d$"))},
    "dense again": {"model.attention": attention.spec("dense", num_heads=2)},
    "diverges": WILD | {"weights": (SHARE,)},
}
ISSUE = {"row", "seed", "status", "metrics", "costs", "config", "versions", "device", "seconds"}
METRICS = {"validation_accuracy", "validation_loss", "test_accuracy", "test_loss", "step"}
MORE = {"data", "metric", "digest", "simulated", "history", "commit", "dirty", "figure"}


class Watched(sweep.Watcher):
    def __init__(self):
        self.started, self.tables, self.steps = [], [], 0

    def table(self, done, total):
        self.tables.append((done, total))

    def start(self, row, seeds):
        self.started.append((row, tuple(seeds)))

    def progress(self, progress):
        self.steps += progress.stride


def base(**changes):
    return config.override(digits.get_config(), TINY | changes)


@pytest.fixture(scope="module")
def table():
    return sweep.expand(base(), ROWS.items())


@pytest.fixture(scope="module")
def first(table, tmp_path_factory):
    """The table run once: its directory, its records and what was told on the way."""
    workdir, watched = tmp_path_factory.mktemp("table"), Watched()
    return workdir, sweep.run_table(table, workdir, watched), watched


@pytest.fixture
def workdir(first, tmp_path):
    return shutil.copytree(first[0], tmp_path / "copy")


def rerun(table, workdir):
    watched = Watched()
    return sweep.run_table(table, workdir, watched), watched


def expand(table, rows, **changes):
    """Rows whose programs, but for what the host decides, are compiled already."""
    found = sweep.expand(base(**changes), rows.items())
    compiled = {row.name: row.program for row in table}
    programs = [compiled.get(row.name, table[0].program) for row in found]
    return [
        row._replace(program=program._replace(config=row.program.config))
        for row, program in zip(found, programs, strict=True)
    ]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def times(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.glob("runs/*/*")}


def test_each_configuration_is_trained_once(first):
    workdir, _, watched = first
    # "dense again" is the same configuration as "dense".
    assert watched.started == [(r, (s,)) for r in ("dense", "seeded", "diverges") for s in (0, 1)]
    # Six steps a run; those that diverge end in the first dispatch.
    assert watched.steps == 4 * 6 + 2 * 3
    assert watched.tables == [(0, 8), (2, 8), (4, 8), (5, 8), (6, 8), (6, 8), (6, 8)]
    assert len(list(workdir.glob("runs/*/record.json"))) == 6
    assert not list(workdir.glob("runs/*/checkpoints"))


def test_results_hold_a_line_a_row_and_seed(first):
    workdir, returned, _ = first
    found, here = lines(workdir), records.environment()
    assert [(x["row"], x["seed"]) for x in found] == [(r, s) for r in ROWS for s in (0, 1)]
    assert [x["row"] for x in returned] == [x["row"] for x in found]
    for x in found:
        failed = x["row"] == "diverges"
        assert x["status"] == ("failed" if failed else "ok")
        assert set(x) == ISSUE | MORE | ({"error"} if failed else set())
        assert set(x["costs"]) == {column.key for column in cost.COLUMNS}
        state = x["costs"].pop("decode_state_bytes")  # an encoder's, which decodes nothing
        assert state is None and all(type(y) in (int, float) for y in x["costs"].values())
        assert x["seconds"] > 0 and x["device"] == here["device"]
        assert x["versions"] == here["versions"]
        assert x["config"]["seed"] == x["seed"] and x["digest"] == config.digest(x["config"])
        assert set(x["metrics"]) == (set() if failed else METRICS)
        assert [entry["step"] for entry in x["history"]] == ([] if failed else [3, 6])
    # The issue's promise, word for word: one line.
    frame = pd.read_json(workdir / "results.jsonl", lines=True)
    assert sum("test_accuracy" in metrics for metrics in frame["metrics"]) == 6


def test_arrays_per_example_explain_the_accuracy(first, table):
    workdir, found, _ = first
    for x in found[:4]:
        arrays = records.arrays(workdir, x["digest"])
        assert arrays["correct"].dtype == bool and len(arrays["correct"]) == 360
        assert arrays["correct"].mean() == x["metrics"]["test_accuracy"]
        np.testing.assert_allclose(arrays["loss"].mean(), x["metrics"]["test_loss"], rtol=1e-6)
        # The same examples in the same order in every row, as a paired test needs.
        np.testing.assert_array_equal(arrays["label"], table[0].program.task.test.labels)


def test_a_row_that_fails_says_why_and_the_others_go_on(first):
    for x in first[1][-2:]:
        assert x["error"].startswith("non-finite loss at step 1: lower optim.learning_rate")
        assert x["row"] == "diverges" and x["config"]["optim"]["learning_rate"] == 1e30


def test_costs(first, table):
    found = {x["row"]: x["costs"] for x in first[1] if x["seed"] == 0}
    dense, seeded = found["dense"], found["seeded"]
    for row, costs in found.items():
        assert 0 < costs["useful_flops"] <= costs["executed_flops"], row
        assert costs["latency_seconds"] > 0 and costs["peak_activation_bytes"] > 0
    assert dense["latency_ratio"] == 1 and dense["useful_flops"] == dense["executed_flops"]
    # Forward, two products backward for each, and the scores once more.
    assert 2.8 < dense["training_flops"] / dense["executed_flops"] < 3.1
    # By hand: 4 tokens of 16 pixels, D = F = 8, two layers of 4 projections, 2 pair products, FFN.
    layer = 4 * 4 * 8 * 8 + 2 * 4 * 4 * 8 + 2 * 4 * 8 * 8
    assert dense["executed_flops"] == 2 * (4 * 16 * 8 + 2 * layer + 8 * 10)
    # Sharing and folding save bytes and no inference FLOPs.
    shared, base_flops = found["diverges"], dense["executed_flops"]
    assert shared["executed_flops"] == seeded["executed_flops"] == base_flops
    assert dense["stored_bytes"] == 4 * dense["params"] == 4 * dense["trainable_params"]
    assert dense["params"] - shared["params"] == 6 * (8 * 8 + 8) + 2 * 16  # a layer
    # W0 is regenerated: a seed (8), its scale and its checksum (4 + 4) for each of six kernels. V is
    # stored once for both layers, D for each, and neither D nor W0 is trained.
    kernels, rows = 6 * 64, 6 * 8
    assert seeded["params"] == shared["params"] + kernels + 2 * rows
    assert seeded["trainable_params"] == shared["params"]
    assert seeded["stored_bytes"] == 4 * (shared["params"] + 2 * rows) + 6 * 16


def test_running_again_trains_only_what_failed(table, workdir):
    before = times(workdir)
    again, watched = rerun(table, workdir)
    assert watched.started == [("diverges", (0,)), ("diverges", (1,))]
    changed = {path for path, time in times(workdir).items() if before.get(path) != time}
    failed = {x["digest"] for x in again if x["status"] == "failed"}
    assert {path.parent.name for path in changed} == failed
    assert [x["row"] for x in lines(workdir)] == [x["row"] for x in again]
    # Without them nothing is left to do.
    _, watched = rerun(table[:3], workdir)
    assert watched.started == [] and watched.steps == 0 and watched.tables == [(6, 6)]


def test_a_new_row_or_seed_costs_only_itself(table, workdir):
    before = times(workdir)
    rows = ROWS | {"patient": {"train.patience": 9, "seeds": (2,)}}
    rows = {name: rows[name] for name in ("dense", "patient", "seeded")}
    found, watched = rerun(expand(table, rows, seeds=(2, 0, 1)), workdir)
    assert watched.started == [("dense", (2,)), ("patient", (2,)), ("seeded", (2,))]
    wanted = {"dense": (2, 0, 1), "patient": (2,), "seeded": (2, 0, 1)}
    assert [(x["row"], x["seed"]) for x in found] == [(r, s) for r in wanted for s in wanted[r]]
    assert {path: time for path, time in times(workdir).items() if path in before} == before
    losses = [x["metrics"]["test_loss"] for x in found]
    assert len(set(losses)) == 6 and losses[0] == losses[3]  # patience changes nothing here


def test_seeds_in_one_program_give_the_same_numbers(table, first, tmp_path):
    rows = expand(table, {"dense": {}}, **{"train.seeds_per_program": 8})
    found, watched = rerun(rows, tmp_path)
    assert watched.started == [("dense", (0, 1))]
    for many, one in zip(found, first[1][:2], strict=True):
        assert many["metrics"]["test_accuracy"] == one["metrics"]["test_accuracy"]
        loss = one["metrics"]["test_loss"]
        np.testing.assert_allclose(many["metrics"]["test_loss"], loss, rtol=1e-5)
        assert many["digest"] != one["digest"] and many["seed"] == one["seed"]
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_a_damaged_record_is_named(table, workdir, first):
    path = records.run_dir(workdir, first[1][2]["digest"]) / "record.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"record.json is not a whole record .* delete the folder"):
        rerun(table, workdir)
    shutil.rmtree(path.parent)
    found, watched = rerun(table[:3], workdir)
    assert watched.started == [("seeded", (0,))]
    for key in ("metrics", "history", "digest"):
        assert found[2][key] == first[1][2][key]


def test_a_record_rebuilds_its_program(first, table):
    record, seeded = first[1][2], table[1].program
    program = train.make(record["config"])
    assert program.config == seeded.config
    settings = [dataclasses.asdict(p.model.config) for p in (program, seeded)]
    assert config.plain(settings[0]) == config.plain(settings[1])
    theta, other = (p.init(record["seed"]).theta for p in (program, seeded))
    assert jax.tree.structure(theta) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, theta, other)


def test_frozen_leaves_do_not_move(table):
    """Weight decay, which pulls at all that is trained, does not reach them."""
    program = table[1].program
    state, task = program.init(0), program.task
    frozen, moving = jax.tree.map(np.array, (state.rest, state.trainable))
    kinds = {type(leaf) for leaf in weights.leaves(state.theta).values()}
    assert kinds >= {weights.Seeded, weights.Fixed, weights.Alias}
    indices = train.batches(0, len(task.train.labels), 16, 0, 3)
    state, _ = program.run(state, jax.tree.map(jnp.asarray, task.train), indices)
    jax.tree.map(np.testing.assert_array_equal, state.rest, frozen)
    jax.tree.map(lambda a, b: np.testing.assert_(np.any(a != b)), state.trainable, moving)
