"""Checkpoints that a run can be killed over: verified on reading, tied to one configuration.

Orbax gives the atomic write, the pruning and the clean-up; on its own it restores a flipped byte
without a word, so a checksum of everything and the digest of the run's config lie beside the data.
All leaves go into one vector of bytes: orbax spends its time per array, so that is some four times
faster to save than a tree, and every dtype and shape takes the same path.
"""

import contextlib
import json
import logging
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

OVERHEAD = 0.01  # the share of a run's wall time that saving may take
FIRST_COST = 0.25  # what a save is assumed to take until one has been measured (seconds)

Layout = list[list[Any]]  # [path, dtype, shape] of every leaf in the order of the bytes, as JSON


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one run, in a folder of their own; for one process.

    The folder is made by the first save. Reading changes nothing on disk.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        digest: str,
        *,
        keep: int = 2,
        every_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock of `due`; touches no file.

        Args:
          directory: Holds one folder a step.
          digest: Names the configuration that the steps belong to.
          keep: How many steps stay, the newest; with one there is nothing to fall back to.
          every_seconds: How long to wait between saves (seconds); 0 saves at every opportunity,
            None waits until saving costs no more than `OVERHEAD` of the time.
          clock: Read by `due` and around each save (seconds).

        Raises:
          ValueError: `keep` is under 1, or `every_seconds` is negative.
        """
        if keep < 1:
            raise ValueError(f"{keep=} would keep no checkpoint; use 1 or more")
        if every_seconds is not None and every_seconds < 0:
            raise ValueError(f"{every_seconds=} is negative; use 0 to save whenever possible")
        self.directory = Path(directory).absolute()
        self.digest, self.keep, self.every_seconds = digest, keep, every_seconds
        self._clock, self._last, self._cost = clock, clock(), FIRST_COST
        self._bad: list[int] = []
        self._restored = False
        self._manager: ocp.CheckpointManager | None = None

    def due(self, now: float | None = None) -> bool:
        """True when enough time has passed since the last save, or since the start.

        Args:
          now: Reading of the constructor's clock (seconds); None reads it here.
        """
        wait = self._cost / OVERHEAD if self.every_seconds is None else self.every_seconds
        return (self._clock() if now is None else now) - self._last >= wait

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Writes a step and returns when it is complete; prunes all but the newest `keep`.

        Steps that `restore` skipped are deleted first, for the run comes by them again.

        Args:
          step: Number of updates made; greater than that of every step in the folder.
          state: Tree of arrays.
          meta: What else the run must remember, in JSON's own types (a tuple comes back as a list).

        Raises:
          ValueError: The step is not newer than the last one, the folder holds steps that were not
            restored, `meta` is not JSON, or a leaf is not an array of numbers.
        """
        began = self._clock()
        host = jax.device_get(state)  # orbax is twice as slow on device arrays
        record = {"digest": self.digest, "layout": _layout(host), "meta": meta}
        try:
            record = json.loads(json.dumps(record))
        except TypeError as error:
            raise ValueError(f"meta must be of plain JSON types: {error}") from None
        data = np.frombuffer(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(host)), np.uint8)
        record["crc32"] = _crc32(record, data)
        items = {"state": ocp.args.StandardSave({"bytes": data}), "meta": ocp.args.JsonSave(record)}
        with _quiet():
            manager = self._open()
            latest = manager.latest_step()
            if latest is not None and step <= latest:
                raise ValueError(f"{step=} must be greater than the last saved step, {latest}")
            manager.save(step, args=ocp.args.Composite(**items))
        self._last = self._clock()
        self._cost = self._last - began

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest step whose checksum holds; warns once of each newer one it must skip.

        Args:
          like: Tree of arrays, or of `jax.ShapeDtypeStruct`, as the state that was saved.

        Returns:
          (step, state, meta), the state's leaves NumPy arrays equal bit for bit to those saved; or
          None where no good step exists.

        Raises:
          ValueError: The step belongs to another configuration, or its leaves are not those of
            `like` in path, dtype or shape. No file is touched.
        """
        self.close()
        self._bad = []
        for step in reversed(self._steps()):
            path = self.directory / str(step)
            try:
                record, data = _read(path)
            except Exception as error:  # orbax, tensorstore and json raise kinds of their own
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                warnings.warn(f"checkpoint {path} is damaged, skipped ({reason})", stacklevel=2)
                self._bad.append(step)
                continue
            if record["digest"] != self.digest:
                raise ValueError(
                    f"checkpoint {path} belongs to configuration {record['digest']}, this run is"
                    f" {self.digest}; use another working directory, or delete {self.directory}"
                )
            _check_layout(path, record["layout"], _layout(like))
            self._restored = True
            return step, _unpack(like, data), record["meta"]
        self._restored = True
        return None

    def close(self) -> None:
        """Lets go of orbax's resources; saving or restoring again is allowed."""
        if self._manager is not None:
            with _quiet():
                self._manager.close()
            self._manager = None

    def __exit__(self, *exception) -> None:
        self.close()

    def _steps(self) -> list[int]:
        folders = (path for path in self.directory.glob("*") if path.is_dir())
        return sorted(int(path.name) for path in folders if path.name.isdecimal())

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            # Otherwise pruning could delete steps of another configuration that nobody looked at.
            if not self._restored and self._steps():
                raise ValueError(
                    f"{self.directory} already holds steps {self._steps()}; call restore before"
                    f" the first save, or use another directory"
                )
            for step in self._bad:
                shutil.rmtree(self.directory / str(step))
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self.keep,
                enable_async_checkpointing=False,  # no faster, and a save that returned is on disk
                cleanup_tmp_directories=True,
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
            self._bad, self._restored = [], True
        return self._manager


def _read(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Raises whatever orbax raises, or ValueError where the checksum does not hold."""
    args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
    with _quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = reader.restore(path, args=args)
    record, data = dict(found.meta), np.asarray(found.state["bytes"])
    stored = record.pop("crc32")
    if _crc32(record, data) != stored:
        raise ValueError(f"its checksum is not the stored {stored}")
    return record, data


def _crc32(record: dict[str, Any], data: np.ndarray) -> int:
    return zlib.crc32(data, zlib.crc32(json.dumps(record, sort_keys=True).encode()))


def _layout(tree: Any) -> Layout:
    layout = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name, dtype = jax.tree_util.keystr(path), getattr(leaf, "dtype", None)
        if not isinstance(dtype, np.dtype) or dtype.hasobject:
            raise ValueError(
                f"state{name} is a {type(leaf).__name__} of dtype {dtype}, not an array of numbers;"
                f" wrap it in numpy.asarray, or unwrap a typed key by jax.random.key_data"
            )
        layout.append([name, dtype.name, list(leaf.shape)])
    return layout


def _unpack(like: Any, data: np.ndarray) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([leaf.dtype.itemsize * int(np.prod(leaf.shape)) for leaf in leaves])
    pieces = np.split(data, ends[:-1])
    # The copy aligns the leaf and makes it writable.
    arrays = [
        piece.copy().view(leaf.dtype).reshape(leaf.shape)
        for piece, leaf in zip(pieces, leaves, strict=True)
    ]
    return treedef.unflatten(arrays)


def _check_layout(path: Path, stored: Layout, wanted: Layout) -> None:
    if stored == wanted:
        return
    has, needs = ({name: f"{dtype}{shape}" for name, dtype, shape in x} for x in (stored, wanted))
    differing = [name for name in {**has, **needs} if has.get(name) != needs.get(name)]
    first = "; ".join(
        f"state{name} is {has.get(name, 'absent')}, expected {needs.get(name, 'absent')}"
        for name in differing[:3]
    )
    raise ValueError(
        f"checkpoint {path} has another structure, {len(differing)} leaves differ ({first});"
        f" use another working directory, or delete that folder"
    )


@contextlib.contextmanager
def _quiet():
    """Holds back what orbax logs below an error: some forty lines a save under absl's `app.run`."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
