"""Finds the ledger of a run."""

from __future__ import annotations

from pathlib import Path

from choosy.sealed import read_yaml


def ledger_of(run_dir: Path) -> Path:
    """Return the ledger of a run: the folder's own, or one elsewhere that its config.yaml names and that is there.

    A run that was copied or moved keeps its own one, although its config.yaml names the place where the run was.

    Raises:
        ValueError: This is not the folder of a run.
    """
    file = run_dir / "config.yaml"
    if not file.exists():
        raise ValueError(f"{run_dir} is not the folder of a run: it has no config.yaml; type one such as runs/NAME.")
    config, own = read_yaml(file), run_dir / "ledger.sqlite"
    try:
        named = Path(config["data"]["run"]["labels"]["ledger"])
        was_own = named == Path(config["data"]["run"].get("folder", "")) / own.name
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} names no ledger (data.run.labels.ledger); put back what is missing.") from error
    return own if (was_own and own.exists()) or not named.exists() else named
