"""What the README says is so: its commands, its code, its table and its tables of parts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import report, variants
from tinyattn import records, weights

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_is_short():
    assert len(README.splitlines()) <= 150


def test_the_forks_example_is_the_file_that_the_suite_runs():
    assert (ROOT / "tests" / "myfork" / "cosine.py").read_text() in blocks("python")


def test_the_table_is_what_the_records_print():
    printed = report.terminal(report.summarise(records.load(ROOT / "experiments/results/first")))
    table = printed.split("\n─")[0] + "\n" + printed.split("\n")[2]
    rows = printed.split("─\n")[1].rsplit("\n─", 1)[0]
    shown = "\n".join(blocks("text"))
    assert table.splitlines()[0] in shown
    assert rows in shown


def test_the_records_are_of_the_first_table_and_hold_its_claims():
    frame = records.load(ROOT / "experiments/results/first")
    assert frame.groupby("row").size().tolist() == [5] * 8
    assert (frame["status"] == "ok").all()
    accuracy = frame.groupby("row")["metrics.test_accuracy"].mean()
    assert accuracy["dense"] >= 0.96


@pytest.mark.cpu  # whose blocks it counts
def test_the_table_of_variants_is_made_from_their_files():
    assert variants.table() in README


def test_every_scheme_has_its_line():
    for name in weights.names():
        assert f"| `{name}` |" in README


def test_the_speed_is_the_records():
    lines = (ROOT / "experiments/results/bench/step.jsonl").read_text().splitlines()
    ratios = np.array([json.loads(line)["ratio"] for line in lines])
    claim = f"{ratios.min():.2f}x to {ratios.max():.2f}x as fast"
    assert claim in README
    assert f"{np.exp(np.log(ratios).mean()):.2f}x in geometric mean" in README


def test_the_speed_of_attention_is_the_records():
    lines = (ROOT / "experiments/results/bench/attention.jsonl").read_text().splitlines()
    found = {"jax.nn": [], "torch": []}
    for record in map(json.loads, lines):
        for name, side in record["both"].items():
            if record["T"] >= 512 and name.split()[0] in found:
                found[name.split()[0]].append(side["ratio"]["median"])
    jax_nn, torch = (f"{min(x):.2f}x to {max(x):.2f}x" for x in found.values())
    said = " ".join(README.split())
    assert f"with its gradient is {jax_nn} as fast as `jax.nn` and {torch} as PyTorch" in said


def test_the_speed_of_factors_is_the_records():
    lines = (ROOT / "experiments/results/bench/weights.jsonl").read_text().splitlines()
    wide = [record["ways"] for record in map(json.loads, lines) if record["D"] == 256]
    names = ("frozen seed", "LoRA, R=8", "VeRA, R=16", "IA³")
    found = [ways[name]["ratio"]["median"] for ways in wide for name in names]
    claim = f"takes {min(found):.2f}x to {max(found):.2f}x of the plain one's time at width 256"
    assert claim in " ".join(README.split())


def test_commands_and_links_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = "\n".join(blocks("bash"))
    assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= set(targets)
    for module in re.findall(r"-m (experiments\.\w+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()
    for path in re.findall(r"--config=(configs/\S+?\.py)", text):
        assert (ROOT / path).exists()
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
