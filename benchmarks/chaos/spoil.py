"""What the monkey reads, damages and loses: beside the runs, in copies of them and of the ledger."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from operations import finished, operation, start, waiting, whole_life
from promises import STACK, Promises, ending
from world import RECIPES, Call, Ended, Run, World, billed, contents_of, damage, labels_of, lines_of

READERS = {  # files of a run, with a command that must name one that is damaged
    "rounds/round_*.parquet": "report",
    "config.yaml": "resume",
    "run_id": "resume",
    "data.json": "resume",
    "checkpoints/last.ckpt": "resume",
    "summary.json": "index",
}
NEEDED = ("config.yaml", "run_id", "data.json", "ledger.sqlite")  # a resumed run that has lost one of them is refused


def with_rounds(world: World) -> list[Run]:
    """Runs that have played a round."""
    return [run for run in world.runs if any(world.folder_of(run).glob("rounds/round*.parquet"))]


def refused(promises: Promises, ended: Ended, name: str, how: str) -> None:
    """A command has ended with a sentence that names a file."""
    promises.hold("a damaged file is refused", ended.code == 1 and STACK not in ended.said, f"{how}: {ended.said}")
    promises.hold("a damaged file is named", name in ended.said, f"{how}: {ended.said}")


def refuses(world: World, promises: Promises, call: Call, place: Path, folder: Path, name: str, how: str) -> None:
    """A command is refused by the name of a file, and changes nothing in a run's folder."""
    before = contents_of(folder)
    (ended,) = world.play(call, at=place)
    refused(promises, ended, name, how)
    promises.same(folder, before, how)


@operation("look", 14)
def look(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Read the ledger or the runs with a command; it changes no run but for its report."""
    done = finished(world)
    commands = [("choosy", "index", "runs"), ("choosy", "compare", "runs")]
    if world.ledger.exists():
        commands += [("choosy", "labels", verb, "ledger.sqlite") for verb in ("check", "stats")]
        commands += [("choosy", "labels", "export", "ledger.sqlite", f"labels-{world.number}.jsonl")]
    run = draw.choice(done) if done else None
    if run:
        commands += [("choosy", "report", f"runs/{run.name}"), ("choosy", "labels", "check", f"runs/{run.name}")]
    words = draw.choice(commands)
    (ended,) = world.play(Call(words))
    (world.folder / f"labels-{world.number}.jsonl").unlink(missing_ok=True)
    if words[1] == "report" or "ledger.sqlite" in words:  # a run may name a ledger by a link that is gone
        promises.hold("a command that nothing disturbs ends well", ended.code == 0, ended.said[-1500:])
    return [run] if run and words[1] == "report" else []


@operation("damage a run", 18)
def damaged(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Damage a file in a copy of a run, and type what reads it: the file is named, and nothing changes."""
    there = with_rounds(world)
    if not there:
        return start(world, promises, draw)
    run = draw.choice(there)
    with world.beside(run) as place:
        folder = place / "runs" / run.name
        found = {file: reader for pattern, reader in READERS.items() for file in sorted(folder.glob(pattern))}
        file = draw.choice([*found])
        how = damage(file, draw)
        if file.read_bytes().rstrip(b"\n") == run.id.encode():
            return []  # cut to the name of the run alone, which is read without a checksum
        words = {
            "resume": world.words(run, "ckpt_path=last"),
            "report": ("choosy", "report", f"runs/{run.name}"),
            "index": ("choosy", "index", "runs"),
        }[found[file]]
        refuses(world, promises, Call(words, run.labeler), place, folder, file.name, how)
    return []


@operation("lose a file", 6)
def lost(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Delete or empty a file that a run needs, in a copy, and resume: the file is named, and nothing changes."""
    there = [run for run in with_rounds(world) if world.is_begun(run)]
    if not there:
        return start(world, promises, draw)
    run = draw.choice(there)
    with world.beside(run) as place:
        folder = place / "runs" / run.name
        name = draw.choice(NEEDED)
        file = place / name if name == "ledger.sqlite" else folder / name
        for beside in place.glob("ledger.sqlite-wal") if name == "ledger.sqlite" else ():
            beside.unlink()
        file.unlink() if (deleted := draw.random() < 0.5) else file.write_bytes(b"")
        how = f"{'deleted' if deleted else 'emptied'} {name}"
        refuses(world, promises, Call(world.words(run, "ckpt_path=last"), run.labeler), place, folder, name, how)
    return []


@operation("copy a run with hard links", 2)
def hard_copied(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Copy a run as `cp -al` does, and let the copy go on: the files of the original are as they were."""
    there = waiting(world)
    if not there:
        return start(world, promises, draw)
    run = draw.choice(there)
    with world.beside(run) as place:
        original, twin = place / "runs" / run.name, place / "runs" / "twin"
        shutil.copytree(original, twin, copy_function=os.link)
        before = contents_of(original)
        (ended,) = world.play(Call(world.words(run, "ckpt_path=auto", folder="runs/twin"), run.labeler), at=place)
        promises.hold("a command that nothing disturbs ends well", ended.code == 0, ended.said[-1500:])
        promises.hold("other runs are not touched", contents_of(original) == before, f"{run.name}, through hard links")
    return []


@operation("damage the ledger", 10)
def damaged_ledger(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Damage a copy of the ledger: what is read of it is as it was written, or refused by name; the rest is saved."""
    if not world.labels():
        return start(world, promises, draw)
    with world.beside() as place:
        whole = labels_of(place / "ledger.sqlite")
        how = damage(place / "ledger.sqlite", draw)
        check = ("choosy", "labels", "check", "ledger.sqlite")
        checked, saved = (world.play(Call((*check, *more)), at=place)[0] for more in ((), ("--save", "saved.sqlite")))
        if checked.code:
            refused(promises, checked, "ledger.sqlite", how)
        else:
            promises.hold("damage of a label is named", labels_of(place / "ledger.sqlite") == whole, how)
        if saved.code == 0:
            kept = labels_of(place / "saved.sqlite")
            said = ("score", "verdict")
            same = [key for key in kept if key in whole and all(kept[key][one] == whole[key][one] for one in said)]
            promises.hold("what is saved of a ledger is as it was", len(same) == len(kept), how)
    return []


@operation("resume with a damaged ledger", 4)
def resumed_with_damage(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Resume a copy of a run with a damaged ledger; where that is refused, with what can be saved of it."""
    there = waiting(world)
    if not there:
        return start(world, promises, draw)
    run = draw.choice(there)
    with world.beside(run) as place:
        how = damage(place / "ledger.sqlite", draw)
        (ended,) = world.play(Call(world.words(run, "ckpt_path=last"), run.labeler), at=place)
        if ended.code:
            refused(promises, ended, "ledger.sqlite", how)
            (saved,) = world.play(
                Call(("choosy", "labels", "check", "ledger.sqlite", "--save", "new.sqlite")), at=place
            )
            if saved.code:
                refused(promises, saved, "ledger.sqlite", how)
                return []
            kept, paid = labels_of(place / "new.sqlite"), len(lines_of(place / "paid.jsonl"))
            typed = world.words(run, "ckpt_path=last", ledger="new.sqlite")
            (ended,) = world.play(Call(typed, run.labeler), at=place)
            promises.hold("a saved ledger serves", ended.code == 0, f"{how}: {ended.said[-1500:]}")
            calls = [billed(c["as"], c["prompt"], *c["responses"]) for c in lines_of(place / "paid.jsonl")[paid:]]
            promises.hold("a saved label is not paid for again", not kept.keys() & {*calls}, how)
        if RECIPES[run.recipe].budget is None:
            promises.hold(
                "a run ends as if nothing had happened",
                ending(world, run, at=place) == promises.references[run.recipe],
                f"{how}: {run}",
            )
    return []


@operation("strike an import", 5)
def imported(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Export the labels and import them into a new ledger, struck at a moment: all are there, or none."""
    if not world.labels():
        return start(world, promises, draw)
    with world.beside() as place:
        whole = labels_of(place / "ledger.sqlite")
        (exported,) = world.play(Call(("choosy", "labels", "export", "ledger.sqlite", "out.jsonl")), at=place)
        promises.hold("a command that nothing disturbs ends well", exported.code == 0, exported.said[-1500:])
        strike = whole_life(draw, {"sql": 2 * len(whole), "file": 2}, draw.choice(("kill", "cut", "full")))
        words = ("choosy", "labels", "import", "new.sqlite", "out.jsonl")
        world.play(Call(words, moment=strike), at=place)
        there = labels_of(place / "new.sqlite")
        promises.hold("an import writes all labels or none", len(there) in (0, len(whole)), f"{len(there)}")
        (again,) = world.play(Call(words), at=place)
        promises.hold("a command that nothing disturbs ends well", again.code == 0, again.said[-1500:])
        promises.hold("an import writes all labels or none", labels_of(place / "new.sqlite").keys() == whole.keys())
    return []
