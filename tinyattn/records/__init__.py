"""Run records: what one finished run leaves behind, as plain files that pandas reads in a line.

    WORKDIR/runs/<digest>/record.json    one finished run: config, metrics, costs, machine
    WORKDIR/runs/<digest>/test.npz       its arrays per test example, for paired tests
    WORKDIR/runs/<digest>/theta.safetensors    its weights, as `weights.save` writes them
    WORKDIR/results.jsonl                one line a row and seed, in the order of the table
    WORKDIR/.lock                        held by the process that writes the others

A file is there whole or not at all, however the process ends: each is written beside its place
and moved into it. The JSON is strict: a number that is not finite is stored as null, which
pandas reads back as NaN.
"""

import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tinyattn.records._alone import alone
from tinyattn.records._environment import environment, revision

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ARRAYS",
    "RECORD",
    "REQUIRED",
    "RESULTS",
    "WEIGHTS",
    "alone",
    "arrays",
    "cache",
    "environment",
    "gather",
    "kept",
    "load",
    "read",
    "replace",
    "revision",
    "run_dir",
    "write",
    "write_lines",
]

RECORD, ARRAYS, RESULTS = "record.json", "test.npz", "results.jsonl"
WEIGHTS = "theta.safetensors"
REQUIRED = ("row", "seed", "status")


def cache() -> Path:
    """Returns the folder of what can be made again: compiled programs, prepared data."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tinyattn"


def run_dir(workdir: str | Path, digest: str) -> Path:
    """Returns the folder of the run with this digest."""
    return Path(workdir) / "runs" / digest


def kept(run: str | Path, name: str) -> Path:
    """Returns a file that a run left: `run` itself, or in its folder, or in a workdir with one such run.

    Raises:
        ValueError: there is none, or there are several.
    """
    path = Path(run)
    found = [place for place in (path, path / name) if place.is_file()]
    found = found or sorted(path.glob(f"runs/*/{name}"))
    if len(found) != 1:
        lacking = f"has {len(found)} files {name}" if path.exists() else "cannot be found"
        raise ValueError(f"{path} {lacking}; give a run's folder, or a workdir with one run")
    return found[0]


def write(
    path_dir: str | Path,
    record: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes one finished run into its folder, the record last.

    Args:
        path_dir: the run's folder, made where it is missing.
        record: at least `row`, `seed` and `status`; nested dicts and lists of plain values.
        arrays: values per test example by name, such as `correct`, bool[n].

    Raises:
        ValueError: a required key is missing, or a value has no form in JSON.
    """
    folder = Path(path_dir)
    if missing := [key for key in REQUIRED if key not in record]:
        raise ValueError(f"record for {folder} lacks {missing}; it has {sorted(record)}")
    text = json.dumps(_plain(record, "record"), indent=1, allow_nan=False, ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    if arrays is not None:  # before the record, so that a record implies its arrays
        replace(folder / ARRAYS, lambda file: np.savez_compressed(file, **arrays))
    replace(folder / RECORD, lambda file: file.write(text.encode()))


def read(path_dir: str | Path) -> dict[str, Any] | None:
    """Returns the record of a finished run, or None where there is none yet.

    Raises:
        ValueError: the file is there but is not a whole record.
    """
    path = Path(path_dir) / RECORD
    if not path.exists():
        return None
    try:
        return _parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is not a whole record ({error}); delete the folder {path.parent} and run "
            "the same command again: only that run is repeated"
        ) from error


def gather(workdir: str | Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Writes `results.jsonl` from records in table order, one line each; returns its path."""
    write_lines(path := Path(workdir) / RESULTS, records)
    return path


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records to a JSON Lines file, all of them or none."""
    lines = [
        json.dumps(_plain(record, "record"), allow_nan=False, ensure_ascii=False) + "\n"
        for record in records
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda file: file.write("".join(lines).encode()))


def load(workdir: str | Path) -> "pd.DataFrame":
    """Returns `results.jsonl` as a frame with dotted columns, such as `metrics.test_accuracy`.

    Raises:
        ValueError: there is no such file, it is empty, or a line of it is not a record.
    """
    import pandas as pd  # half a second that a training run need not pay

    path = Path(workdir) / RESULTS
    command = (
        "python -m experiments.ablate --config=configs/ablations/first.py "
        f"--workdir={Path(workdir)}"
    )
    if not path.exists():
        raise ValueError(f"there is no {path}; a table is made by, for example, `{command}`")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            records.append(_parse(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not a record ({error}); gather the file again by "
                f"repeating the command that made it, for example `{command}`"
            ) from error
    if not records:
        raise ValueError(f"{path} holds no run yet; a table is made by, for example, `{command}`")
    return pd.json_normalize(records)


def arrays(workdir: str | Path, digest: str) -> dict[str, np.ndarray] | None:
    """Returns a run's arrays per test example, or None where they were not kept."""
    path = run_dir(workdir, digest) / ARRAYS
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def _plain(value: Any, where: str) -> Any:
    """Turns NumPy and JAX values into Python's own, and numbers that are not finite into None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(
        f"{where} = {value!r} is a {type(value).__name__}, which JSON cannot hold; store a "
        "number, a string, or a list or dict of them"
    )


def _parse(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__} instead of an object")
    if missing := [key for key in REQUIRED if key not in record]:
        raise ValueError(f"it lacks {missing}")
    return record


def replace(path: Path, put: Callable[[IO[bytes]], Any]) -> None:
    """Fills a file beside `path` and moves it there, durable before it is visible."""
    # Opened plainly, not by `tempfile`, whose files nobody else on a shared disk may read.
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            put(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
