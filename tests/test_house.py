"""The rules of the house, read off the files: who may import whom, how long a file may be, pins."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
HERE = "tests/test_house.py"

# A unit is a file or a package right under tinyattn/, or another folder of the repository. Imports
# point to a lower floor, or stay within the unit.
FLOORS = {
    **dict.fromkeys(
        ["tinyattn", "activations", "affine", "axes", "biases", "cost", "masks", "records"]
        + ["registry"],
        0,
    ),
    **dict.fromkeys(["config", "initializers", "optim", "stats", "weights"], 1),
    **dict.fromkeys(["attention", "tasks"], 2),
    **dict.fromkeys(["checkpoint", "model", "pretrained"], 3),
    **dict.fromkeys(["distill", "export", "generate", "sweep", "train"], 4),
    **dict.fromkeys(["configs", "experiments", "notebooks"], 5),
    "tests": 6,
}
# Imports along one floor, each with its reason.
ALONG = {
    ("affine", "activations"): "what an affine layer reads may be rounded",
    ("sweep", "train"): "a sweep is many trainings",
    ("sweep", "generate"): "and some are judged by what their models write",
    ("notebooks", "experiments"): "a notebook shows the table and figure that the programs draw",
}
# A config names parts and fills in their fields; it does no work, so it needs no other unit.
CONFIGS_NEED = {
    *("attention", "config", "model", "optim", "registry", "sweep", "tasks", "train", "weights"),
}

LONGEST = 250
LONGER = {
    "tests/test_attention.py": "the conformance suite, one place for all that a variant promises",
    "tests/test_model.py": "one case for each option of the model, and an oracle in NumPy",
    "tests/test_cost.py": "one case for each primitive and construct that the counter must know",
}

# Folders that belong to one machine only.
ABSOLUTE = re.compile(r"(?<![\w.])/(work|root|home|tmp|Users)/")


def tracked():
    """The files under version control; all but the hidden ones where this copy has no git."""
    try:
        listing = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    except (OSError, subprocess.CalledProcessError):
        listing = []
    if HERE in listing:
        return [path for path in listing if (ROOT / path).is_file()]
    return [path for path in below(ROOT) if not path.startswith("runs/")]


def below(folder):
    paths = (path.relative_to(ROOT).as_posix() for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not re.search(r"(^|/)(\.|__pycache__/)", path)]


FILES = sorted(tracked())
# A file that is not under version control yet has to keep the rules already.
HOUSE = ["tinyattn", "experiments", "notebooks", "configs", "tests"]
NEW = {path for folder in HOUSE for path in below(ROOT / folder)}
PYTHON = sorted(path for path in {*FILES, *NEW} if path.endswith(".py"))
HOUSED = [path for path in PYTHON if "/" in path and not path.startswith("tests/")]


def unit_of(dotted):
    first, _, rest = dotted.partition(".")
    return rest.split(".")[0] if first == "tinyattn" and rest else first


def imports(path, source):
    """(line, dotted name) of every import in a file, those inside functions as well."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *(node.module or "").split(".")]
            for alias in node.names:
                yield node.lineno, ".".join([*filter(None, base), alias.name])


def complaints(path, source):
    """What the imports of a file break, a line each."""
    unit = unit_of(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if unit not in FLOORS:
        yield f"{path}: {unit!r} has no floor; add it to FLOORS in {HERE} and to DESIGN"
        return
    for line, name in imports(path, source):
        target = unit_of(name)
        ours = name.split(".")[0] in HOUSE
        if not ours or target == unit or (unit, target) in ALONG:
            continue
        if target not in FLOORS:
            yield f"{path}:{line}: {name} has no floor; add {target!r} to FLOORS in {HERE}"
        elif FLOORS[target] >= FLOORS[unit]:
            yield (
                f"{path}:{line}: {unit} (floor {FLOORS[unit]}) imports {target} (floor"
                f" {FLOORS[target]}); imports point down, exceptions are in ALONG in {HERE}"
            )
        elif unit == "configs" and target not in CONFIGS_NEED:
            yield f"{path}:{line}: a config imports {target}; it may import {sorted(CONFIGS_NEED)}"


@pytest.mark.parametrize("path", HOUSED)
def test_imports_point_down(path):
    assert list(complaints(path, (ROOT / path).read_text())) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        (
            "tinyattn/masks.py",
            "from tinyattn import attention",
            "masks (floor 0) imports attention",
        ),
        ("tinyattn/masks.py", "from tinyattn.cost import count", "masks (floor 0) imports cost"),
        ("tinyattn/optim.py", "def f():\n  import tinyattn.model.x", "optim.py:2: optim (floor 1)"),
        ("tinyattn/tasks/digits.py", "from ..train import fit", "imports train (floor 4)"),
        ("tinyattn/tasks/digits.py", "from .. import attention", "imports attention (floor 2)"),
        ("tinyattn/train/_loop.py", "from tinyattn import sweep", "imports sweep (floor 4)"),
        ("tinyattn/sweep.py", "import experiments.train", "imports experiments (floor 5)"),
        ("experiments/train.py", "import tests.test_house", "imports tests (floor 6)"),
        ("experiments/train.py", "from tinyattn import new", "add 'new' to FLOORS"),
        ("tinyattn/new.py", "", "add it to FLOORS"),
        ("configs/a.py", "from experiments import train", "imports experiments"),
        ("configs/a.py", "from tinyattn import cost", "a config imports cost"),
    ],
)
def test_a_bad_import_is_found(path, source, expected):
    (complaint,) = complaints(path, source)
    assert expected in complaint


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tinyattn/attention/sparse/window.py", "from .. import _core\nfrom ...masks import Mask"),
        (
            "tinyattn/attention/__init__.py",
            "from tinyattn import registry\nfrom .full.dense import f",
        ),
        ("tinyattn/sweep.py", "import jax\nfrom tinyattn import train"),
        ("experiments/bench/step.py", "from experiments import train\nimport tinyattn.sweep"),
        ("configs/ablations/first.py", "from configs import digits\nfrom tinyattn import weights"),
    ],
)
def test_a_good_import_is_let_pass(path, source):
    assert list(complaints(path, source)) == []


def test_no_file_is_called_utils():
    assert [path for path in PYTHON if path.endswith("utils.py")] == []


def test_files_are_short():
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in PYTHON}
    long = {path: n for path, n in lines.items() if n > LONGEST and path not in LONGER}
    assert long == {}, f"split these, or give a reason in LONGER in {HERE}"
    assert [p for p in LONGER if lines.get(p, 0) <= LONGEST] == [], "these need no exception"


def pin_complaints(ranges, pins):
    """Where exact pins leave out a declared dependency or lie outside its range."""
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, pins)}
    for declared in map(Requirement, ranges):
        pin = pins.get(canonicalize_name(declared.name))
        if pin is None:
            yield f"{declared.name} has no pin"
            continue
        exact = re.fullmatch(r"==([^*,]+)", str(pin.specifier))
        if not exact or not declared.specifier.contains(exact[1], prereleases=True):
            yield f"{pin} is no exact pin within {declared}"


def test_requirements_pin_what_pyproject_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "requirements.txt").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert list(pin_complaints(project["dependencies"], pins)) == []
    extras = project["optional-dependencies"]["test"]
    assert list(pin_complaints(extras, extras)) == []


def test_a_bad_pin_is_found():
    ranges = ["jax>=0.10,<0.12", "ml-collections", "optax"]
    assert list(pin_complaints(ranges, ["jax==0.11.0", "ml_collections==1.1", "optax==0.2"])) == []
    found = list(pin_complaints(ranges, ["jax==0.12", "ml_collections>=1.1"]))
    assert len(found) == 3 and "within jax" in found[0] and found[2] == "optax has no pin"
    assert len(list(pin_complaints(["optax"], ["optax==0.*"]))) == 1


def absolute_paths(text):
    return [line for line in text.splitlines() if ABSOLUTE.search(line)]


@pytest.mark.parametrize("path", FILES)
def test_no_path_of_one_machine(path):
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # a picture or another binary file
    assert absolute_paths(text) == []


def test_a_path_of_one_machine_is_found():
    for place in ("home/me/data", "work/main", "tmp/x"):
        assert absolute_paths(f"workdir = '/{place}'") == [f"workdir = '/{place}'"]
        assert absolute_paths(f"see ../{place} and https://example.org/{place}") == []
