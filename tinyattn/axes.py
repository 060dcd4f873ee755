"""The alphabet of axes: one letter, one meaning, in einsum strings, annotations and locals."""

from collections.abc import Mapping

LETTERS: Mapping[str, str] = {
    "B": "batch",
    "T": "query length",
    "S": "key length",
    "N": "query heads",
    "K": "key/value heads",
    "H": "head width",
    "D": "model width",
    "F": "feed-forward width",
    "V": "vocabulary",
    "R": "rank",
    "C": "block length",
    "L": "layers",
}


def sizes(**arrays) -> dict[str, int]:
    """Reads the size of every axis off named arrays and checks that they agree.

    Args:
      **arrays: name = (array, letters), one letter of `LETTERS` for each axis.

    Returns:
      Letter to size.

    Raises:
      ValueError: An array has another number of axes than letters, or two arrays disagree.

    >>> import numpy as np
    >>> sizes(query=(np.ones((2, 5)), "BT"), key=(np.ones((2, 7)), "BS"))
    {'B': 2, 'T': 5, 'S': 7}
    """
    found: dict[str, int] = {}
    first: dict[str, str] = {}
    for name, (array, letters) in arrays.items():
        if array.ndim != len(letters):
            wanted = ", ".join(LETTERS[letter] for letter in letters)
            raise ValueError(f"{name} has shape {array.shape}; expected [{wanted}]")
        for letter, size in zip(letters, array.shape, strict=True):
            if found.setdefault(letter, size) != size:
                raise ValueError(
                    f"{LETTERS[letter]} is {size} in {name} but {found[letter]} in {first[letter]}"
                )
            first.setdefault(letter, name)
    return found
