"""What the monkey does: each operation plays commands or changes files, and returns the runs that it touched."""

from __future__ import annotations

import os
import random
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from promises import Promises, outcome
from world import IN_A_RUN, RECIPES, Call, Run, World, contents_of

MOST_BEGUN = 6  # runs that wait to be resumed
MOST_FINISHED = 5  # runs that are kept
ROOMS = (0, 100, 4000, 12_000, 40_000, 100_000, 300_000, 1_100_000)  # bytes of a file, in which a full disk ends
STRUCK = {
    "kill -9": ("kill",),
    "kill in the middle of a write": ("cut",),
    "stop": ("interrupt", "terminate", "terminate twice"),
    "fill the disk": ("full",),
}


class Operation(NamedTuple):
    """An operation, and how often it is drawn."""

    play: Callable[[World, Promises, random.Random], Sequence[Run]]
    weight: int


OPERATIONS: dict[str, Operation] = {}


def operation(name: str, weight: int) -> Callable[[Any], Any]:
    """Register an operation under a name."""

    def register(play: Any) -> Any:
        OPERATIONS[name] = Operation(play, weight)
        return play

    return register


def drawn(world: World, draw: random.Random) -> str:
    """Draw the next operation; with many runs that wait, one of them is resumed."""
    if len(begun(world)) > MOST_BEGUN:
        return "resume"
    names = [*OPERATIONS]
    return draw.choices(names, [OPERATIONS[name].weight for name in names])[0]


def begun(world: World) -> list[Run]:
    """Runs that have not ended."""
    return [run for run in world.runs if not world.is_finished(run)]


def waiting(world: World) -> list[Run]:
    """Those of them that have left something to resume from."""
    return [run for run in begun(world) if world.is_begun(run)]


def finished(world: World) -> list[Run]:
    """Runs that have ended."""
    return [run for run in world.runs if world.is_finished(run)]


def new_run(world: World, draw: random.Random, recipe: str | None = None, *, fresh: bool = False) -> Run:
    """Name a new run; one that shares labels with others, perhaps with all of before."""
    while len(finished(world)) > MOST_FINISHED:
        old = finished(world)[0]
        shutil.rmtree(world.folder_of(old))
        world.runs.remove(old)
    recipe = recipe or draw.choice([*RECIPES])
    name = f"{world.number:04}"
    if fresh or draw.random() < 0.5:
        world.generation += 1
    shared = "lists" if recipe == "lists" else "shared"  # another function has another name, as its labels are others
    run = Run(name, recipe, f"own-{name}" if RECIPES[recipe].own else f"{shared}-{world.generation}")
    world.runs.append(run)
    if draw.random() < 0.3:
        put_notes(world, run)
    return run


def put_notes(world: World, run: Run) -> None:
    """Put files of the user's into the folder of a run."""
    world.folder_of(run).mkdir(exist_ok=True)
    for name, text in IN_A_RUN.items():
        (world.folder_of(run) / name).write_text(text)
    run.noted = True


def some_run(world: World, draw: random.Random) -> Run:
    """A run that waits to go on, or a new one."""
    waiting = begun(world)
    return draw.choice(waiting) if waiting and draw.random() < 0.55 else new_run(world, draw)


def learn_names(world: World) -> None:
    """Note by which name the ledger knows each run, and what it may buy."""
    for run in world.runs:
        file = world.folder_of(run) / "run_id"
        if file.exists() and (lines := file.read_text().splitlines()):
            run.id = lines[0]
            if (budget := RECIPES[run.recipe].budget) is not None:
                world.budgets[run.id] = budget


def moment(world: World, run: Run, how: str, draw: random.Random) -> dict[str, Any]:
    """Draw a moment in the life of a run."""
    return whole_life(draw, world.counts[run.recipe], how)


def whole_life(draw: random.Random, counts: dict[str, int], how: str) -> dict[str, Any]:
    """Draw a moment among so many of each kind."""
    kind = draw.choice(sorted(counts))
    return {
        **{"how": how, "kind": kind, "count": draw.randint(1, counts[kind])},
        **{"room": draw.choice(ROOMS), "parts": draw.random() < 0.5},
    }


def call(world: World, run: Run, *more: str, moment: dict[str, Any] | None = None, **where: str) -> Call:
    """The command that plays a run."""
    return Call(world.words(run, *more, **where), run.labeler, moment or {})


# -- runs ----------------------------------------------------------------------------------------------------------


@operation("start", 4)
def start(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Play a new run, undisturbed."""
    run = new_run(world, draw)
    (ended,) = world.play(call(world, run))
    promises.hold("a command that nothing disturbs ends well", ended.code == 0, ended.said[-1500:])
    return [run]


@operation("resume", 8)
def resume(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Let a run go on: by ckpt_path=auto or last, or as it printed when it was stopped."""
    waiting = begun(world)
    run = draw.choice(waiting) if waiting else new_run(world, draw)
    by_last = draw.random() < 0.3 and world.is_begun(run)
    typed = call(world, run, "ckpt_path=last" if by_last else "ckpt_path=auto")
    if run.printed and draw.random() < 0.7:
        typed = Call(tuple(run.printed), run.labeler)
    (ended,) = world.play(typed)
    well = ended.code == 0 and world.is_finished(run)
    promises.hold("a command that nothing disturbs ends well", well, ended.said[-1500:])
    return [run]


def struck(name: str) -> Callable[..., Sequence[Run]]:
    """An operation that strikes a run at a moment."""

    def play(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
        run = some_run(world, draw)
        how = draw.choice(STRUCK[name])
        (ended,) = world.play(call(world, run, "ckpt_path=auto", moment=moment(world, run, how, draw)))
        after(run, ended)
        return [run]

    return play


def after(run: Run, ended: Any) -> None:
    """Note what a run has printed to be continued with."""
    run.struck += ended.code != 0
    printed = [line for line in ended.said.splitlines() if line.startswith("  python train.py")]
    run.printed = shlex.split(printed[-1])[1:] if printed and "To continue type" in ended.said else []


for struck_name, struck_weight in (
    ("kill -9", 13),
    ("kill in the middle of a write", 9),
    ("stop", 8),
    ("fill the disk", 8),
):
    operation(struck_name, struck_weight)(struck(struck_name))


@operation("start again what is there", 5)
def again(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Type a run's command a second time: a run that has rounds is not played over."""
    there = [run for run in world.runs if any(world.folder_of(run).glob("rounds/*.parquet"))]
    if not there:
        return start(world, promises, draw)
    run = draw.choice(there)
    failed = (world.folder_of(run) / "failed_start").exists()
    before = contents_of(world.folder_of(run))
    (ended,) = world.play(call(world, run))
    if not failed:
        promises.hold("a finished run is not overwritten", ended.code == 1, ended.said[-800:])
        promises.same(world.folder_of(run), before, "start again")
    return [run]


@operation("overwrite", 2)
def overwrite(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Replace a run by itself, perhaps struck."""
    there = [run for run in world.runs if not RECIPES[run.recipe].own]  # the new one finds the old one's labels
    run = draw.choice(there) if there else new_run(world, draw, "shared")
    how = draw.choice(("kill", "interrupt", "full", ""))
    strike = moment(world, run, how, draw) if how else {}
    (ended,) = world.play(call(world, run, "overwrite=true", moment=strike))
    after(run, ended)
    promises.ended.discard(run.name)
    return [run]


# -- two at once ---------------------------------------------------------------------------------------------------


@operation("two starts of one run", 4)
def doubled(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Start or resume a run twice at once, one of them through another name of its folder, one perhaps killed."""
    run = some_run(world, draw)
    link = world.folder / f"linked-{world.number}"
    link.symlink_to(Path("runs") / run.name)
    if not world.folder_of(run).exists():
        world.folder_of(run).mkdir()
    other = draw.choice((f"runs/{run.name}", link.name))
    strike = moment(world, run, "kill", draw) if draw.random() < 0.4 else None
    both = world.play(
        call(world, run, "ckpt_path=auto", moment=strike), call(world, run, "ckpt_path=auto", folder=other)
    )
    link.unlink()
    if strike is None:
        promises.hold("of two starts one ends well", any(one.code == 0 for one in both), both[0].said[-900:])
    for one in both:
        known = ("another process plays in the folder", "the folder holds a run already")
        if one.code == 1:
            promises.hold("of two starts the other is refused by name", outcome(one)[9:] in known, one.said[-900:])
    return [run]


@operation("two runs at once", 4)
def beside(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Play two runs at once that want the same labels, one through a link to the ledger, one perhaps killed."""
    recipe = draw.choice(("shared", "shared, another seed", "compared", "shared budget"))
    one = new_run(world, draw, recipe, fresh=True)
    other = Run(f"{one.name}b", recipe, one.labeler)
    world.runs.append(other)
    link = world.folder / "linked.sqlite"
    link.symlink_to("ledger.sqlite")
    strike = moment(world, one, draw.choice(("kill", "cut", "interrupt")), draw) if draw.random() < 0.5 else None
    both = world.play(
        call(world, one, "ckpt_path=auto", moment=strike),
        call(world, other, "ckpt_path=auto", ledger=draw.choice(("ledger.sqlite", link.name))),
    )
    link.unlink()
    after(one, both[0])
    promises.hold("a command that nothing disturbs ends well", both[1].code == 0, both[1].said[-1500:])
    if strike is None:
        promises.hold("a command that nothing disturbs ends well", both[0].code == 0, both[0].said[-1500:])
    return [one, other]


# -- links, copies and moves ---------------------------------------------------------------------------------------


@operation("play through a symbolic link", 3)
def linked(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Play a run through links to its folder and to the ledger."""
    run = some_run(world, draw)
    world.folder_of(run).mkdir(exist_ok=True)
    links = {world.folder / f"linked-{world.number}": Path("runs") / run.name}
    links[world.folder / "linked.sqlite"] = Path("ledger.sqlite")
    for link, target in links.items():
        link.symlink_to(target)
    (ended,) = world.play(call(world, run, "ckpt_path=auto", folder=f"linked-{world.number}", ledger="linked.sqlite"))
    for link in links:
        link.unlink()
    promises.hold("a command that nothing disturbs ends well", ended.code == 0, ended.said[-1500:])
    return [run]


@operation("play with a hard link to the ledger", 3)
def hard_linked(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Play a run while the ledger has a second name: it is refused by either."""
    if not world.ledger.exists():
        return start(world, promises, draw)
    run = some_run(world, draw)
    link = world.folder / "second.sqlite"
    os.link(world.ledger, link)
    (ended,) = world.play(call(world, run, "ckpt_path=auto", ledger=draw.choice(("ledger.sqlite", link.name))))
    link.unlink()
    promises.hold("a ledger of several names is refused", "hard links" in ended.said and ended.code == 1, ended.said)
    return [run]


@operation("copy a run", 3)
def copied(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Copy a run's folder, which is then the same run twice: both share its budget, and go on, perhaps at once."""
    there = waiting(world)
    if not there:
        return start(world, promises, draw)
    run = draw.choice(there)
    twin = Run(f"{run.name}c{world.number}", run.recipe, run.labeler, noted=run.noted)
    shutil.copytree(world.folder_of(run), world.folder_of(twin), symlinks=True)
    world.runs.append(twin)
    playing = [twin, run] if draw.random() < 0.5 else [twin]
    for ended in world.play(*(call(world, one, "ckpt_path=auto") for one in playing)):
        promises.hold("a command that nothing disturbs ends well", ended.code == 0, ended.said[-1500:])
    return playing


@operation("move a run", 2)
def moved(world: World, promises: Promises, draw: random.Random) -> Sequence[Run]:
    """Rename a run's folder, and let it go on there."""
    there = waiting(world)
    if not there:
        return start(world, promises, draw)
    run = draw.choice(there)
    before = world.folder_of(run)
    run.name, run.printed = f"{run.name}m{world.number}", []
    before.rename(world.folder_of(run))
    (ended,) = world.play(call(world, run, "ckpt_path=auto"))
    promises.hold("a command that nothing disturbs ends well", ended.code == 0, ended.said[-1500:])
    return [run]
