"""What a number may depend on beside its config: versions, commit and device."""

import os
import platform
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def environment() -> dict[str, Any]:
    """Returns what a number may depend on beside the config: versions, commit and device."""
    commit, dirty = revision(Path(__file__))
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    versions["tinyattn"] = _own_version()
    return {"versions": versions, "commit": commit, "dirty": dirty, "device": _device()}


def revision(source: Path) -> tuple[str | None, bool | None]:
    """Returns the commit that holds the file `source`, and whether Python files differ from it.

    Only Python files make a tree dirty: results are often written inside the repository, and a
    run would otherwise taint the next one. (None, None) without git, or where `source` is not a
    tracked file: a package installed under somebody else's repository is not of that commit.
    """
    try:
        _git(source.parent, "ls-files", "--error-unmatch", source.name)
        commit = _git(source.parent, "rev-parse", "HEAD")
        root = Path(_git(source.parent, "rev-parse", "--show-toplevel"))
        changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes)


def _git(folder: Path, *arguments: str) -> str:
    # Inside a git hook these variables would point every call at the hook's own repository.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", folder, *arguments], env=clean, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _own_version() -> str | None:
    """Reads the version from the checkout, which may be run without being installed."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.exists():
        fields = tomllib.loads(project.read_text()).get("project", {})
        if fields.get("name") == "tinyattn":
            return fields["version"]
    try:
        return metadata.version("tinyattn")
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    import jax

    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{first.platform}: {first.device_kind}, {jax.device_count()} devices"
    # Those this process may use, which a container or a scheduler may have narrowed.
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return f"cpu: {_cpu_name()}, {cores} cores"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
