"""Trains one config, a run for each of its seeds, as a table of one row.

python -m experiments.train --config=configs/digits.py --workdir=runs/digits
"""

from pathlib import Path

from absl import flags

from experiments import ablate, cli


def main() -> None:
    path = cli.config_flags.get_config_filename(flags.FLAGS["config"])
    name = Path(path.partition(":")[0]).stem
    if failed := ablate.run(cli.CONFIG.value, [(name, {})], Path(cli.WORKDIR.value)):
        raise ValueError(f"{failed} runs failed; repeat the command to try them again")


if __name__ == "__main__":
    cli.run(main)
