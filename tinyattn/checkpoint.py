"""Checkpoints that a run can be killed over: verified on reading, tied to one configuration.

Orbax gives the atomic write, the pruning and the clean-up; on its own it restores a flipped byte
without a word, so a checksum over everything and the digest of the run's config lie beside the data.
All leaves go into one vector of bytes: orbax spends its time per array, so that is some four times
faster to save than a tree, and no dtype or shape takes another path than the others.
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
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

OVERHEAD = 0.01
"""Share of a run's wall time that saving may take."""

FIRST_COST = 0.25
"""Seconds a save is assumed to take until one has been measured."""

Layout = list[list[Any]]
"""[path, dtype, shape] of every leaf, in the order of its bytes; equal to itself after JSON."""


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; for one process.

    The folder is made by the first save. Reading changes nothing on disk.

    Attributes:
      directory: Holds one folder a step.
      digest: Names the configuration that the steps belong to.
      keep: How many steps stay, the newest; with one there is nothing to fall back to.
      every_seconds: How long to wait between saves (seconds); 0 saves at every opportunity, None
        waits until saving costs no more than `OVERHEAD` of the time.
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

        Raises:
          ValueError: `keep` is under 1, or `every_seconds` is negative.
        """
        if keep < 1:
            raise ValueError(f"{keep=} would keep no checkpoint; use 1 or more")
        if every_seconds is not None and every_seconds < 0:
            raise ValueError(f"{every_seconds=} is negative; use 0 to save whenever possible")
        self.directory = Path(directory).absolute()
        self.digest = digest
        self.keep = keep
        self.every_seconds = every_seconds
        self._clock = clock
        self._cost = FIRST_COST
        self._last = clock()
        self._bad: list[int] = []
        self._restored = False
        self._manager: ocp.CheckpointManager | None = None

    def due(self, now: float | None = None) -> bool:
        """True when enough time has passed since the last save, or since the start.

        Args:
          now: Reading of the clock given to the constructor (seconds); None reads it.
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
        layout, data = _pack(state)
        try:
            record = {"digest": self.digest, "layout": layout, "meta": json.loads(json.dumps(meta))}
        except TypeError as error:
            raise ValueError(f"meta must be plain JSON types: {error}") from None
        record["crc32"] = _crc32(record, data)
        with _quiet():
            manager = self._open()
            latest = manager.latest_step()
            if latest is not None and step <= latest:
                raise ValueError(f"{step=} must be greater than the last saved step, {latest}")
            state_args, meta_args = (
                ocp.args.StandardSave({"bytes": data}),
                ocp.args.JsonSave(record),
            )
            manager.save(step, args=ocp.args.Composite(state=state_args, meta=meta_args))
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
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                message = f"checkpoint {path} is damaged and skipped: {reason}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _steps(self) -> list[int]:
        names = [p.name for p in self.directory.glob("*") if p.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            # Without this, keep=2 would prune another configuration's steps that nobody looked at.
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
        raise ValueError("the checksum does not hold")
    return record, data


def _crc32(record: dict[str, Any], data: np.ndarray) -> int:
    return zlib.crc32(data.tobytes(), zlib.crc32(json.dumps(record, sort_keys=True).encode()))


def _layout(tree: Any) -> Layout:
    def entry(path, leaf):
        dtype = np.dtype(leaf.dtype)
        if dtype.hasobject:
            raise ValueError(f"{jax.tree_util.keystr(path)} holds Python objects, not numbers")
        return [jax.tree_util.keystr(path), dtype.name, list(leaf.shape)]

    return [entry(*item) for item in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _pack(state: Any) -> tuple[Layout, np.ndarray]:
    arrays = jax.tree.map(np.asarray, jax.device_get(state))
    data = b"".join(leaf.tobytes() for leaf in jax.tree.leaves(arrays))
    return _layout(arrays), np.frombuffer(data, np.uint8)


def _unpack(like: Any, data: np.ndarray) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    sizes = [np.dtype(leaf.dtype).itemsize * int(np.prod(leaf.shape)) for leaf in leaves]
    pieces = np.split(data, np.cumsum(sizes)[:-1]) if leaves else []
    # The copy aligns the leaf and makes it writable.
    arrays = [
        piece.copy().view(np.dtype(leaf.dtype)).reshape(leaf.shape)
        for piece, leaf in zip(pieces, leaves, strict=True)
    ]
    return treedef.unflatten(arrays)


def _check_layout(path: Path, stored: Layout, wanted: Layout) -> None:
    if stored == wanted:
        return
    here = {name: f"{dtype}{shape}" for name, dtype, shape in stored}
    there = {name: f"{dtype}{shape}" for name, dtype, shape in wanted}
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    lines = [
        f"{name or 'the state'} is {here.get(name, 'absent')}, expected {there.get(name, 'absent')}"
        for name in differing[:3]
    ]
    raise ValueError(
        f"checkpoint {path} has another structure ({len(differing)} leaves differ):"
        f" {'; '.join(lines)}; use another working directory, or delete that folder"
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
