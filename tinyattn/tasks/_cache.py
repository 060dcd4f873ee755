"""Prepared data on disk, named by the hash of all that they are made of."""

import hashlib
import json
import logging
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyattn import config as configs
from tinyattn import records
from tinyattn.tasks import _tokens

PACKAGES = ("datasets", "numpy", "pandas", "tokenizers")
TEXTS = "texts.json"


class Prepared(NamedTuple):
    """What preparation leaves.

    Attributes:
      arrays: By name, such as "train/inputs".
      files: Texts by name, such as that of a tokeniser.
      told: What the steps did, as a record says it.
    """

    arrays: Mapping[str, np.ndarray]
    files: Mapping[str, str]
    told: Mapping[str, Any]


def prepared(fingerprint: str, config: Any, make: Callable[[], Prepared]) -> Prepared:
    """What `make` gives, from the user's cache where it has been made before.

    An entry that is damaged is made anew. A change of this package's code is another entry.

    Args:
      fingerprint: The hash of the rows.
      config: A task's, a dataclass.
      make: Prepares the data.
    """
    path = records.cache() / "data" / f"{_name(fingerprint, config)}.npz"
    if path.exists():
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            logging.getLogger(__name__).warning("%s is damaged, made anew: %s", path, error)
    found = make()
    texts = json.dumps({"files": dict(found.files), "told": found.told})
    arrays = {**found.arrays, TEXTS: np.frombuffer(texts.encode(), np.uint8)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records.replace(path, lambda file: np.savez(file, **arrays))
    except OSError as error:  # a cache that cannot be written is no reason to stop
        logging.getLogger(__name__).warning("%s was not kept: %s", path, error)
    return found


def _name(fingerprint: str, config: Any) -> str:
    module = sys.modules[type(config).__module__]
    code = sorted({*Path(__file__).parent.glob("*.py"), Path(module.__file__)})
    digest = hashlib.sha256()
    for part in (
        fingerprint,
        type(config).__module__,
        json.dumps(configs.plain(vars(config)), sort_keys=True),
        # What is named in a config by where it is.
        _tokens.known(config) if isinstance(config, _tokens.Tokens) else "",
        *(metadata.version(name) for name in PACKAGES),
        *(path.read_text() for path in code),
    ):
        digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()[:32]


def _read(path: Path) -> Prepared:
    # Each array has a checksum in the file, which reading it checks.
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    texts = json.loads(arrays.pop(TEXTS).tobytes())
    return Prepared(arrays, texts["files"], texts["told"])
