"""Timing in turns, and the tables of the speed suites; the suites themselves need PyTorch."""

import importlib.util

import numpy as np
import pytest

from experiments import bench_attention, bench_length, bench_weights, timing


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


def test_the_attention_table_shows_each_peer_and_direction():
    def sides(ours, peer):
        ratio = timing.Sample.of([peer / ours])._asdict()
        return {"ours": {"seconds": ours}, "jax.nn": {"seconds": peer, "ratio": ratio}}

    record = {"shape": "B1 T8 N4 H2", "device": "cpu: a machine"}
    text = bench_attention.table(
        [record | {"forward": sides(0.002, 0.004), "both": sides(0.01, 0.005)}]
    )
    rows = text.split("\n\n")[0].splitlines()[2:]
    assert [cell.strip() for cell in rows[0].split("|")[1:-1]] == [
        *("B1 T8 N4 H2", "forward", "2.0", "2.00x (2.00-2.00)")
    ]
    assert "with gradient" in rows[1] and "0.50x" in rows[1]
    assert "a machine" in text


def test_the_length_suite_measures_every_mechanism_and_says_how_it_grows(monkeypatch):
    monkeypatch.setattr(bench_length, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "LEAST", 1)
    names = ("dense", "retention")
    monkeypatch.setattr(bench_length.attention, "names", lambda: names)
    results = [bench_length.measure(T) | {"device": "cpu: a machine"} for T in (64, 128, 1024)]
    assert all(tuple(r["variants"]) == names for r in results)
    assert results[0]["variants"]["dense"]["both"]["dense_over_it"]["median"] == 1.0
    assert bench_length.claimed("dense", 1024, 8192) == 2.0
    assert bench_length.claimed("retention", 1024, 8192) == 1.0
    lines = bench_length.table(results).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == [f"`{name}`" for name in names]
    assert len(bench_length.figure(results).axes) == 2


def test_the_weights_suite_compares_with_the_plain_step(monkeypatch):
    ways = {name: bench_weights.WAYS[name] for name in ("plain", "IA³")}
    monkeypatch.setattr(bench_weights, "WAYS", ways)
    monkeypatch.setattr(bench_weights, "SECONDS", 0.0)
    monkeypatch.setattr(bench_weights, "T", 4)
    monkeypatch.setattr(bench_weights, "L", 1)
    monkeypatch.setattr(timing, "LEAST", 1)
    result = bench_weights.measure(8) | {"device": "cpu: a machine"}
    plain, own = result["ways"].values()
    assert plain["ratio"]["median"] == 1.0
    assert own["training_flops"] < plain["training_flops"]
    assert "| IA³ " in bench_weights.table([result])


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is optional")
def test_the_attention_suite_runs_and_its_sides_agree(monkeypatch):
    monkeypatch.setattr(bench_attention, "SECONDS", 0.0)
    monkeypatch.setattr(bench_attention, "TOKENS", 64)
    result = bench_attention.measure((32, 8))
    assert set(result["both"]) == {
        *bench_attention.JAX,
        *(n for n in result["both"] if "torch" in n),
    }
    assert len(result["both"]) == 4
    assert result["forward"]["ours"]["ratio"]["median"] == 1.0
