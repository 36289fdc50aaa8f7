"""Does choosing pay? Runs the arms of a task over many seeds, and compares them with random choice at equal cost.

`make evidence` runs every task; `make evidence ONLY=film SEEDS=5` one of them with fewer seeds. A finished run is kept
in `benchmarks/results/evidence/` and is not repeated, so that hours of runs survive a kill; without the file of a task
all its runs are made again. Each arm has the learning rate and the beta that were best for it on other seeds. A run is
compared with the baseline's run of the same seed that begins from the same answers: a machine that trains another
policy for a task plays the baseline again beside the arms that it adds. Runs on other data than those of the published
figures are kept apart, and their result does not go into the documentation.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import page
import readme
from common import RESULTS, ROOT, commit, save
from sources import Source
from store import Job, Start, Store, digest
from tasks import TASKS, Task, chosen

from choosy.reporting.compare import draw
from choosy.reporting.comparison import compared
from choosy.reporting.courses import Course, Versus

HERE = Path(__file__).parent
RUNS = HERE / "cache" / "runs"
TUNED = (101, 102)  # seeds on which the learning rate and the beta of an arm are chosen
MANY = 10  # arms, beyond which a picture leaves out those with few seeds
FEWEST = 3  # seeds of an arm that is compared, unless fewer are typed
Settings = Mapping[str, Sequence[str]]  # what is typed for each arm's learning rate and beta
LOADED = multiprocessing.get_context("forkserver")  # a process from which runs are forked, with what they import
LOADED.set_forkserver_preload(["choosy.main", "choosy.module", "lightning", "torchmetrics", "sentence_transformers"])


def train(typed: Sequence[str], environ: Mapping[str, str], log: Path, answer: Any) -> None:
    """Do what `python train.py` does, and answer with the share of its seconds in which a processor worked for it."""
    began, used = time.monotonic(), time.process_time()
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environ)
    sys.path[:0] = [str(ROOT), environ["PYTHONPATH"]]
    sys.argv = ["train.py", *typed]
    from choosy.main import main

    main()
    answer.send((time.process_time() - used) / (time.monotonic() - began))


def play(job: Job, task: str, made: Path, store: Store) -> None:
    """Play a run in a process of its own on one thread, and keep what it shows."""
    folder, log = job.folder(RUNS / task), RUNS / "log" / f"{task}_{job.arm}_{job.seed}_{job.key}.txt"
    environ = {"PYTHONPATH": str(HERE), "FILM_LABELER": str(made / "labeler.pkl")}
    typed = [line.replace("{made}", str(made)) for line in job.lines]
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    log.parent.mkdir(parents=True, exist_ok=True)
    reads, answers = LOADED.Pipe(duplex=False)
    typed += [f"seed={job.seed}", f"run_dir={folder}"]
    run = LOADED.Process(target=train, args=(typed, environ, log, answers))
    run.start()
    answers.close()  # so that a run that ends without an answer is noticed
    run.join()
    if run.exitcode:
        raise SystemExit(f"a run failed; see {log}")
    try:
        busy = reads.recv()
    except EOFError:
        raise SystemExit(f"a run ended before its time; see {log}") from None
    store.add(job, folder, commit(), busy)
    shutil.rmtree(folder)


def play_all(left: Sequence[Job], task: str, made: Path, store: Store, at_once: int) -> None:
    """Play runs, so many at once, and say after each how long the rest will take."""
    began = time.monotonic()
    print(f"{task}: {len(left)} runs to make", flush=True)
    with ThreadPoolExecutor(at_once) as pool:
        for done, _ in enumerate(pool.map(lambda job: play(job, task, made, store), left), 1):
            per_run = (time.monotonic() - began) / done
            print(f"{done} of {len(left)} runs, about {per_run * (len(left) - done) / 60:.0f} min left", flush=True)


def jobs_of(task: Task, arm: str, seeds: Sequence[int], more: Sequence[str]) -> list[Job]:
    """The runs of an arm with some settings."""
    return [Job(arm, [*task.lines, *task.arms[arm], *more], seed) for seed in seeds]


def tuned_on(task: Task) -> Sequence[int]:
    """The seeds on which a grid of several points is tried."""
    return TUNED if len(task.grid) > 1 else ()


def tuning(task: Task, arm: str) -> list[list[Job]]:
    """The runs with each point of the grid."""
    return [jobs_of(task, arm, tuned_on(task), point) for point in task.grid]


def best(task: Task, arm: str, store: Store) -> Sequence[str]:
    """The settings of an arm with the highest mean final reward on the seeds for tuning."""
    newest = [[next(iter(store.courses(job).values())) for job in jobs] for jobs in tuning(task, arm)]
    finals = [sum(course.quality[-1] for course in courses) for courses in newest]
    return task.grid[finals.index(max(finals))]


def wanted(task: Task, settings: Settings, seeds: int, store: Store) -> list[Job]:
    """The runs that are not finished beside the baseline's, seed after seed, those of a seed in an order drawn by lot.

    With a run of another arm the baseline's is wanted too, unless it was run with the same files.
    """
    left = []
    for seed in range(seeds):
        jobs = {arm: job for arm in settings for job in jobs_of(task, arm, [seed], settings[arm])}
        paired = {arm for alike in begun_alike(jobs.values(), store) if task.baseline in alike for arm in alike}
        arms = [arm for arm in settings if arm not in paired and arm != task.baseline]
        if arms or task.baseline not in paired:
            arms.append(task.baseline)
        random.Random(seed).shuffle(arms)
        left += [jobs[arm] for arm in arms if jobs[arm] not in store]
    return left


def plain(versus: Versus) -> dict[str, Any]:
    """The numbers as JSON has them; "never" = the quality is not reached, null = not known."""

    def finite(value: Any) -> Any:
        if isinstance(value, tuple):
            return [finite(x) for x in value]
        return "never" if value == math.inf else value if math.isfinite(value) else None

    return {name: finite(value) for name, value in vars(versus).items()}


def begun_alike(jobs: Iterable[Job], store: Store) -> list[dict[str, Course]]:
    """The finished runs of one seed by arm, those that begin from the same answers together."""
    starts: dict[Start, dict[str, Course]] = {}
    for job in jobs:
        for start, course in store.courses(job).items():
            starts.setdefault(start, {})[job.arm] = course
    return list(starts.values())


def finished(task: Task, settings: Settings, seeds: int, store: Store) -> dict[str, dict[int, Course]]:
    """The runs of each arm that can be compared with the baseline's, for they begin like it; by a number.

    A seed that was run from the policies of two machines counts as two, each with a baseline's run of its own. Arms
    with very few runs are left out.
    """
    arms: dict[str, dict[int, Course]] = {}
    pairs = 0
    for seed in range(seeds):
        jobs = [job for arm in settings for job in jobs_of(task, arm, [seed], settings[arm])]
        for alike in begun_alike(jobs, store):
            if task.baseline in alike:
                for arm, course in alike.items():
                    arms.setdefault(arm, {})[pairs] = course
                pairs += 1
            else:
                print(f"seed {seed}: left out, for no run of {task.baseline} begins like them: {', '.join(alike)}")
    fewest = min(FEWEST, len(arms.get(task.baseline, {})))
    if few := [arm for arm, runs in arms.items() if len(runs) < fewest]:
        print(f"left out, with less than {fewest} seeds: {', '.join(few)}")
    return {arm: runs for arm, runs in arms.items() if arm not in few}


def drawn(arms: Mapping[str, Mapping[int, Course]], baseline: str) -> dict[str, Mapping[int, Course]]:
    """The arms of a picture: of many only those with at least half as many runs as any beside the baseline."""
    most = max(len(runs) for arm, runs in arms.items() if arm != baseline)
    fewest = most / 2 if len(arms) > MANY else 0
    return {arm: runs for arm, runs in arms.items() if arm == baseline or len(runs) >= fewest}


def evidence(task: Task, settings: Settings, name: str, seeds: int, store: Store, image: Path) -> dict[str, Any]:
    """Compare the arms with the baseline, as far as they were run, and draw them."""
    arms = finished(task, settings, seeds, store)
    if task.baseline not in arms or len(arms) < 2:
        raise SystemExit(
            f"{name}: nothing is compared yet, for that takes finished runs of {task.baseline} and of another arm, "
            "which begin alike; leave out --as-it-stands and --arms"
        )
    found = compared(arms, task.baseline)
    image.write_bytes(draw(compared(drawn(arms, task.baseline), task.baseline)))
    return {
        "baseline": task.baseline,
        "seeds": min(map(len, arms.values())),
        "tuned_on": tuned_on(task),
        "typed_for_all": list(task.lines),
        "typed": {arm: list(task.arms[arm]) for arm in arms},
        "settings": {arm: settings[arm] for arm in arms},
        "comparisons": len(found.beside),
        "best": found.best,
        "sentence": found.sentence,
        "beside_random": {
            arm: {cost: plain(one) for cost, one in costs.items()} for arm, costs in found.beside.items()
        },
    }


def ready(task: Task, store: Store, arms: Sequence[str]) -> list[str]:
    """The arms whose runs for tuning are finished."""
    return [arm for arm in arms if not untried(task, arm, store)]


def untried(task: Task, arm: str, store: Store) -> list[Job]:
    """The runs for tuning an arm that are not finished, with whichever files."""
    return [job for jobs in tuning(task, arm) for job in jobs if not store.courses(job)]


def play_task(task: Task, name: str, made: Path, arms: Sequence[str], seeds: int, store: Store, at_once: int) -> None:
    """Tune the arms of a task, and run each of them with what was best for it."""
    play_all([job for arm in arms for job in untried(task, arm, store)], name, made, store, at_once)
    settings = {arm: best(task, arm, store) for arm in arms}
    play_all(wanted(task, settings, seeds, store), name, made, store, at_once)


def write(name: str, found: dict[str, Any]) -> None:
    """Put what a task has shown beside the other tasks' results: in the JSON file, the page, the README."""
    kept = RESULTS / "evidence.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    result = {task: found if task == name else before[task] for task in TASKS if task == name or task in before}
    save("evidence", result, say=False)
    (ROOT / "docs" / "evidence.md").write_text(page.written(result))
    if name == "film":
        readme_path = ROOT / "README.md"
        readme_path.write_text(readme.refreshed(readme_path.read_text(), found))


def with_data(only: str | None, typed: Path | None) -> Iterator[tuple[str, Task, Source]]:
    """The tasks with their data; one whose data are not there is left out if it was not named."""
    for name, task in chosen(only or ",".join(TASKS)):
        try:
            yield name, task, task.source(typed)
        except SystemExit as error:
            if only:
                raise
            print(f"{name} is left out: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="tasks, with commas between them (default: all whose data are there)")
    parser.add_argument("--seeds", type=int, help="seeds of each arm (default: as many as each task says)")
    parser.add_argument("--arms", help="arms, with commas between them (default: all)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data", type=Path, help="a JSONL file for film or pools, with --only")
    parser.add_argument("--as-it-stands", action="store_true", help="play nothing, compare the runs that are finished")
    typed = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # of the runs
    for name, task, data in list(with_data(typed.only, typed.data)):  # before hours are spent
        called = f"{name}{data.tag}"
        kept = RESULTS / "evidence" / f"{called}.jsonl"
        image = (ROOT / "docs" / "images" if data.published else RESULTS / "evidence") / f"evidence_{called}.png"
        arms = list(dict.fromkeys([task.baseline, *(typed.arms.split(",") if typed.arms else task.arms)]))
        if typed.as_it_stands:
            store = Store(kept)
        else:
            made = task.prepare(data)
            store = Store(kept, digest(made))
            play_task(task, called, made, arms, typed.seeds or task.seeds, store, typed.at_once)
        settings = {arm: best(task, arm, store) for arm in ready(task, store, arms)}
        seeds = typed.seeds or 1 + max(store.seeds - set(TUNED), default=0)
        result = evidence(task, settings, name, seeds, store, image)
        if data.published:
            write(name, result)
        else:
            save(f"evidence_{called}", {"data": data.what, name: result}, say=False)
        where = ROOT / "docs" / "evidence.md" if data.published else RESULTS / f"evidence_{called}.json"
        print(f"{result['sentence']} See {where.relative_to(ROOT)}.", flush=True)


if __name__ == "__main__":
    main()
