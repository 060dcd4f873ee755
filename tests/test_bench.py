"""Timing in turns, and the speed suites and their tables, as far as they go without PyTorch or a GPU."""

import importlib.util
import json
import types

import numpy as np
import pytest

from experiments import (
    attention_sides,
    bench,
    bench_attention,
    bench_length,
    bench_weights,
    timing,
)


def test_sides_take_turns_and_only_their_second_call_counts(monkeypatch):
    """A clock that each call moves on: the first call of a turn by ten times as much as the second."""
    now, calls = [0.0], []

    def side(name, cost):
        def call():
            first = not calls or calls[-1] != name or calls[-2:] == [name, name]
            calls.append(name)
            now[0] += 10 * cost if first else cost

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "LONG", 100.0)
    seconds = timing.rounds([side("a", 1.0), side("b", 3.0)], seconds=100.0)
    assert calls[:6] == ["a", "a", "b", "b", "a", "a"]
    # A round takes 11 + 33 of the clock; at least seven are made.
    assert seconds.shape == (2, timing.LEAST)
    np.testing.assert_array_equal(seconds, [[1.0] * 7, [3.0] * 7])


def test_long_calls_are_timed_once_a_round(monkeypatch):
    now, calls = [0.0], []

    def call():
        calls.append(1)
        now[0] += 2.0

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    np.testing.assert_array_equal(timing.rounds([call], seconds=1.0), [[2.0] * 3])
    assert len(calls) == 3


def test_a_sample_is_the_median_and_the_quartiles():
    assert timing.Sample.of(range(101)) == (50, 25, 75)


@pytest.mark.parametrize(("backend", "calls"), [("cpu", 1), ("gpu", 20)])
def test_a_gpu_is_timed_over_many_short_calls(backend, calls, monkeypatch):
    now, asked = [0.0], []

    def wait(out):
        now[0] += 0.0005 * len(asked)
        asked.clear()

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.jax, "default_backend", lambda: backend)
    side = timing.side(lambda: asked.append(1), wait)
    assert side.calls == calls and not asked
    seconds = timing.rounds([side.run], seconds=0.0) / side.calls
    np.testing.assert_allclose(seconds, 0.0005)


def suite(fails):
    """One of two shapes, of which some fail."""

    def measure(shape):
        if shape in fails:
            raise MemoryError("too large")
        return {"shape": shape}

    def table(results):
        return f"{[r['shape'] for r in results]}"

    return types.SimpleNamespace(shapes=lambda: ("a", "b"), measure=measure, table=table)


@pytest.mark.parametrize("fails", ["a", "b", "ab"])
def test_a_shape_that_fails_leaves_the_others(fails, tmp_path):
    left = [shape for shape in "ab" if shape not in fails]
    found = bench.measure(suite(fails), "own", tmp_path, {"device": "cpu: a machine"})
    assert found == [f"{shape}, MemoryError" for shape in fails]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["own.jsonl", "own.md"][
        : 2 * len(left)
    ]
    if left:
        assert (tmp_path / "own.md").read_text() == f"{left}"
        lines = (tmp_path / "own.jsonl").read_text().splitlines()
        assert [json.loads(line)["shape"] for line in lines] == left


def test_what_is_measured_is_written_before_the_next_shape(tmp_path):
    own, seen = suite(""), []
    shapes = own.measure

    def measure(shape):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        return shapes(shape)

    own.measure = measure
    bench.measure(own, "own", tmp_path, {"device": "cpu: a machine"})
    assert seen == [[], ["own.jsonl", "own.md"]]


def test_a_folder_is_of_one_device(tmp_path):
    path = tmp_path / "own.jsonl"
    bench.check_device(path, "gpu: another")
    bench.measure(suite(""), "own", tmp_path, {"device": "cpu: a machine"})
    bench.check_device(path, "cpu: a machine")
    with pytest.raises(SystemExit, match="measured on cpu: a machine, and this is gpu: another"):
        bench.check_device(path, "gpu: another")


def test_the_attention_table_shows_each_peer_and_direction():
    def sides(ours, peer):
        ratio = timing.Sample.of([peer / ours])._asdict()
        return {"ours": {"seconds": ours}, "jax.nn": {"seconds": peer, "ratio": ratio}}

    record = {"shape": "B1 T8 N4 H2", "device": "cpu: a machine", "dtype": "float32"}
    missing = {"tokamax": {"failed": "ModuleNotFoundError: No module named 'tokamax'"}}
    directions = {"forward": sides(0.002, 0.004) | missing, "both": sides(0.0001, 5e-5) | missing}
    text = bench_attention.table([record | directions])
    rows = text.split("\n\n")[0].splitlines()[2:]
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        ["B1 T8 N4 H2", "forward", "2.0", "2.00x (2.00-2.00)", "—"],
        ["B1 T8 N4 H2", "with gradient", "0.100", "0.50x (0.50-0.50)", "—"],
    ]
    assert "float32, no mask. cpu: a machine." in text
    assert text.count("- tokamax: ModuleNotFoundError: No module named 'tokamax'") == 1


def shrunk(monkeypatch, kind, **fields):
    own = bench_attention.SETTINGS[kind]._replace(heads=4, tokens=64, seconds=0.0, **fields)
    monkeypatch.setattr(bench_attention, "setting", lambda: own)
    monkeypatch.setattr(timing, "LEAST", 1)


def test_a_peer_that_fails_or_differs_loses_its_cell(monkeypatch, capsys):
    """At a GPU's precision: bfloat16."""

    def missing():
        raise ModuleNotFoundError("No module named 'absent'")

    others = {"absent": missing, "wrong": lambda: lambda query, key, value: query}
    for name, side in others.items():
        monkeypatch.setitem(attention_sides.JAX, name, side)
    shrunk(monkeypatch, "gpu", peers=("absent", "jax.nn", "wrong"))
    result = bench_attention.measure((32, 8))
    assert result["dtype"] == "bfloat16"
    for direction in ("forward", "both"):
        own = result[direction]
        assert own["absent"] == {"failed": "ModuleNotFoundError: No module named 'absent'"}
        assert "norms from the reference" in own["wrong"]["failed"]
        assert own["ours"]["ratio"]["median"] == 1.0
        assert 0 < own["jax.nn"]["distance"] < 5 / 256
    assert capsys.readouterr().err.count("absent at B2 T32 N4 H8") == 2
    assert "—" in bench_attention.table([result | {"device": "gpu: a machine"}])


def test_our_own_failure_is_the_shape_s(monkeypatch):
    monkeypatch.setitem(attention_sides.JAX, "ours", lambda: lambda query, key, value: query)
    shrunk(monkeypatch, "cpu")
    with pytest.raises(ValueError, match="norms from the reference, where 1"):
        bench_attention.measure((32, 8))


def without_retention(name, T, both):
    if name == "retention":
        raise MemoryError("too large")
    return timing.side(lambda: sum(range(100))), 100


def test_growth_is_told_apart_from_a_machine_that_slows_down():
    """At the longer length all takes twice as long as it did, and what is quadratic eight times."""

    def result(T, seconds, yardstick):
        return {
            "T": T,
            "variants": {"dense": {"both": {"seconds": seconds, "peak_bytes": 2 * T}}},
            "yardstick": {"both": yardstick},
        }

    results = [result(64, 1.0, 0.1), result(128, 2.0, 0.1), result(256, 16.0, 0.2)]
    assert bench_length.slope(results, "dense", "both", "seconds") == pytest.approx(2.0)
    assert bench_length.slope(results, "dense", "both", "peak_bytes") == pytest.approx(1.0)


def test_the_length_suite_measures_every_mechanism_and_says_how_it_grows(monkeypatch):
    monkeypatch.setattr(bench_length, "SECONDS", 0.0)
    monkeypatch.setattr(bench_length, "YARDSTICK", 32)
    monkeypatch.setattr(timing, "LEAST", 1)
    names = ("dense", "retention")
    monkeypatch.setattr(bench_length.attention, "names", lambda: names)
    results = [bench_length.measure(T) | {"device": "cpu: a machine"} for T in (16, 32, 128)]
    assert all(tuple(r["variants"]) == names for r in results)
    assert results[0]["variants"]["dense"]["both"]["dense_over_it"]["median"] == 1.0
    assert all(min(r["yardstick"].values()) > 0 for r in results)
    assert bench_length.claimed("dense", 1024, 8192) == 2.0
    assert bench_length.claimed("retention", 1024, 8192) == 1.0
    lines = bench_length.table(results).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == [f"`{name}`" for name in names]
    assert len(bench_length.figure(results).axes) == 2
    # After the first length there is no growth to tell yet.
    assert "— |" in bench_length.table(results[:1])
    # One that fails loses its cell.
    monkeypatch.setattr(bench_length, "program", without_retention)
    failed = bench_length.measure(64)["variants"]
    assert failed["retention"]["both"] == {"failed": "MemoryError: too large"}
    assert failed["dense"]["both"]["dense_over_it"]["median"] == 1.0
    results[2]["variants"] = failed
    text = bench_length.table(results)
    assert "— / —" in text and "- `retention` at T=128, both: MemoryError: too large" in text
    assert len(bench_length.figure(results).axes) == 2


def test_the_weights_suite_compares_with_the_plain_step(monkeypatch):
    ways = {name: bench_weights.WAYS[name] for name in ("plain", "IA³")}
    monkeypatch.setattr(bench_weights, "WAYS", ways)
    monkeypatch.setattr(bench_weights, "SECONDS", 0.0)
    monkeypatch.setattr(bench_weights, "T", 4)
    monkeypatch.setattr(bench_weights, "L", 1)
    # On two a state that comes back placed on both has its program compiled again.
    monkeypatch.setattr(bench_weights.jax, "device_count", lambda: 1)
    monkeypatch.setattr(timing, "LEAST", 1)
    result = bench_weights.measure((2, 8)) | {"device": "cpu: a machine"}
    plain, own = result["ways"].values()
    assert plain["ratio"]["median"] == 1.0
    assert own["training_flops"] < plain["training_flops"]
    assert "| IA³ " in bench_weights.table([result])


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is optional")
def test_the_attention_suite_runs_and_its_sides_agree(monkeypatch):
    shrunk(monkeypatch, "cpu")
    result = bench_attention.measure((32, 8))
    names = ["ours", "jax.nn", "flax", attention_sides.label("torch")]
    for direction in ("forward", "both"):
        assert list(result[direction]) == names
        assert all(own["distance"] < 1e-5 for own in result[direction].values())
        assert result[direction]["ours"]["ratio"]["median"] == 1.0
