"""Writes the weights of a finished run to one file, says what is in it, and reads it back.

    python -m experiments.export --workdir=runs/first --row=dense --seed=0 --out=dense.safetensors

`--format=theta` is what a device has to keep: masks as bits, quantised weights as whole numbers, what is
shared once, and of what is regenerated its seed. `--format=params` is every array of the folded model. Both
are safetensors files with arrays named by their paths, which other tools read too, and both are what
`tinyattn.weights.load` reads and `--config.train.pretrained` starts from.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from tabulate import tabulate

from tinyattn import records, registry, weights

FORMATS = ("theta", "params")


def find(workdir: str | Path, row: str | None, seed: int | None) -> tuple[Path, dict[str, Any]]:
    """The folder and the record of a finished run.

    Args:
      workdir: Of a table, or the folder of one run.
      row: Its name; None where there is one only.
      seed: Its seed; None where there is one only.

    Raises:
      ValueError: There is no such run, there are several, or it failed; the message lists those there are.
    """
    record = records.read(workdir)
    lines = [record] if record else records.load(workdir).to_dict("records")
    names = {x["row"] for x in lines}
    if row is not None and row not in names:
        raise ValueError(f"{workdir} has no row {row!r}; {registry.nearest(row, names)}")
    found = [x for x in lines if row in (None, x["row"]) and seed in (None, x["seed"])]
    if len(found) != 1:
        runs = ", ".join(f"--row={x['row']!r} --seed={x['seed']}" for x in found or lines)
        raise ValueError(f"{workdir} has {len(found)} such runs, give one of: {runs}")
    folder = Path(workdir) if record else records.run_dir(workdir, found[0]["digest"])
    if (record := records.read(folder)) is None:
        raise ValueError(f"{folder} has no record: repeat the command that made {workdir}")
    if record["status"] != "ok":
        raise ValueError(
            f"row {found[0]['row']!r}, seed {record['seed']} failed and has no weights:"
            f" {str(record.get('error')).partition(chr(10))[0]}"
        )
    return folder, record | {"row": found[0]["row"]}


def export(folder: Path, record: dict[str, Any], out: Path, form: str = "theta") -> str:
    """Writes the weights of a run to `out` and returns what is in that file, as a table.

    Args:
      folder: Of the run.
      record: Of the run.
      out: The file.
      form: One of `FORMATS`.

    Raises:
      ValueError: The run kept no weights, they are damaged, or the file does not read back as written.
    """
    if form not in FORMATS:
        raise ValueError(f"--format={form!r}; {registry.nearest(form, FORMATS)}")
    found = kept(folder, record)
    theta = found.theta
    if form == "params":
        theta = jax.tree.map(np.asarray, weights.fold(theta))
    told = {"row": record["row"], "format": form}
    weights.save(out, theta, **found.meta | told)
    again = weights.read(out, _own(record))
    if not _same(again.theta, theta):
        raise ValueError(f"{out} does not read back as it was written: try again elsewhere")
    return _table(out, again, record if form == "theta" else None)


def kept(folder: Path, record: dict[str, Any]) -> weights.Contents:
    """The weights that a run left beside its record.

    Raises:
      ValueError: It kept none, or they are damaged or of another run.
    """
    source = folder / records.WEIGHTS
    if not source.exists():
        raise ValueError(
            f"{folder} has no {records.WEIGHTS}: set train.keep_weights=True and run it again, after"
            f" deleting this folder if it was set"
        )
    found = weights.read(source, _own(record))
    if found.meta["digest"] != record["digest"]:
        raise ValueError(f"{source} is of run {found.meta['digest']}, not of {record['digest']}")
    return found


def _own(record: dict[str, Any]) -> list[Any]:
    """A fork's schemes, which are named in full, and hold their nodes."""
    names = [section["name"] for section in record["config"]["weights"]]
    return [weights.module(name) for name in names if "." in name]


def _same(a: Any, b: Any) -> bool:
    """Whether two trees of arrays are the same to the bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs
    )


def _table(out: Path, found: weights.Contents, record: dict[str, Any] | None) -> str:
    """Bytes of a file by what they hold."""
    lines: dict[str, list[int]] = {}
    for leaf in weights.leaves(found.theta).values():
        array = weights.stored(leaf)
        if array is not None:
            line = lines.setdefault(_kind(leaf), [0, 0])
            line[0] += 1
            line[1] += array.nbytes
    rows = [(kind, *line) for kind, line in sorted(lines.items())]
    rows += [("data", "", found.data), ("header", "", found.header)]
    rows += [("file", "", out.stat().st_size)]
    text = tabulate(rows, ("holds", "arrays", "bytes"), tablefmt="simple", intfmt=",")
    if record is not None:
        column = record["costs"]["stored_bytes"]
        equal = "as many as" if column == found.data else "NOT as many as"
        text += f"\n\nThe data are {equal} the {column:,} stored bytes of the record."
    return f"{text}\n{out} was read back and is the same to the bit."


def _kind(leaf: Any) -> str:
    if isinstance(leaf, weights.Codes):
        return f"whole numbers below {leaf.base}"
    if isinstance(leaf, weights.Seeded):
        return "seeds of what is regenerated"
    if weights.value(leaf).dtype == bool:
        return "masks, a bit each"
    return (
        f"{weights.value(leaf).dtype} {'fixed' if isinstance(leaf, weights.Fixed) else 'trained'}"
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; all is said by flags")
    given = flags.FLAGS
    try:
        folder, record = find(given.workdir, given.row, given.seed)
        print(export(folder, record, Path(given.out), given.format))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Directory of a table, or of one run.", required=True)
    flags.DEFINE_string("row", None, "Row of the table; needed where there are several.")
    flags.DEFINE_integer("seed", None, "Seed of the run; needed where there are several.")
    flags.DEFINE_string("format", "theta", f"What to write: {' or '.join(FORMATS)}.")
    flags.DEFINE_string("out", None, "File to write.", required=True)
    app.run(main)
