"""Where the monkey plays: runs over one ledger, a bill of every label that was paid for, and files of a user's."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "integration"))
from programs import Program

HERE = Path(__file__).parent
THINGS = ("tea", "rain", "bread", "snow")
USERS = {  # files of a user's beside the ledger, whose names look like ours
    "notes.txt": "mine",
    "ledger.sqlite-buyer-notes.txt": "mine",
    "ledger.sqlite-buyer-study.sqlite": "mine",
    "ledger.sqlite.bak": "mine",
    ".draft.unfinished": "mine",
}
IN_A_RUN = {"notes.txt": "mine", "replaced.txt": "mine", "ledger.sqlite-buyer-notes.txt": "mine"}
TIMEOUT = 300.0  # seconds, after which a command hangs


class Recipe(NamedTuple):
    """What is typed for a run.

    Attributes:
        words: The options.
        own: Whether its labeler has a name of its own, so that no other run's label is free and it ends as its
            reference in all.
        budget: The labels that it may buy.
    """

    words: tuple[str, ...]
    own: bool = False
    budget: int | None = None


SCORES = ("labeler=function", "labeler.path=paid.score", "selector=optune", "weighting=wdpo", "pairing=best_worst")
COMPARES = ("labeler=mine", "labeler._target_=paid.Longer", "selector=none", "weighting=uniform")
LISTS = ("labeler=function", "labeler.path=paid.scores", "selector=none", "weighting=uniform", "pairing=best_worst")
RECIPES = {
    "shared": Recipe(SCORES),
    "shared, another seed": Recipe((*SCORES, "seed=1")),
    "compared": Recipe(COMPARES),
    "lists": Recipe(LISTS),
    "own budget": Recipe((*SCORES, "labels.budget=9"), own=True, budget=9),
    "own money": Recipe((*SCORES, "labels.budget_money=2.6", "labeler.price=0.25"), own=True, budget=10),
    "shared budget": Recipe((*COMPARES, "seed=2", "labels.budget=3"), budget=3),
}


@dataclass
class Run:
    """A run that was begun.

    Attributes:
        name: Of its folder.
        recipe: Its recipe's name.
        labeler: The name of its labeler.
        id: Its name in the ledger, once it has one.
        struck: How often it was killed, stopped or refused.
        printed: The words that it printed to be continued with, if it was stopped.
        noted: Whether the user has put files of their own into its folder.
    """

    name: str
    recipe: str
    labeler: str
    id: str = ""
    struck: int = 0
    printed: list[str] = field(default_factory=list)
    noted: bool = False


class Ended(NamedTuple):
    """A command that has ended."""

    words: tuple[str, ...]
    by: str
    code: int
    said: str

    @property
    def crashed(self) -> bool:
        """Whether it may have been in the middle of a purchase."""
        return self.code not in (0, 2)


class Call(NamedTuple):
    """A command to be played, struck at a moment; a run's name for its bill."""

    words: tuple[str, ...]
    labeler: str = "none"
    moment: Mapping[str, Any] = {}


class World:
    """The folder of a monkey."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "ledger.sqlite"
        self.bill = folder / "paid.jsonl"
        self.runs: list[Run] = []
        self.budgets: dict[str, int] = {}  # of each run, by its name in the ledger
        self.number = 0  # of the operation
        self.generation = 0  # of the labeler that runs share
        self.typed: list[Ended] = []  # in this operation
        self.counts: dict[str, dict[str, int]] = {}  # what happens in a run of a recipe
        self._read = 0  # characters of the bill

    # -- what is there -----------------------------------------------------------------------------------------

    def make(self) -> None:
        """Write what runs need: a policy, prompts, the labelers, and the user's own files."""
        self.folder.mkdir(parents=True)
        rows = [{"id": f"p{n}", "prompt": f"Tell me about {thing}."} for n, thing in enumerate(THINGS)]
        (self.folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        shutil.copy(HERE / "paid.py", self.folder)
        self.bill.touch()
        (self.folder / "runs").mkdir()
        for name, text in USERS.items():
            (self.folder / name).write_text(text)
        code = f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); from kill import tiny_policy; "
        code += "from pathlib import Path; tiny_policy(Path('policy'))"
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        made = Program(["-c", code], folder=self.folder, environ=environ)
        _, stderr = made.communicate(TIMEOUT)
        assert made.wait() == 0, stderr

    def folder_of(self, run: Run) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / run.name

    def is_begun(self, run: Run) -> bool:
        """Whether a run can be resumed."""
        return (self.folder_of(run) / "run_id").exists()

    def is_finished(self, run: Run) -> bool:
        """Whether a run has written all that it leaves behind."""
        return (self.folder_of(run) / "summary.json").exists()

    def new_calls(self) -> list[dict[str, Any]]:
        """The lines of the bill since the last time."""
        with self.bill.open() as bill:
            bill.seek(self._read)
            lines = bill.read().splitlines(keepends=True)
        self._read += sum(map(len, lines))
        return [json.loads(line) for line in lines]

    def labels(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """The labels of the ledger by labeler, prompt and responses, as every label is billed."""
        return labels_of(self.ledger)

    def users_files(self) -> dict[Path, str]:
        """The user's files that must be there, with what they hold."""
        folders = [(self.folder, USERS), *((self.folder_of(run), IN_A_RUN) for run in self.runs if run.noted)]
        return {folder / name: text for folder, files in folders for name, text in files.items()}

    # -- what is typed -----------------------------------------------------------------------------------------

    def words(self, run: Run, *more: str, ledger: str = "ledger.sqlite", folder: str = "") -> tuple[str, ...]:
        """Return what is typed to play a run."""
        recipe = RECIPES[run.recipe]
        named = [f"labeler.name={run.labeler}"] if "labeler=function" in recipe.words else []
        return (
            *("train.py", "trainer=cpu", "model.name=policy", "model.dtype=float32", "data.train=prompts.jsonl"),
            *("data.responses=2", "rounds=2", "sampler.max_new_tokens=6", "batching.batch_size=2"),
            *("callbacks.checkpoint.every_n_steps=1", "~logger.tensorboard", "callbacks.report.console=false"),
            *(*recipe.words, *named, f"labels.ledger={ledger}", f"run_dir={folder or f'runs/{run.name}'}", *more),
        )

    def play(self, *calls: Call, at: Path | None = None) -> list[Ended]:
        """Play commands at once, in the folder or in another one, and return how they ended."""
        place = at or self.folder
        started = []
        for n, call in enumerate(calls):
            by = f"{self.number}.{len(self.typed) + n}"
            environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
            environ |= {"PYTHONPATH": str(place), "PAID": str(place / "paid.jsonl"), "PAID_BY": by}
            environ |= {"PAID_AS": call.labeler, "COLUMNS": "200"}
            words = [str(HERE / "struck.py"), json.dumps(call.moment), *call.words]
            started.append((call, by, Program(words, folder=place, environ=environ)))
        with ThreadPoolExecutor(len(started)) as pool:
            said = list(pool.map(lambda one: one[2].communicate(TIMEOUT), started))
        ended = [
            Ended(call.words, by, program.wait(), "".join(texts))
            for (call, by, program), texts in zip(started, said, strict=True)
        ]
        self.typed += ended
        return ended

    # -- places beside it --------------------------------------------------------------------------------------

    @contextmanager
    def beside(self, *runs: Run) -> Iterator[Path]:
        """Give a copy of the folder with these runs alone, which is deleted afterwards."""
        side = self.folder.with_name(f"{self.folder.name}-beside")
        shutil.rmtree(side, ignore_errors=True)
        (side / "runs").mkdir(parents=True)
        for path in self.folder.iterdir():
            if path.is_file() and not path.is_symlink():
                shutil.copy2(path, side)
        (side / "policy").symlink_to(self.folder / "policy")
        for run in runs:
            shutil.copytree(self.folder_of(run), side / "runs" / run.name)
        yield side
        shutil.rmtree(side)


def labels_of(ledger: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Read the labels of a ledger from a copy, as reading tidies up what a kill has left."""
    if not ledger.exists():
        return {}
    with tempfile.TemporaryDirectory() as copy:
        for suffix in ("", "-wal"):
            if (file := ledger.with_name(ledger.name + suffix)).exists():
                shutil.copy(file, copy)
        with closing(sqlite3.connect(Path(copy) / ledger.name)) as db:
            db.row_factory = sqlite3.Row
            try:
                rows = [dict(row) for row in db.execute("SELECT * FROM labels")]
            except sqlite3.OperationalError:  # killed before its tables were there
                return {}
    return {billed(row["labeler"], row["prompt"], row["response_first"], row["response_second"]): row for row in rows}


def billed(labeler: str, prompt: str, *responses: str | None) -> tuple[str, ...]:
    """The label that a call buys, by its content: the order of two responses does not matter."""
    return (labeler, prompt, *sorted(text for text in responses if text is not None))


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The files below a folder, with size and time."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("main.log", "run.lock"):
            stat = path.stat()
            found[str(path.relative_to(folder))] = (stat.st_size, stat.st_mtime_ns)
    return found


def lines_of(bill: Path) -> list[dict[str, Any]]:
    """The lines of a bill."""
    return [json.loads(line) for line in bill.read_text().splitlines()]


def contents_of(folder: Path) -> dict[str, str]:
    """The files below a folder, with a hash of what they hold."""
    return {name: digest((folder / name).read_bytes().hex()) for name in files_of(folder)}


def damage(file: Path, draw: random.Random) -> str:
    """Flip bits of a file, or cut it, and say how."""
    raw = bytearray(file.read_bytes())
    if draw.random() < 0.3:
        at = draw.randrange(len(raw))
        how, raw = f"cut {file.name} to {at} of {len(raw)} bytes", raw[:at]
    else:
        at, bit, length = draw.randrange(len(raw)), draw.randrange(8), draw.choice((1, 1, 1, 8, 64))
        for place in range(at, min(at + length, len(raw))):
            raw[place] ^= 1 << bit
        how = f"flipped bit {bit} of {length} bytes of {file.name} at {at}"
    with file.open("r+b") as opened:  # all its names have the damage
        opened.write(raw)
        opened.truncate()
    return how


def digest(value: Any, labeler: str = "") -> str:
    """A hash of plain values, whatever the name of the labeler."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256((text.replace(labeler, "") if labeler else text).encode()).hexdigest()[:16]


def shown(words: Sequence[str]) -> str:
    """A command as it is typed."""
    return shlex.join(words if words[0] == "choosy" else ["python", *words])
