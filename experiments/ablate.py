"""Runs a table: every row of an ablation file under every seed, then prints and draws it.

    python -m experiments.ablate --config=configs/ablations/first.py --workdir=runs/first

Finished runs are skipped, an interrupted one goes on: repeating the command is always safe.
"""

from pathlib import Path

from absl import flags

from experiments import cli, report
from tinyattn import sweep


def run(base, rows: sweep.Rows, workdir: Path) -> int:
    """Runs what is missing, writes the table and the figure; returns how many runs failed."""
    table = sweep.expand(base, rows)
    bars = cli.Bars()
    try:
        records = sweep.run_table(table, workdir, bars)
    finally:
        bars.close()
    print(report.terminal(report.publish(workdir)))
    return sum(record["status"] != "ok" for record in records)


def main() -> None:
    file = cli.load(cli.config_flags.get_config_filename(flags.FLAGS["config"]))
    if not hasattr(file, "rows"):
        raise ValueError(
            f"{file.__file__} has no rows(): give an ablation file, or use experiments.train"
        )
    if failed := run(cli.CONFIG.value, file.rows(), Path(cli.WORKDIR.value)):
        raise ValueError(f"{failed} runs failed; repeat the command to try them again")


if __name__ == "__main__":
    cli.run(main)
