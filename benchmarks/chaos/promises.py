"""What is checked after each operation: labels paid once, budgets exact, ends equal, nothing of a user's gone."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from paid import score_of
from world import RECIPES, Ended, Run, World, billed, contents_of, digest, files_of

from choosy.sealed import read_json

STACK = "Traceback (most recent call last)"
SENTENCES = {  # kinds of refusals, by a part of what they say
    "another process plays in the folder": "Another process plays a run in",
    "the folder holds a run already": "already holds",
    "finished already": "is finished:",
    "nothing to resume": "holds no run to resume",
    "the ledger has several names": r"has \d+ names \(hard links\)",
    "the ledger cannot be written any more": "the ledger of labels .* cannot be used any more",
    "the ledger cannot be made": "cannot serve as the ledger",
    "the ledger is missing or damaged": r"The ledger .* (is not there|is damaged)",
    "labels of the run are missing": r"holds \d+ labels of this run",
    "a label is damaged": r"the label .* is damaged",
    "labels are damaged": "save what is whole|damaged: label|No label of .* can be read",
    "a checkpoint is damaged": r"The checkpoint .* is damaged",
    "a round is damaged": r"\.parquet",
    "a sealed file is damaged": "is not as it was written: it is damaged|is damaged: |cannot be read",
    "a file of the run is missing": "is missing, and without it",
    "the disk has no room": "The disk has no room",
    "a file cannot be written": r"File too large|cannot be written|No space left",
    "another configuration": "cannot be resumed with",
    "stopped, with the command that continues": "To continue type",
    "nothing to read": "is not the folder of a run|[Nn]o finished run|holds no|found none|No ledger",
}


class Broken(Exception):
    """A promise is broken."""

    def __init__(self, promise: str, how: str) -> None:
        super().__init__(f"{promise}: {how}")
        self.promise = promise


class Promises:
    """The promises, with how often each was checked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.checked: Counter[str] = Counter()
        self.seen: set[tuple[str, ...]] = set()  # labels that were in the ledger
        self.lost: Counter[tuple[str, ...]] = Counter()  # calls whose answers a crash has cut off
        self.billed: Counter[tuple[str, ...]] = Counter()
        self.references: dict[str, dict[str, Any]] = {}
        self.ended: set[str] = set()  # runs whose end was compared
        self._files: dict[str, Any] = {}

    def hold(self, promise: str, holds: Any, how: str = "") -> None:
        """Count a check.

        Raises:
            Broken: The promise does not hold.
        """
        self.checked[promise] += 1
        if not holds:
            raise Broken(promise, how)

    def check(self, *touched: Run) -> None:
        """Check all promises after an operation that may have changed these runs."""
        for ended in self.world.typed:
            self.speech(ended)
        self.bills()
        for run in self.world.runs:
            if self.world.is_finished(run) and run.name not in self.ended:
                self.end(run)
        self.users_files()
        self.others(touched)

    # -- what a command says -----------------------------------------------------------------------------------

    def speech(self, ended: Ended) -> None:
        """No stack of Python is shown, and a refusal is a sentence."""
        self.hold("every refusal is a sentence", STACK not in ended.said, ended.said[-3000:])
        if ended.code == 1:
            self.hold("every refusal is a sentence", kind_of(ended), f"it says {ended.said[-600:]!r}")
        if ended.code == 130 and "paid" in ended.said:
            self.hold("a stopped run prints the command that continues it", "To continue type" in ended.said)

    # -- labels ------------------------------------------------------------------------------------------------

    def bills(self) -> None:
        """Hold what was paid for against the ledger."""
        labels = self.world.labels()
        calls = [(c["by"], c["call"], billed(c["as"], c["prompt"], *c["responses"])) for c in self.world.new_calls()]
        self.billed.update(key for *_, key in calls)
        crashed = {ended.by for ended in self.world.typed if ended.crashed}
        for by in {by for by, *_ in calls}:
            mine = [(number, key) for who, number, key in calls if who == by]
            others = {key for who, _, key in calls if who != by}
            last, _ = mine[-1]  # the call in progress, or the one whose answers were being written
            cut_off = [key for number, key in mine if number == last and (key not in labels or key in others)]
            if by in crashed:
                self.lost.update(cut_off)
            gone = [key for number, key in mine if key not in labels and not (by in crashed and key in cut_off)]
            self.hold("a label that was paid for is not lost", not gone, f"{by} has paid for {gone[:1]}")
        twice = [key for key, times in self.billed.items() if times > 1 + self.lost[key]]
        self.hold("a label is paid for once", not twice, f"{[(key, self.billed[key]) for key in twice[:2]]}")
        gone = self.seen - labels.keys()
        self.hold("a label of the ledger stays", not gone, f"gone: {sorted(gone)[:1]}")
        self.seen |= labels.keys()
        free = labels.keys() - self.billed.keys()
        self.hold("the ledger holds what was paid for alone", not free, f"not paid for: {sorted(free)[:1]}")
        wrong = [key for key, row in labels.items() if row["score"] not in (None, score_of(row["response_first"]))]
        self.hold("a label is what the labeler said", not wrong, f"{wrong[:1]}")
        spent = Counter(row["run"] for row in labels.values() if row["purpose"] == "train")
        for run, budget in self.world.budgets.items():
            self.hold("a budget is never exceeded", spent[run] <= budget, f"{run}: {spent[run]} of {budget}")

    # -- ends --------------------------------------------------------------------------------------------------

    def end(self, run: Run) -> None:
        """A finished run is what its reference is, whatever became of it on the way."""
        if (recipe := RECIPES[run.recipe]).budget is not None and not recipe.own:
            return  # which labels are free, and so what it buys, depends on the other runs
        reference = self.references[run.recipe]
        found = ending(self.world, run)
        differ = [name for name in reference if reference[name] != found[name]]
        self.hold("a run ends as if nothing had happened", not differ, f"{run} differs in {differ}")
        left = [str(path) for path in self.world.folder_of(run).rglob(".*.unfinished*") if path.name not in ".draft"]
        self.hold("nothing half-written is left", not left, f"{left}")
        self.ended.add(run.name)

    # -- files -------------------------------------------------------------------------------------------------

    def users_files(self) -> None:
        """Every file of the user's is as it was."""
        for path, text in self.world.users_files().items():
            self.hold("nothing of a user's is deleted", path.exists() and path.read_text() == text, f"{path}")

    def others(self, touched: tuple[Run, ...]) -> None:
        """Runs that the operation did not name are as they were."""
        now = {run.name: files_of(self.world.folder_of(run)) for run in self.world.runs}
        names = {run.name for run in touched}
        for name, files in now.items():
            if name not in names and name in self._files:
                self.hold("other runs are not touched", files == self._files[name], f"{name} is not as it was")
        self._files = now

    def same(self, folder: Path, before: dict[str, str], why: str) -> None:
        """A refused command has changed nothing."""
        now = contents_of(folder)
        self.hold(
            "a refused command changes nothing",
            now == before,
            f"{why}: {sorted(set(now.items()) ^ set(before.items()))}",
        )


def kind_of(ended: Ended) -> str:
    """The kind of a command's last sentence; "" for one that is not known."""
    return next((kind for kind, words in SENTENCES.items() if re.search(words, ended.said)), "")


def outcome(ended: Ended) -> str:
    """What became of a command, in a few words."""
    if ended.code == 0:
        return "finished already" if re.search(SENTENCES["finished already"], ended.said) else "finished"
    if ended.code in (-9, -25):
        return "killed"
    if ended.code < 0:
        return "ended by the signal"
    if ended.code in (130, 143):
        return kind_of(ended) or "stopped without a word"
    return f"refused: {kind_of(ended)}"


def ending(world: World, run: Run, at: Path | None = None) -> dict[str, Any]:
    """All that two runs of a recipe agree on; hashes, as no one reads them."""
    folder = (at or world.folder) / "runs" / run.name
    own = RECIPES[run.recipe].own
    rows = {path.name: pq.read_table(path).to_pylist() for path in sorted(folder.glob("rounds/*.parquet"))}
    with (folder / "metrics.csv").open(newline="") as file:
        steps = [{k: v for k, v in row.items() if own or not k.startswith("labels/")} for row in csv.DictReader(file)]
    steps = [{k: v for k, v in step.items() if not k.startswith("seconds/")} for step in steps]
    summary = read_json(folder / "summary.json")
    found = {
        "weights": digest((folder / "adapter" / "adapter_model.safetensors").read_bytes().hex()),
        "rounds": digest(rows, run.labeler),
        "metrics": digest(steps, run.labeler),
    }
    if own:
        del summary["seconds"]
        found["summary"] = digest(summary, run.labeler)
    return found
