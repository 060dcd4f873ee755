"""The factors D and V of a product: what they may be, and how they start."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tinyattn import registry
from tinyattn.weights import _masks

KINDS = {
    "const": "the number 1",
    "scalar": "one number",
    "row": "a number for each output",
    "col": "a number for each input",
    "rank1": "a column times a row",
    "lowrank": "a matrix of rank `rank` at most",
    "full": "a number for each weight",
    "mask": "zeros and ones, some of them learned",
    "sparse": "numbers at some places, and zero elsewhere",
    "hashed": "numbers of one pool, each at many places and with either sign",
    "atoms": "a mixture of `size` matrices",
    "tied": "the base W0 of this leaf or of another layer",
}
ROLES = ("trainable", "fixed", "seeded")
SCOPES = ("leaf", "layers", "model")
SEEDED = ("scalar", "row", "col", "rank1", "lowrank", "full", "mask", "hashed", "atoms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
    """One of the two factors of a product; D counts in units of 1, V in those of the leaf.

    Attributes:
      kind: One of `KINDS`.
      role: `trainable`, `fixed` (stored and never trained) or `seeded` (regenerated, never stored). Of a
        low rank with a `middle`, of a pool and of atoms it says how the matrices are kept; the middle,
        or the mixture's weights, are trained. The places of a sparse factor or of a pool are seeded.
      value: What it is at first, everywhere.
      std: Standard deviation of what is added to it at first.
      own: Whether a full factor starts as the leaf itself.
      rank: Of a low rank (R).
      middle: Whether a low rank is A diag(m) B, where m is trained and starts at `middle_value`.
      middle_value: Where m starts.
      size: Numbers of a pool, or matrices of a mixture.
      density: Share of ones in a mask that is drawn, of places of a sparse factor, or of the ones that a
        learned mask keeps; 0 lets it keep all that score above 0.
      estimator: How a learned mask gets a gradient, one of `_masks.ESTIMATORS`.
      cost: What each expected one of a hard-concrete mask adds to the loss.
      scope: Who has it in common: `leaf` is nobody, `layers` the same leaf of all layers of a group,
        `model` all leaves of one shape. Where it is kept in parts, see `role`, it is the matrices.
      groups: Groups of consecutive layers that have it in common, with the scope `layers`.
      layer: Whose W0 a tied factor is; -1 is the leaf's own.
    """

    kind: str = "full"
    role: str = "trainable"
    value: float = 0.0
    std: float = 0.0
    own: bool = False
    rank: int = 1
    middle: bool = False
    middle_value: float = 0.1
    size: int = 0
    density: float = 0.0
    estimator: str = "straight_through"
    cost: float = 0.0
    scope: str = "leaf"
    groups: int = 1
    layer: int = -1

    def __post_init__(self):
        for field, valid in (
            ("kind", KINDS),
            ("role", ROLES),
            ("scope", SCOPES),
            ("estimator", _masks.ESTIMATORS),
        ):
            chosen = getattr(self, field)
            if chosen not in valid:
                raise ValueError(f"delta: {field}={chosen!r}; {registry.nearest(chosen, valid)}")
        if self.std < 0:
            raise ValueError(f"delta: std={self.std} is a standard deviation: give 0 or more")
        if min(self.rank, self.groups) < 1:
            raise ValueError(f"delta: rank={self.rank} and groups={self.groups} must be at least 1")
        if self.kind in ("hashed", "atoms") and self.size < 1:
            raise ValueError(f"delta: {self.kind!r} has size={self.size} numbers; give 1 or more")
        if not 0 <= self.density <= 1:
            raise ValueError(f"delta: density={self.density} must be a share in [0, 1]")
        drawn = self.kind == "sparse" or (self.kind == "mask" and self.role != "trainable")
        if drawn and not self.density:
            raise ValueError(f"delta: {self.kind!r} is drawn and needs a density above 0")
        if self.role == "seeded" and self.kind not in SEEDED:
            raise ValueError(f"delta: {self.kind!r} cannot be seeded; these can: {list(SEEDED)}")
        whole = self.kind in ("mask", "lowrank", "rank1")
        if self.role == "seeded" and not whole and (self.value or not self.std):
            raise ValueError(
                f"delta: a seeded factor is of random numbers about 0, with value={self.value} and"
                f" std={self.std}: give value=0 and a std above 0"
            )
        if self.own and self.kind != "full":
            raise ValueError(
                f"delta: only a full factor starts as the leaf itself, not {self.kind!r}"
            )

    @property
    def moves(self) -> bool:
        """Whether training changes it."""
        return (self.role == "trainable" and self.kind not in ("const", "tied")) or (
            self.kind == "atoms" or (self.kind == "lowrank" and self.middle)
        )

    @property
    def starts_at_zero(self) -> bool:
        """Whether it is zero at first; a leaf that is zero itself apart."""
        if self.kind in ("const", "mask", "tied") or self.own:
            return False
        if self.kind in ("lowrank", "rank1") and self.role == "seeded":
            return self.middle and not self.middle_value
        return not self.value and not self.std


def section(config_class: type, given: Any) -> Any:
    """A dataclass from itself, or from a mapping of some of its fields."""
    if isinstance(given, config_class):
        return given
    if not isinstance(given, Mapping) and not hasattr(given, "items"):
        raise ValueError(f"delta: {given!r} is no section of {config_class.__name__}'s fields")
    return config_class(**registry.known(config_class, dict(given.items()), config_class.__name__))
