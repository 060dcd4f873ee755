"""Notebooks: script and .ipynb in step, no stored outputs, and they run, as does what they draw."""

import base64
import io
import sys
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from fake_results import make
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from matplotlib.image import imread
from nbclient import NotebookClient

from experiments import anatomy
from tinyattn import attention, masks
from tinyattn.masks import Mask

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted({path.stem for kind in ("*.py", "*.ipynb") for path in NOTEBOOKS.glob(kind)})


class ThisInterpreter(AsyncKernelManager):
    """Starts the kernel under the interpreter of the tests, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        launcher = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=[sys.executable, *launcher], language="python")


def execute(name: str, folder: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.kernel_manager_class = ThisInterpreter
    return client.execute()


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def displayed(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.parametrize("name", NAMES)
def test_script_and_notebook_are_in_step(name):
    script = jupytext.read(NOTEBOOKS / f"{name}.py")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [[(cell.cell_type, cell.source) for cell in each.cells] for each in (script, notebook)]
    assert cells[0] == cells[1], f"run: jupytext --update --to ipynb notebooks/{name}.py"
    stored = [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert not stored, "strip the outputs: they belong to one machine's records"


def test_first_table_draws_and_compares(tmp_path, monkeypatch):
    make(tmp_path, {"dense": 0.967, "window": 0.955, "shared + D⊙V": 0.963})
    monkeypatch.setenv("TINYATTN_RESULTS", str(tmp_path))
    done = execute("first_table", NOTEBOOKS)
    (table,) = displayed(done, "text/markdown")
    assert table.count("\n| ") == 3 and "shared + D⊙V" in table
    (picture,) = displayed(done, "image/png")
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    text = printed(done)
    assert "15 runs of 3 rows" in text
    assert "points against dense (n=5 seeds)" in text
    assert "of 5 seeds alone separate dense from window" in text
    assert any("0123456789abcdef" in html for html in displayed(done, "text/html"))


def test_first_table_runs_as_a_script_without_arrays(tmp_path, monkeypatch, capsys):
    make(tmp_path, {"dense": 0.967, "window": 0.955}, arrays=False)
    monkeypatch.setenv("TINYATTN_RESULTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = NOTEBOOKS / "first_table.py"
    exec(compile(script.read_text(), script, "exec"), {"__file__": str(script)})
    assert "so nothing to compare" in capsys.readouterr().out


def test_tables_redraws_every_table(tmp_path, monkeypatch, capsys):
    make(tmp_path / "one", {"dense": 0.967, "window": 0.955})
    make(tmp_path / "two", {"dense": 0.967, "linear": 0.5, "shared": 0.99})
    monkeypatch.setenv("TINYATTN_TABLES", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    script = NOTEBOOKS / "tables.py"
    exec(compile(script.read_text(), script, "exec"), {"__file__": str(script)})
    text = capsys.readouterr().out
    assert "one: 10 runs, 2 rows, 5 seeds" in text and "two: 15 runs, 3 rows, 5 seeds" in text
    assert "better: shared\n    worse: linear" in text
    assert [type(each).__name__ for each in shown] == ["Markdown", "Image"] * 2
    assert shown[2].data.startswith("### two") and shown[3].data.startswith(b"\x89PNG")


# Allowed and seen of 24 x 24 pairs: a window of 3 is a band of five diagonals, or of three when causal.
SEEN = {
    "window": {"no mask": (576, 24 * 5 - 6), "causal": (300, 24 * 3 - 3), "window": (156, 114)},
    "linear": {"no mask": (576, 576), "causal": (300, 300), "padding": (24 * 18, 24 * 18)},
}


def opened_up(name, text):
    """What the notebook prints of a variant."""
    assert text.startswith(f"{name}: Config(num_heads=4,") and "jax" in text and "commit" in text
    for mask, (allowed, seen) in SEEN[name].items():
        said = f"{mask}: of 576 pairs the mask allows {allowed}; {name} sees {seen} of them"
        assert f"{said} and leaves out {allowed - seen}." in text
    assert "padding" not in SEEN[name] or "segments: of" not in text
    assert f"{name}: mixing grows with exponent" in text and "and 1.00 up to 16,384" in text
    assert "dense: mixing grows with exponent 2.00 from 16 tokens and 2.00 up to 16,384" in text
    assert text.count("counted in the program, the same") == 2 and "NOT THE SAME" not in text


def test_variant_is_opened_up(monkeypatch):
    monkeypatch.setenv("TINYATTN_VARIANT", "window")
    done = execute("variant", NOTEBOOKS)
    pictures = displayed(done, "image/png")
    assert len(pictures) == 4
    for picture in pictures:
        pixels = imread(io.BytesIO(base64.b64decode(picture)), format="png")
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.05
    opened_up("window", printed(done))


@pytest.fixture
def as_script(tmp_path, monkeypatch, capsys):
    """What the notebook prints of a variant when it runs as a script."""

    def run(name):
        monkeypatch.setenv("TINYATTN_VARIANT", name)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        script = NOTEBOOKS / "variant.py"
        exec(compile(script.read_text(), script, "exec"), {"__file__": str(script)})
        return capsys.readouterr().out

    return run


def test_variant_runs_as_a_script(as_script):
    opened_up("linear", as_script("linear"))


def test_variant_runs_on_that_of_a_fork(as_script):
    assert "myfork.cosine sees 300 of them and leaves out 0." in as_script("myfork.cosine")


def test_a_map_is_the_softmax_of_its_scores():
    variant, config = anatomy.choose("dense", 2)
    T, D = 7, 12  # H is 6, so the identity goes in two parts
    frequencies = T ** -(np.arange(3) / 3)
    distance = np.subtract.outer(np.arange(T), np.arange(T))
    alike = 2 * np.cos(distance[..., None] * frequencies).sum(-1)
    for mask in (Mask(), masks.causal()):
        maps = anatomy.weights(variant, config, mask, D=D, T=T)
        for sharpness, got in zip((0.5, 1.0), maps, strict=True):
            weights = np.exp(sharpness * alike / np.sqrt(6)) * np.asarray(mask.dense(T, T)[0])
            np.testing.assert_allclose(got, weights / weights.sum(1, keepdims=True), atol=1e-6)


def test_pairs_that_a_variant_must_not_see_are_found(monkeypatch):
    variant, config = anatomy.choose("dense", 2)
    mask = masks.causal()
    table = anatomy.pairs(variant, config, mask, D=12, T=5)
    np.testing.assert_array_equal(table == anatomy.SEEN, np.tri(5))
    assert (table != anatomy.LEFT_OUT).all()
    sees_all = attention.load("dense").attend
    monkeypatch.setattr(
        variant, "attend", lambda config, *heads: sees_all(config, *heads[:3], Mask())
    )
    with pytest.raises(ValueError, match=r"dense gives weight to 10 pairs that the mask forbids"):
        anatomy.pairs(variant, config, mask, D=12, T=5)


def test_spread_and_moved():
    even, one = np.full((1, 4, 4), 0.25), np.eye(4)[None]
    np.testing.assert_allclose([anatomy.spread(even), anatomy.spread(one)], [[4], [1]])
    np.testing.assert_allclose(anatomy.moved(even, one), [0.75])
    assert anatomy.moved(one, one) == 0
