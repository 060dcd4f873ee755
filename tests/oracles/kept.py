"""Reads golden files, and says whether ours is near."""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"

# Tolerances, relative to an array's largest number: both sides in float64, or one of them rounds to
# float32 on the way.
EXACT, ROUNDED = 1e-12, 1e-5


def read(folder):
    """Of every file of a folder, by name: what is said of it, and its arrays by case."""
    return {path.stem: _load(path) for path in sorted(folder.glob("*.npz"))}


def _load(path):
    with np.load(path) as file:
        about, found = json.loads(str(file["about"])), {}
        for key in set(file.files) - {"about"}:
            case, _, array = key.partition("/")
            found.setdefault(case, {})[array] = file[key]
    return about, found


def tolerance(about):
    return EXACT if about["precision"] == "float64" else ROUNDED


def near(got, want, tolerance, what):
    """Within a tolerance of the largest number: sums round by their largest term."""
    assert np.abs(want).max() > 1e-2, f"{what} says nothing"
    off = np.abs(np.asarray(got) - want).max() / np.abs(want).max()
    assert off <= tolerance, f"{what} differs by {off:.1e}"
