"""A theta in one file: what `compact` keeps, exactly as it is counted, and nothing that is executed.

A file is of the format safetensors: eight bytes with the length of a header, the header (JSON), and the
tensors without gaps. The tensors are what `stored` makes of each leaf, named by its path, so they are
`sizes(theta).bytes` together. The header's metadata has one key, `tinyattn`, with a JSON text: the recipe
that puts tensors into dicts and nodes, what the caller says of the file, and a CRC-32 of all the file's
bytes, computed while its own digits are zeros.
"""

import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from tinyattn import records
from tinyattn.weights import _fold, _recipe
from tinyattn.weights._theta import leaves

FORMAT = 1
KEY = "tinyattn"
# Where the digits of the checksum follow; within the header the text is a JSON string once more.
MARK = b'\\"crc32\\":\\"'
DTYPES = {
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    **{f"I{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
}


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
      theta: As `compact` gives it, with seeded arrays regenerated.
      meta: What was said of it when it was saved.
      header: Bytes of the header and of its length.
      data: Bytes of the tensors.
    """

    theta: Any
    meta: dict[str, Any]
    header: int
    data: int


def save(path: str | Path, theta: Any, **meta: Any) -> None:
    """Writes what `compact` keeps of a theta, whole or not at all.

    Args:
      path: Of the file, by convention with the suffix `.safetensors`.
      theta: Any; params are a theta too.
      **meta: What the file should say of itself, in JSON's terms.

    Raises:
      ValueError: A leaf or a static field of a node has no place in such a file.
    """
    kept = _fold.compact(theta)
    tensors = {name: _fold.stored(leaf) for name, leaf in leaves(kept).items()}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    for name, array in tensors.items():
        if array.dtype not in DTYPES.values():
            known = [str(dtype) for dtype in DTYPES.values()]
            raise ValueError(f"{path}: {name} has dtype {array.dtype}; it may be one of {known}")
    text = {"crc32": "0" * 8, "format": FORMAT, "meta": meta, "recipe": _recipe.describe(kept)}
    try:
        metadata = {KEY: json.dumps(text, separators=(",", ":"), allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header is JSON, which cannot hold it: {error}") from error
    blob = bytearray(safetensors.numpy.save(tensors, metadata))
    start = blob.index(MARK) + len(MARK)
    blob[start : start + 8] = b"%08x" % zlib.crc32(blob)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    records.replace(Path(path), lambda file: file.write(blob))


def load(path: str | Path, modules: Iterable[ModuleType] = ()) -> Any:
    """The theta of a file: what `compact` gave, to the bit; see `read`."""
    return read(path, modules).theta


def read(path: str | Path, modules: Iterable[ModuleType] = ()) -> Contents:
    """A file's theta and what it says of itself; nothing that the file names is imported.

    Args:
      path: Of a file that `save` wrote.
      modules: Where classes of nodes may be found beside those of this package.

    Raises:
      ValueError: It is no such file, or not as it was written, or of a newer format, or has nodes that are
        not known here, or what is regenerated has another checksum. The message says which.
    """
    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return _parsed(blob, modules)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parsed(blob: bytes, modules: Iterable[ModuleType]) -> Contents:
    header, size, end = _header(blob)
    try:
        text = json.loads(header["__metadata__"][KEY])
        version, claimed = text["format"], text["crc32"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "it is a safetensors file, but none that weights.save wrote, or it is damaged"
        ) from None
    if version != FORMAT:
        raise ValueError(
            f"it has format {version}, and this version reads {FORMAT}: update tinyattn"
        )
    if len(blob) < end:
        raise ValueError(f"it is truncated, {len(blob)} of {end} bytes: load another copy")
    start = blob.find(MARK) + len(MARK)
    found = f"{zlib.crc32(blob[:start] + b'0' * 8 + blob[start + 8 :]):08x}"
    if found != claimed:
        raise ValueError(
            f"it is damaged, its checksum is {found} and not {claimed}: load another copy"
        )
    classes = _recipe.classes(modules)
    try:
        tensors = {name: _array(entry) for name, entry in safetensors.deserialize(blob)}
        theta = _recipe.Reader(tensors, classes).tree(text["recipe"])
    except (KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise ValueError(f"its recipe is not one that weights.save writes: {error}") from error
    if tensors:
        raise ValueError(f"it has tensors that its recipe does not name: {sorted(tensors)[:3]}")
    return Contents(theta, text["meta"], size, len(blob) - size)


def _header(blob: bytes) -> tuple[dict, int, int]:
    """The header of a safetensors file, and where its tensors start and end."""
    try:
        (length,) = struct.unpack_from("<Q", blob)
        header = json.loads(blob[8 : 8 + length])
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        size = max((entry["data_offsets"][1] for entry in tensors), default=0)
        return header, 8 + length, 8 + length + size
    except (struct.error, AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"its {len(blob)} bytes do not start as a safetensors file: it is of another kind, or"
            f" truncated or damaged: load another copy"
        ) from None


def _array(entry) -> np.ndarray:
    dtype = DTYPES[entry["dtype"]]
    little = np.frombuffer(entry["data"], dtype.newbyteorder("<"))
    return little.astype(dtype).reshape(entry["shape"])
