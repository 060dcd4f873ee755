"""Datasets as tables: from the hub, or from a directory of Parquet files with the hub's schema.

    DIRECTORY/trec/train.parquet    DIRECTORY/clinc_oos/plus/train-00000-of-00001.parquet

A dataset's folder is the last part of its name on the hub, with one for its config in it if it has any.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from tinyattn import registry

SOURCES = ("auto", "hub", "dir")
DIRECTORY = "TINYATTN_DATA"
# Where the hub keeps Parquet files of datasets that are a script, which `datasets` runs no more.
CONVERTED = "refs/convert/parquet"

# How files of a split are called: one, the hub's parts, and what the hub converts.
LAYOUTS = (
    "{split}.parquet",
    "{split}-*.parquet",
    "data/{split}-*.parquet",
    "{split}/*.parquet",
    "default/{split}/*.parquet",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where datasets are found. Runs are known without it: a record says which data they were.

    Attributes:
      source: `hub`, `dir`, or `auto`: `dir` where a directory is given and has the dataset, else `hub`.
      dir: Directory of datasets as Parquet files; "" is that of the environment variable TINYATTN_DATA.
    """

    source: str = "auto"
    dir: str = ""

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(
                f"data.source={self.source!r}; {registry.nearest(self.source, SOURCES)}"
            )

    @property
    def directory(self) -> Path | None:
        """The directory that is given, if any."""
        given = self.dir or os.environ.get(DIRECTORY, "")
        return Path(given).expanduser() if given else None

    def read(
        self, dataset: str, name: str, splits: Sequence[str], columns: Sequence[str]
    ) -> "Dataset":
        """The splits of a dataset, only these columns of them.

        Args:
          dataset: As on the hub, such as "clinc/clinc_oos"; without a slash it is not there.
          name: Of its config, such as "plus"; "" where it has none.
          splits: Which.
          columns: Which every split must have.

        Raises:
          ValueError: Data are missing or damaged: with file, column and remedy.
        """
        folder = self._folder(dataset, name)
        if self.source == "hub" or (self.source == "auto" and not (folder and folder.is_dir())):
            found, where = self._hub(dataset, name, splits), f"{dataset} on the hub"
        else:
            found, where = self._files(dataset, folder, splits), str(folder)
        for split, part in found.items():
            if lacking := [column for column in columns if column not in part.column_names]:
                raise ValueError(
                    f"{where}: split {split!r} has no column {lacking[0]!r}, only"
                    f" {', '.join(part.column_names)}; make the files with the schema of {dataset}"
                )
        return Dataset({split: found[split].select_columns(list(columns)) for split in splits})

    def _folder(self, dataset: str, name: str) -> Path | None:
        if not self.directory:
            return None
        folder = self.directory / dataset.rsplit("/", 1)[-1]
        named = folder / name
        # A copy of one config alone may do without the folder of its name.
        return folder if not named.is_dir() and any(folder.glob("*.parquet")) else named

    def _files(self, dataset: str, folder: Path | None, splits: Sequence[str]):
        remedy = _remedy(dataset)
        if folder is None:
            raise ValueError(f"data.source='dir', but no directory is given: {remedy}")
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder} of {dataset}: {remedy}")
        return {split: _table(dataset, folder, split) for split in splits}

    def _hub(self, dataset: str, name: str, splits: Sequence[str]):
        where = f" ({self.directory} has no folder of it)" if self.directory else ""
        if "/" not in dataset:
            raise ValueError(f"{dataset} is not on the hub{where}: {_remedy(dataset)}")
        try:
            try:
                found = datasets.load_dataset(dataset, name or None)
            except RuntimeError:  # it is a script
                found = datasets.load_dataset(dataset, name or None, revision=CONVERTED)
        except (OSError, ValueError, RuntimeError) as error:
            # What `datasets` raises without a network, and for a name that the hub does not have.
            first = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{dataset} cannot be had{where}, {first}: {_remedy(dataset)}"
            ) from error
        if lacking := [split for split in splits if split not in found]:
            raise ValueError(f"{dataset} has no split {lacking[0]!r}, only {', '.join(found)}")
        return found


class Dataset(dict[str, datasets.Dataset]):
    """Splits by name."""

    def renamed(self, **names: str) -> "Dataset":
        """With splits of other names: `renamed(validation="test")`."""
        return Dataset({names.get(split, split): part for split, part in self.items()})

    def frames(self) -> dict[str, pd.DataFrame]:
        """The splits as frames whose index is the number of a row in its split."""
        return {split: part.data.table.to_pandas() for split, part in self.items()}

    def fingerprint(self) -> str:
        """The hash of all that is in the rows and of what they mean (16 hexadecimal digits)."""
        digest = hashlib.sha256()
        for split, part in self.items():
            table = part.data.table.replace_schema_metadata(None).combine_chunks()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            for piece in (split, repr(part.features)):
                digest.update(piece.encode())
            digest.update(sink.getvalue())
        return digest.hexdigest()[:16]

    def names(self, column: str) -> tuple[str, ...]:
        """The names of a column's classes.

        Raises:
          ValueError: It is a column of something else.
        """
        feature = next(iter(self.values())).features[column]
        if not isinstance(feature, datasets.ClassLabel):
            raise ValueError(
                f"column {column!r} is a {feature}, which names no classes: make the files with the"
                f" hub's schema, a ClassLabel"
            )
        return tuple(feature.names)


def _table(dataset: str, folder: Path, split: str) -> datasets.Dataset:
    """A split of a folder, its parts in order."""
    patterns = (pattern.format(split=split) for pattern in LAYOUTS)
    parts = next(filter(None, (sorted(folder.glob(pattern)) for pattern in patterns)), [])
    if not parts:
        there = sorted(path.name for path in folder.glob("*.parquet")) or ["none"]
        raise ValueError(
            f"{folder} has no {split}.parquet, the split {split!r} of {dataset}; its files:"
            f" {', '.join(there)}: {_remedy(dataset)}"
        )
    tables = []
    for path in parts:
        try:
            tables.append(pyarrow.parquet.read_table(path))
        except (pa.ArrowException, OSError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{path} is no whole Parquet file ({first}): copy it again, or {_remedy(dataset)}"
            ) from error
    return datasets.Dataset(pa.concat_tables(tables))


def _remedy(dataset: str) -> str:
    last = dataset.rsplit("/", 1)[-1]
    given = (
        f"give a directory that has {last}/ with its Parquet files, by the environment variable"
        f" {DIRECTORY} or by --config.data.dir"
    )
    if "/" not in dataset:
        return given
    command = f"hf download {dataset} --repo-type dataset --local-dir DIRECTORY/{last}"
    return f"{given}; with a network it comes from the hub by itself, or by `{command}`"
