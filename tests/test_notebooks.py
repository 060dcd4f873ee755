"""Notebooks: script and .ipynb in step, no stored outputs, and they run on a small directory."""

import base64
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from fake_results import make
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

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
