"""Published ways of storing weights, each a line of config: sections for `config.weights`.

The first line of each says what it is as W = W0 + c D ⊙ V. W0 is what the model has then, fresh or
pretrained, unless something else is said. `fields` are those of the scheme: `leaves`, a regular expression
on paths, `w0` and `layers`.
"""

from typing import Any

from tinyattn import registry

KERNELS = "block.*kernel$"


def delta(*products: dict[str, Any], **fields: Any) -> registry.Spec:
    """W0 + Σ_k c_k D_k ⊙ V_k, each product a mapping of `d`, `v` (see `factor`) and `scale`."""
    fields = {"leaves": KERNELS} | fields
    return registry.spec("tinyattn.weights", "delta", products=products, **fields)


def factor(kind: str, **fields: Any) -> dict[str, Any]:
    """A factor of a product: `factor("lowrank", rank=8)`; `_factors.Factor` says what there is."""
    return {"kind": kind, **fields}


CONST = factor("const")


def both(d: str = "row", v: str = "full", **fields: Any) -> registry.Spec:
    """W0 + D ⊙ V, both trained: D of 1 at first and V of 0, so that W starts as W0."""
    return delta({"d": factor(d, value=1.0), "v": factor(v)}, **fields)


def train_d(d: str = "row", role: str = "seeded", **fields: Any) -> registry.Spec:
    """W0 + D ⊙ V with a random V, as large as the leaf, that stays as it is; only D is trained, from 0."""
    return delta({"d": factor(d), "v": factor("full", std=1.0, role=role)}, **fields)


def train_v(v: str = "full", **fields: Any) -> registry.Spec:
    """W0 + 1 ⊙ V: only V is trained, from 0. With a full V this is ordinary training."""
    return delta({"d": CONST, "v": factor(v)}, **fields)


def frozen(**fields: Any) -> registry.Spec:
    """W0 from a seed and nothing else: a random matrix that is never trained, stored as its seed."""
    return registry.spec(
        "tinyattn.weights", "delta", **({"leaves": KERNELS, "w0": "seed", "products": ()} | fields)
    )


def lora(rank: int = 8, alpha: float = 16.0, **fields: Any) -> registry.Spec:
    """W0 + (alpha / R) AB.

    Source: Hu et al. 2021, "LoRA", https://arxiv.org/abs/2106.09685, section 4.1.
    """
    return delta({"d": CONST, "v": factor("lowrank", rank=rank), "scale": alpha / rank}, **fields)


def hira(rank: int = 8, scale: float = 1.0, **fields: Any) -> registry.Spec:
    """W0 + c AB ⊙ W0.

    Source: Huang et al. 2025, "HiRA", https://openreview.net/forum?id=TwJrTz9cRS, equation 4.
    """
    return delta({"d": factor("lowrank", rank=rank), "v": factor("tied"), "scale": scale}, **fields)


def loha(rank: int = 4, alpha: float = 4.0, **fields: Any) -> registry.Spec:
    """W0 + (alpha / R) AB ⊙ A'B', of rank R² at most.

    Source: Hyeon-Woo et al. 2022, "FedPara", https://arxiv.org/abs/2108.06098, section 2.2.
    """
    d = factor("lowrank", rank=rank, std=1.0)
    return delta({"d": d, "v": factor("lowrank", rank=rank), "scale": alpha / rank}, **fields)


def ia3(side: str = "row", **fields: Any) -> registry.Spec:
    """W0 + (l - 1) ⊙ W0, which scales the outputs (`row`) or the inputs (`col`) of W0.

    Source: Liu et al. 2022, "Few-shot parameter-efficient fine-tuning", https://arxiv.org/abs/2205.05638,
      section 3.3.
    """
    return delta({"d": factor(side), "v": factor("tied")}, **fields)


def vera(rank: int = 16, start: float = 0.1, **fields: Any) -> registry.Spec:
    """W0 + b ⊙ (A diag(d) B), where A and B are random and one for all layers, and b and d are trained.

    Source: Kopiczko et al. 2024, "VeRA", https://arxiv.org/abs/2310.11454, equation 2.
    Differs: leaves of another shape have matrices of their own, not a cut of the largest.
    """
    v = factor("lowrank", rank=rank, role="seeded", scope="model", middle=True, middle_value=start)
    return delta({"d": factor("row"), "v": v}, **fields)


def shira(density: float = 0.02, **fields: Any) -> registry.Spec:
    """W0 + V, V zero but at a few random places.

    Source: Bhardwaj et al. 2024, "SHiRA", https://arxiv.org/abs/2406.13175, section 3.1 (random masks).
    """
    return delta({"d": CONST, "v": factor("sparse", density=density)}, **fields)


def diff_pruning(cost: float = 1e-4, start: float = 2.0, **fields: Any) -> registry.Spec:
    """W0 + Z ⊙ V, where Z is a relaxed mask that pays `cost` for each place it leaves open.

    Source: Guo et al. 2021, "Diff pruning", https://arxiv.org/abs/2012.07463, equations 2 to 6.
    """
    z = factor("mask", value=start, estimator="hard_concrete", cost=cost)
    return delta({"d": z, "v": factor("full")}, **fields)


def piggyback(start: float = 0.01, **fields: Any) -> registry.Spec:
    """M ⊙ W0, where only the mask M is trained: all ones at first.

    Source: Mallya et al. 2018, "Piggyback", https://arxiv.org/abs/1801.06519, section 3.
    """
    v = factor("full", own=True, role="fixed")
    return delta({"d": factor("mask", value=start), "v": v}, w0="zero", **fields)


def supermask(density: float = 0.5, **fields: Any) -> registry.Spec:
    """M ⊙ V, where V is random and never stored, and the mask M keeps a share of it: a bit a weight.

    Source: Ramanujan et al. 2020, "What's hidden in a randomly weighted neural network?",
      https://arxiv.org/abs/1911.13299, section 3.
    """
    v = factor("full", std=density**-0.5, role="seeded")
    return delta({"d": factor("mask", std=1.0, density=density), "v": v}, w0="zero", **fields)


def batch_ensemble(groups: int = 1, **fields: Any) -> registry.Spec:
    """(r sᵀ) ⊙ V, where layers have V in common and each a column r and a row s of its own.

    Source: Wen et al. 2020, "BatchEnsemble", https://arxiv.org/abs/2002.06715, section 3.1.
    Differs: over the layers of one model, not over members of an ensemble.
    """
    v = factor("full", own=True, scope="layers", groups=groups)
    return delta({"d": factor("rank1", value=1.0), "v": v}, w0="zero", **fields)


def masa(atoms: int = 2, groups: int = 1, **fields: Any) -> registry.Spec:
    """Σ_s c_s A_s, where layers have the atoms A in common and each a mixture c of its own.

    Source: Zhussip et al. 2026, "Share your attention", https://arxiv.org/abs/2508.04581, section 3.
    """
    v = factor("atoms", size=atoms, std=1.0, scope="layers", groups=groups)
    return delta({"d": CONST, "v": v}, w0="zero", **fields)


def hashed(size: int = 256, **fields: Any) -> registry.Spec:
    """V whose weights are numbers of one pool for all leaves, picked and signed at random.

    Source: Chen et al. 2015, "HashedNets", https://arxiv.org/abs/1504.04788, section 4.
    Differs: the pool is one for all leaves of one shape, not for one layer.
    """
    v = factor("hashed", size=size, std=1.0, scope="model")
    return delta({"d": CONST, "v": v}, w0="zero", **fields)


def pranc(size: int = 32, **fields: Any) -> registry.Spec:
    """Σ_k a_k V_k, where the matrices V are random and never stored: only the numbers a are.

    Source: Nooralinejad et al. 2023, "PRANC", https://arxiv.org/abs/2206.08464, section 3.
    Differs: each leaf has numbers of its own.
    """
    v = factor("atoms", size=size, std=1.0, role="seeded")
    return delta({"d": CONST, "v": v}, w0="zero", **fields)


def relaxed(rank: int = 0, d: str = "const", groups: int = 1, **fields: Any) -> registry.Spec:
    """D ⊙ V + AB, where layers have V in common, and each has a D and a low rank AB of its own.

    Source: Bae et al. 2025, "Relaxed recursive Transformers", https://arxiv.org/abs/2410.20672, section
      2.3, for AB.
    """
    own = factor(d) if d == "const" else factor(d, value=1.0)
    v = factor("full", own=True, scope="layers", groups=groups)
    low = [{"d": CONST, "v": factor("lowrank", rank=rank)}] if rank else []
    return delta({"d": own, "v": v}, *low, w0="zero", **fields)
