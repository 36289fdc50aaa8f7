"""Whether a run may start in a folder: what is refused there, and the checkpoint that a run continues from."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from choosy.data.table_files import is_readable, read_about
from choosy.files import replacing
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import fault
from choosy.parallel.ranks import Ranks
from choosy.resume.checkpoints import to_go_on_from


def checkpoint(wanted: str | None, run_dir: Path) -> str | None:
    """The checkpoint to go on from; a run that was interrupted before its first one begins again with its labels."""
    if wanted not in ("last", "start"):
        if wanted is not None and not Path(wanted).exists():
            raise ValueError(f"ckpt_path={wanted} does not exist; give a file, or `last` with the name of the run.")
        return wanted
    found = to_go_on_from(run_dir) if wanted == "last" else None
    if found is None and not (run_dir / "rounds").is_dir():
        raise ValueError(
            f"ckpt_path={wanted}: {run_dir} holds no run to go on with; give its name, as in name=demo ckpt_path=last."
        )
    return None if found is None else str(found)


def auto_resume(wanted: str | None, run_dir: Path) -> str | None:
    """`auto` is for jobs that are queued again: `last` where there is a run, and a new run where there is none."""
    if wanted != "auto":
        return wanted
    return "last" if (run_dir / "rounds").is_dir() else None


def refuse_used_folder(folder: Path, *, resuming: bool) -> None:
    """A folder that holds rounds is only for going on with them.

    Raises:
        ValueError: It holds a run, and this is no resume.
    """
    if not resuming and any((folder / "rounds").glob("*.parquet")):
        state = "a finished run" if (folder / "summary.json").exists() else "an unfinished run"
        raise ValueError(
            f"{folder} already holds {state}; choose another name=..., "
            "or go on with it: the same command with ckpt_path=last."
        )


def refuse_scattered(folder: Path, ranks: Ranks) -> None:
    """All processes of a run share one folder.

    Raises:
        ValueError: They disagree, as when each has named the run after its own clock.
    """
    found = sorted(set(ranks.gather([str(folder.resolve())])))
    if len(found) > 1:
        raise ValueError(
            f"The {ranks.size} processes of this run chose {len(found)} folders ({found[0]}, {found[1]}); "
            "give the run a name, so that all choose the same: name=..."
        )


def identity(folder: Path) -> str:
    """The name under which the ledger knows the run: it lies in the folder, and goes along when that is moved.

    A run that began before runs had names is known by where it lies.
    """
    file = folder / "run_id"
    if not file.exists():
        began = any((folder / "rounds").glob("*.parquet"))
        with replacing(file) as unfinished:
            unfinished.write_text(str(folder.resolve()) if began else uuid.uuid4().hex)
    return file.read_text()


def copy_of(folder: Path) -> Path:
    """Where a copy of the ledger lies, made whenever a round is written."""
    return folder / "ledger.copy.sqlite"


def last_told(folder: Path) -> Mapping[str, Any] | None:
    """What was written with the newest round that can be read."""
    newest_first = sorted((folder / "rounds").glob("round_*.parquet"), reverse=True)
    return next((read_about(path) for path in newest_first if is_readable(path)), None)


def refuse_lost_ledger(folder: Path, ledger: str) -> None:
    """A run that has bought labels goes on with its ledger, not with a new one.

    Raises:
        ValueError: The ledger is gone or damaged; the message names it, and its copy.
    """
    told = last_told(folder)
    why = fault(ledger) if told is not None and told["labels"]["spent"] else None
    if why is None or told is None:
        return
    copy = copy_of(folder)
    how = "put it back, and type the same command again"
    if fault(copy) is None:
        how = f"the last good copy is of round {told['round']} or later: type `cp {copy} {ledger}`, then the same again"
    raise ValueError(
        f"The ledger {ledger} {why}, and the run has bought {told['labels']['spent']} labels, which would be "
        f"paid for again; {how}."
    )


def refuse_lost_labels(folder: Path, labels: LabelBuyer) -> None:
    """A ledger that knows of fewer labels than the rounds is not the run's own.

    Raises:
        ValueError: Labels are missing.
    """
    told = last_told(folder)
    if told is not None and labels.spent < told["labels"]["spent"]:
        raise ValueError(
            f"The ledger {labels.ledger.path} holds {labels.spent} labels bought by this run, and its rounds tell of "
            f"{told['labels']['spent']}; they would be paid for again. Type labels.ledger=... of the run's own ledger"
            + (f"; a copy of it is {copy_of(folder)}." if fault(copy_of(folder)) is None else ".")
        )


def refuse_unwritable(folder: Path) -> None:
    """Make the folder of a run, or say why it cannot be.

    Raises:
        ValueError: It cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"The run folder {folder} cannot be written to ({error}); choose another run_dir=..."
        ) from error
