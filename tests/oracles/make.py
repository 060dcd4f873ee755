"""Makes the golden files, or checks that they are what the references say today.

python tests/oracles/make.py huggingface          writes golden/*.npz
python tests/oracles/make.py fla --check          compares instead, and fails where they differ
"""

import argparse
import importlib

import cases
import torch

MODULES = {
    "huggingface": ("huggingface_full", "huggingface_rest", "huggingface_albert"),
    "fla": ("fla_naive",),
    "peft": ("peft_layers",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", choices=MODULES)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--only", default="", help="one mechanism, by the name of its file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for module in MODULES[options.environment]:
        importlib.import_module(module)
    if options.only not in {"", *cases.MAKERS}:
        parser.error(f"--only={options.only}: give one of {', '.join(cases.MAKERS)}")
    for name, maker in cases.MAKERS.items():
        if options.only in ("", name):
            path = cases.FOLDER / f"{name}.npz"
            torch.manual_seed(0)
            arrays = maker()
            if options.check:
                print(f"{name}: within {cases.compare(arrays, path):.1e}")
            else:
                cases.write(arrays, path)
                print(f"{name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
