"""Finds the ledger of a run."""

from __future__ import annotations

from pathlib import Path

from choosy.sealed import read_yaml


def ledger_of(run_dir: Path) -> Path:
    """Return the ledger of a run: the one that its config.yaml names, and where that is not here, the folder's own.

    Raises:
        ValueError: This is not the folder of a run.
    """
    file = run_dir / "config.yaml"
    if not file.exists():
        raise ValueError(f"{run_dir} is not the folder of a run: it has no config.yaml; type one such as runs/NAME.")
    try:
        named = Path(read_yaml(file)["data"]["run"]["labels"]["ledger"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} names no ledger (data.run.labels.ledger); put back what is missing.") from error
    return named if named.exists() else run_dir / "ledger.sqlite"
