"""Decide whether a run may start in a folder, or from which checkpoint it resumes."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from choosy.data.shared_pool import forget_mapped
from choosy.data.table_files import damage, files_of_rounds, read_about
from choosy.files import remove_unfinished
from choosy.labeling.ledger_check import fault
from choosy.options.names import file_meant
from choosy.resume.checkpoint_files import checkpoint_damage, newest_checkpoint
from choosy.resume.config_changes import report_changes
from choosy.resume.failed_starts import MARK, is_first_process, overwrite, replace_failed_start
from choosy.resume.run_lock import hold, refuse_unwritable, release
from choosy.sealed import read_json, read_line, write_json, write_line

if TYPE_CHECKING:  # they import torch, and a folder is refused before
    from choosy.labeling.buyer import LabelBuyer
    from choosy.parallel.ranks import Ranks


class Start(NamedTuple):
    """Whether a run resumes, and the checkpoint that it loads; a run resumes without one from the start's weights."""

    resuming: bool
    ckpt_path: str | None


def choose_start(folder: Path, ckpt_path: str | None, *, replace: bool = False) -> Start:
    """Choose the checkpoint of a run, and refuse a folder that another run is in; it changes nothing.

    Args:
        folder: The run's folder.
        ckpt_path: None for a new run; `last`; `start`, to train again on the rounds that are there; `auto`, which is
            `last` where there is a run and None where there is none; or a checkpoint's file.
        replace: Whether a new run replaces what an earlier one has left.
    """
    if replace and ckpt_path is not None:
        raise ValueError(f"overwrite=true replaces the run that ckpt_path={ckpt_path} resumes; type one of them.")
    failed = ckpt_path is None and (folder / MARK).exists()
    if ckpt_path == "auto":
        ckpt_path = "last" if _holds_run(folder) else None
    start = Start(ckpt_path is not None, _checkpoint(folder, ckpt_path))
    if not (replace or failed):  # what is there is removed
        refuse_used_folder(folder, resuming=start.resuming)
    return start


def refuse_other_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse to resume the run of a folder with another configuration, or without the labels that it has paid for.

    Args:
        folder: The run's folder.
        config: The configuration of the resumed run, as Hydra or LightningCLI composed it.
    """
    refuse_lost_identity(folder, "config.yaml")
    began_with(folder)  # here, since open_folder compares it when config.yaml is written already
    report_changes(folder, config)
    refuse_lost_ledger(folder, config["data"]["run"]["labels"]["ledger"])


def prepare_folder(folder: Path, *, resuming: bool, replace: bool = False) -> None:
    """Make the folder of a run, and move away what it replaces.

    Args:
        folder: The run's folder.
        resuming: Whether the run goes on in it.
        replace: Whether a new run replaces what an earlier one has left.
    """
    if is_first_process() and not resuming:
        overwrite(folder) if replace else replace_failed_start(folder)
        refuse_used_folder(folder, resuming=resuming)
    refuse_unwritable(folder)


def open_folder(folder: Path, labels: LabelBuyer, ranks: Ranks, read: Mapping[str, str], *, resuming: bool) -> bool:
    """Take possession of a run's folder once all processes have met, and open its ledger on each of them.

    `read` has the fingerprints of the data, which are those of the run's beginning if it resumes.

    Returns:
        Whether this process has locked the folder, and had not before.
    """
    refuse_different_folders(folder, ranks)
    taken = False

    def take() -> str:
        nonlocal taken
        taken = hold(folder)  # scripts that build their own Trainer do not prepare
        refuse_used_folder(folder, resuming=resuming)
        if resuming:
            refuse_lost_identity(folder)
            refuse_edited(began_with(folder), read)
        write_json(folder / "data.json", read)
        name = own_id(folder)
        labels.open(name)
        refuse_lost_labels(folder, labels)
        remove_unfinished(folder)
        forget_mapped(folder / "rounds")  # of a run that was killed, like the adapters for servers
        shutil.rmtree(folder / "served", ignore_errors=True)
        return name

    with ExitStack() as undone:
        undone.callback(lambda: release(folder) if taken else None)
        name = ranks.on_rank_zero(take)
        if ranks.rank > 0:
            labels.open(name)
        undone.pop_all()
    return taken


def began_with(folder: Path) -> Mapping[str, str]:
    """The fingerprints of the data when a run began, by what is typed for them; empty before it began."""
    file = folder / "data.json"
    return read_json(file) if file.exists() else {}


def own_id(folder: Path) -> str:
    """Return the run's name in its ledger: that of its folder, made unique; a moved run keeps it in a file."""
    file = folder / "run_id"
    if not file.exists():
        write_line(file, f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', folder.resolve().name)}-{uuid.uuid4().hex[:12]}")
    return run_id(folder)


def run_id(folder: Path) -> str:
    """Return the run's name in its ledger; a ValueError if its file is not there or damaged."""
    return read_line(folder / "run_id", ".*-[0-9a-f]{12}")


def ledger_copy(folder: Path) -> Path:
    """Return the path of the ledger's copy, which is written with every round."""
    return folder / "ledger.copy.sqlite"


def refuse_used_folder(folder: Path, *, resuming: bool) -> None:
    """Refuse a new run in a folder that holds rounds."""
    if not resuming and any((folder / "rounds").glob("*.parquet")):
        finished = (folder / "summary.json").exists()
        state, go_on = ("a finished run", "play more rounds of it") if finished else ("an unfinished run", "resume it")
        raise ValueError(
            f"{folder} already holds {state}; choose another name=... or run_dir=..., replace it with overwrite=true, "
            f"or {go_on}: the same command with {'a larger rounds=... and ' if finished else ''}ckpt_path=last."
        )


def refuse_lost_identity(folder: Path, *more: str) -> None:
    """Refuse to resume a run whose files that say which run it is, or more of them, are missing, damaged or foreign."""
    if not _has_sampled(folder):
        return
    about = _newest_round(folder)
    name = about.get("run")  # an earlier version does not say so, and one before it wrote no data.json
    names = ("run_id", "data.json", *more) if name or not about else ("run_id", *more)
    for file in (folder / one for one in names):
        if not file.exists():
            named = f", which names {name}," if file.name == "run_id" and name else ""
            raise ValueError(
                f"{file}{named} is missing, and without it the run in {folder} cannot be resumed: put it back, or "
                "choose another name=... or run_dir=... for a new run."
            )
    if name not in (None, found := run_id(folder)):
        raise ValueError(
            f"{folder / 'run_id'} names {found}, and the rounds beside it are those of {name}: put the run's own back."
        )


def refuse_edited(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse data that read otherwise than when the run began; columns and rows that are not read may change."""
    if edited := [name for name in now if name in then and then[name] != now[name]]:
        raise ValueError(
            f"The rows of {' and '.join(edited)} are others than when this run began, and its pool, its labels and its "
            "evaluations belong to those: put the old rows back, or choose another name=... or run_dir=... for a new "
            "run."
        )


def refuse_different_folders(folder: Path, ranks: Ranks) -> None:
    """Refuse processes of one run that chose different folders, as when each has named it after its own clock."""
    found = sorted(set(ranks.gather([str(folder.resolve())])))
    if len(found) > 1:
        raise ValueError(
            f"The {ranks.size} processes of this run chose {len(found)} folders ({found[0]}, {found[1]}); "
            "give the run a name, so that all choose the same: name=..."
        )


def refuse_lost_ledger(folder: Path, ledger: str) -> None:
    """Refuse to resume a run that has bought labels where its ledger is missing or damaged."""
    about = _newest_round(folder)
    spent = about["labels"]["spent"] if about else 0
    why = fault(ledger) if spent or Path(ledger).exists() else None
    if why is None:
        return
    if not spent:
        raise ValueError(f"The ledger {ledger} {why}; put it back, and type the same command again.")
    copy, number = ledger_copy(folder), about["round"]
    how = "put it back, and type the same command again"
    if fault(copy) is None:
        how = f"the last good copy is of round {number} or later: type `cp {copy} {ledger}`, then the same again"
    raise ValueError(
        f"The ledger {ledger} {why}, and the run has bought {spent} labels, which would be paid for again; {how}."
    )


def refuse_lost_labels(folder: Path, labels: LabelBuyer) -> None:
    """Refuse a ledger that holds fewer labels of this run than its rounds have counted."""
    about = _newest_round(folder)
    if about and labels.spent < about["labels"]["spent"] and not labels.ledger.lost():
        raise ValueError(
            f"The ledger {labels.ledger.path} holds {labels.spent} labels of this run, and its rounds have counted "
            f"{about['labels']['spent']}; they would be paid for again. Type labels.ledger=... of the run's own ledger"
            + (f"; a copy of it is {ledger_copy(folder)}." if fault(ledger_copy(folder)) is None else ".")
        )


def _holds_run(folder: Path) -> bool:
    return (folder / "run_id").exists() or _has_sampled(folder)


def _has_sampled(folder: Path) -> bool:
    return any(folder.glob("rounds/*.parquet")) or any(folder.glob("checkpoints/*.ckpt"))


def _checkpoint(folder: Path, wanted: str | None) -> str | None:
    if wanted not in ("last", "start"):
        if wanted is not None and not Path(wanted).exists():
            raise ValueError(f"ckpt_path={wanted} does not exist; give a file, or `last` with the name of the run.")
        if wanted is not None and (why := checkpoint_damage(Path(wanted))):
            raise ValueError(f"The checkpoint {wanted} is damaged ({why}); give another one, or ckpt_path=last.")
        return wanted
    found = newest_checkpoint(folder) if wanted == "last" else None
    if found is None and not _holds_run(folder):
        raise ValueError(
            f"ckpt_path={wanted}: {folder} holds no run to resume; "
            f"{file_meant(folder) or 'give its name, as in name=demo ckpt_path=last.'}"
        )
    return None if found is None else str(found)


def _newest_round(folder: Path) -> Mapping[str, Any]:
    """Return what was written about the newest round that can be read; empty if there is none."""
    newest_first = reversed(files_of_rounds(folder / "rounds", "parquet"))
    return next((read_about(path) for path in newest_first if not damage(path)), {})
