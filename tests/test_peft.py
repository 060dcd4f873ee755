"""The golden files of PEFT are what each method's formula says; and how many numbers it trains.

The formulas are of the papers, in NumPy and with the gradients by hand, for a kernel [d_in, d_out]:
`G` is the gradient of the kernel. A method returns its kernel and the gradients of what it trains.
"""

import numpy as np
import pytest
from oracles.kept import FOLDER, near, read, tolerance

FILES = read(FOLDER / "weights")
# What the papers print in millions (0.3, 0.8, 0.043, 0.061), to the unit: queries and values of RoBERTa.
PUBLISHED = {
    "lora base": 294_912,
    "lora large": 786_432,
    "vera base": 43_008,
    "vera large": 61_440,
}


def lora(G, w0, a, b, scale):
    """W0 + scale ab; Hu et al. 2021, https://arxiv.org/abs/2106.09685."""
    return w0 + scale * a @ b, {"a": scale * G @ b.T, "b": scale * a.T @ G}


def dora(G, w0, a, b, magnitude, scale):
    """m V / |V| with V = W0 + scale ab, by columns; Liu et al. 2024, https://arxiv.org/abs/2402.09353.

    The norm counts as a constant in the gradient, by its section 4.3.
    """
    v = w0 + scale * a @ b
    norm = np.sqrt((v**2).sum(0))
    _, grads = lora(G * magnitude / norm, w0, a, b, scale)
    return v * magnitude / norm, grads | {"magnitude": (G * v).sum(0) / norm}


def hira(G, w0, a, b):
    """W0 + W0 ⊙ ab; Huang et al. 2025, "HiRA", ICLR."""
    return w0 + w0 * (a @ b), {"a": (G * w0) @ b.T, "b": a.T @ (G * w0)}


def loha(G, w0, a1, b1, a2, b2, scale):
    """W0 + scale a1b1 ⊙ a2b2; Hyeon-Woo et al. 2021, "FedPara", https://arxiv.org/abs/2108.06098."""
    one, two = a1 @ b1, a2 @ b2
    G1, G2 = scale * G * two, scale * G * one
    grads = {"a1": G1 @ b1.T, "b1": a1.T @ G1, "a2": G2 @ b2.T, "b2": a2.T @ G2}
    return w0 + scale * one * two, grads


def ia3(G, w0, l):  # noqa: E741
    """l ⊙ W0, of outputs or of inputs; Liu et al. 2022, https://arxiv.org/abs/2205.05638."""
    return w0 * l, {"l": (G * w0).sum(l.shape.index(1), keepdims=True)}


def vera(G, w0, a, b, lambda_d, lambda_b):
    """W0 + a d b ⊙ row, where d and the row are trained; Kopiczko et al. 2023, https://arxiv.org/abs/2310.11454."""
    a, b = a[: w0.shape[0]], b[:, : w0.shape[1]]
    grads = {
        "lambda_d": np.einsum("ro,ir,io,o->r", b, a, G, lambda_b),
        "lambda_b": (G * (a * lambda_d @ b)).sum(0),
    }
    return w0 + a * lambda_d @ b * lambda_b, grads


def shira(G, w0, indices, values):
    """W0 and numbers at fixed places; Bhardwaj et al. 2024, https://arxiv.org/abs/2406.13175."""
    w = w0.copy()
    w[tuple(indices)] += values
    return w, {"values": G[tuple(indices)]}


def fourierft(G, w0, indices, coefficients, scale):
    """W0 and waves; Gao et al. 2024, https://arxiv.org/abs/2405.03003, as cosines: the real part alone."""
    rows, columns = indices
    (I, O), (i, o) = w0.shape, np.indices(w0.shape)  # noqa: E741
    angle = 2 * np.pi * (rows * i[..., None] / I + columns * o[..., None] / O)
    waves = scale / (I * O) * np.cos(angle)
    return w0 + waves @ coefficients, {"coefficients": np.einsum("io,iok->k", G, waves)}


METHODS = {f.__name__: f for f in (lora, dora, hira, loha, ia3, vera, shira, fourierft)}
CASES = [(name, case) for name in METHODS for case in sorted(FILES[name][1])]


def test_every_file_is_compared():
    assert set(METHODS) | {"albert_sharing", "counts"} == set(FILES)


@pytest.mark.parametrize("name, case", CASES)
def test_the_numbers_of_peft_are_the_formula_with_gradients(name, case):
    about, found = FILES[name]
    settings, arrays = about["cases"][case], dict(found[case])
    limit = tolerance(about)
    x, out, dout, w = (arrays.pop(name) for name in ("x", "out", "dout", "w"))
    want = {name: arrays.pop(name) for name in list(arrays) if name.startswith("grad_")}
    scale = {"scale": settings["scale"]} if "scale" in settings else {}
    kernel, grads = METHODS[name](x.T @ dout, **arrays, **scale)
    near(kernel, w, limit, "w")
    near(x @ kernel, out, limit, "out")
    near(dout @ kernel.T, want.pop("grad_x"), limit, "grad_x")
    assert {f"grad_{factor}" for factor in grads} == set(want)
    for factor, grad in grads.items():
        near(grad, want[f"grad_{factor}"], limit, factor)
    assert settings["trainable"] == sum(grad.size for grad in grads.values())


@pytest.mark.parametrize("case", PUBLISHED)
def test_peft_trains_as_many_numbers_as_the_papers(case):
    about, _ = FILES["counts"]
    assert set(about["cases"]) == set(PUBLISHED)
    settings, method = about["cases"][case], case.split()[0]
    L, D, R = (settings[name] for name in ("layers", "width", "rank"))
    # Two square kernels a layer.
    each = {"lora": 2 * D * R, "vera": D + R}[method]
    assert 2 * L * each == settings["trainable"] == PUBLISHED[case]
