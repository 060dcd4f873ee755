"""One process at a time in a workdir: two would write one run's files in turns."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"


@contextlib.contextmanager
def alone(workdir: str | Path) -> Iterator[None]:
    """Keeps others out of a workdir, made where it is missing, until this process ends, however it does.

    Raises:
        ValueError: another one is in it, or it cannot be written.
    """
    folder = Path(workdir)
    lock = FileLock(folder / NAME, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{folder} is in use by another process: wait for its end, or give another --workdir;"
            f" if there is none, delete {folder / NAME}"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{folder} is no directory that can be written ({error.strerror}): give another --workdir"
        ) from error
    try:
        yield
    finally:
        lock.release()
