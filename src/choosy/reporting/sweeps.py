"""Reads the runs of a sweep: what each had spent and reached, arm by arm and seed by seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from choosy.data.heldout import heldout_source
from choosy.data.pool import round_file
from choosy.data.table_files import files_of_rounds, read_about, read_table
from choosy.options.parts import (
    CLASS,
    collection,
    groups,
    leaves,
    option_of_collection,
    option_of_part,
    options_of,
)
from choosy.reporting.courses import Arm, Course
from choosy.reporting.folders import run_folders
from choosy.reporting.summary import RunSummary, costs_of, labels_reused, read_run
from choosy.sealed import read_yaml
from choosy.types import content_id

FEWEST_SEEDS = 3  # of an arm; fewer say nothing of chance
OF_ONE_RUN = ("name", "run_dir", "ckpt_path", "overwrite")  # options that do not make another arm


def warn_of_few_seeds(seeds: int) -> str:
    """Say that so few seeds of an arm tell nothing; empty for enough of them."""
    if seeds >= FEWEST_SEEDS:
        return ""
    few = "one seed" if seeds == 1 else f"{seeds} seeds"
    return f"With {few} of each arm nothing can be said: type seed=0,1,2,3,4,5,6,7."


def read_sweep(
    sweep_dir: str | Path, arm_of: Callable[[Path], tuple[str, ...] | None] | None = None
) -> tuple[dict[str, Arm], dict[str, str]]:
    """Read the runs below a folder, finished or not, as far as each of them came.

    Args:
        sweep_dir: The folder of a sweep.
        arm_of: Names the arm of a run by its folder, or leaves the run out; None = by what was typed for it.

    Returns:
        The arms by name, and the reason why a run could not be read or compared, by its folder.

    Raises:
        ValueError: There is no evaluated run below the folder.
    """
    folder = Path(sweep_dir)
    found: dict[tuple[str, ...], dict[int, Course]] = defaultdict(dict)
    folder_of: dict[tuple[tuple[str, ...], int], str] = {}
    skipped: dict[str, str] = {}
    for run_dir in run_folders(folder):
        if not any(run_dir.glob("rounds/round_*.parquet")) or (words := (arm_of or typed)(run_dir)) is None:
            continue
        name = str(run_dir.relative_to(folder))
        try:
            run = read_run(run_dir)
            its, seed = course(run), int(run.latest["seed"])
            if (other := found[words].get(seed)) and not farther(its, other):
                raise ValueError(f"another run of its arm has its seed, {seed}")
            if other:
                skipped[folder_of[words, seed]] = f"another run of its arm and its seed, {seed}, came farther"
            found[words][seed], folder_of[words, seed] = its, name
        except (ValueError, OSError) as error:
            skipped[name] = str(error)
    arms = named({words: arm for words, arm in found.items() if arm})
    if not arms:
        raise ValueError(
            f"Wanted runs with evaluated rounds below {folder}; found none. First type choosy train -m ..."
        )
    return arms, skipped


def farther(one: Course, other: Course) -> bool:
    """Whether a run came farther than another of its arm and seed, which a kill may have ended early."""
    return (one.finished, len(one.quality)) > (other.finished, len(other.quality))


def words_of(run_dir: Path) -> list[str] | None:
    """What was typed for a run; None where that is not known."""
    path = run_dir / ".hydra" / "overrides.yaml"
    return read_yaml(path, list) if path.exists() else None


def config_of(run_dir: Path) -> dict[str, Any]:
    """What a run's config.yaml holds; nothing where there is none."""
    file = run_dir / "config.yaml"
    return read_yaml(file) if file.exists() else {}


def early_stoppers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The callbacks of a configuration that may end a run before its last round, by their names."""
    found = dict(config.get("callbacks") or {})
    return {name: one for name, one in found.items() if str(one.get(CLASS)).endswith(("EarlyStopping", "LeastQuality"))}


def judged_by(run_dir: Path) -> str:
    """Who judges a run's held-out data, and which they are: no reward of others can be compared with its rewards."""
    config = config_of(run_dir)
    of_its_own = isinstance((config.get("labels") or {}).get("evaluation"), Mapping)
    judge = "labels.evaluation" if of_its_own else "labeler"
    names = [judge, f"{judge}.path", f"{judge}.model", "data.heldout", "data.heldout_pairs", "data.heldout_limit"]
    if heldout_source(value_in(config, "data.train"), value_in(config, "data.heldout")) is None:
        names += ["data.train", "data.limit", "data.shares"]  # of which it is a part
    found = {name: value_in(config, name).removeprefix(f"{config.get('run_dir')}/") for name in names}
    *_, newest = [None, *files_of_rounds(run_dir / "rounds", "parquet")]
    found["judge"] = "" if newest is None else read_about(newest).get("judge", "")  # with its settings and its code
    return " ".join(f"{name}={value}" for name, value in found.items() if value)


def values_of(run_dir: Path, names: Collection[str]) -> dict[str, str]:
    """The values of options, or groups' choices, as a run's config.yaml has them; "" where it has none.

    A choice of the user's own menu goes by what was typed for it, and a file in the run's own folder by its name.
    """
    config = config_of(run_dir) if names else {}  # which takes long to parse
    words = dict(word.lstrip("+").partition("=")[::2] for word in words_of(run_dir) or ())

    own_folder = f"{value_in(config, 'data.run.folder') or run_dir}/"

    def value(name: str) -> str:
        found = value_in(config, name).removeprefix(own_folder)
        if name not in (*groups(), "selector") or found in options_of(name) or f"{name}.{CLASS}" in words:
            return found
        return words.get(name, found)

    return {name: value(name) for name in names}


def value_in(config: Mapping[str, Any], name: str) -> str:
    """The value of an option, or a group's choice; "" where a configuration has none.

    Example:
        >>> value_in({"data": {"heldout": "test.jsonl"}}, "data.heldout"), value_in({}, "loss")
        ('test.jsonl', '')
    """
    if name == "selector":
        found = dict(leaves({"callbacks": config.get("callbacks") or {}}))
        return option_of_collection(name, collection(name, found)).name if "callbacks" in config else ""
    node: Any = config
    for key in name.split("@")[-1].split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return option_of_part(dict(leaves(node))).name if isinstance(node, Mapping) else "" if node is None else str(node)


def typed(run_dir: Path) -> tuple[str, ...]:
    """The words of a run's arm; without them the name of the folder above it."""
    words = words_of(run_dir)
    return (run_dir.parent.name,) if words is None else arm_words(words)


def arm_words(words: Iterable[str]) -> tuple[str, ...]:
    """What was typed for a run, in alphabetical order and without its seed and its folder.

    Example:
        >>> arm_words(["seed=1", "selector=random", "lr=1e-4"])
        ('lr=1e-4', 'selector=random')
    """
    own = ("seed", *OF_ONE_RUN)
    return tuple(sorted(word for word in words if word.lstrip("+").split("=")[0] not in own))


def arm_folder(words: Iterable[str]) -> str:
    """The name of an arm's folder, which the same words give whatever else the sweep runs.

    Example:
        >>> arm_folder(["selector=random", "seed=1"]) == arm_folder(["seed=2", "selector=random"])
        True
    """
    arm = arm_words(words)
    selector = next((word.removeprefix("selector=") for word in arm if word.startswith("selector=")), "run")
    return f"{selector}-{content_id(*arm)[:4]}"


def named(found: Mapping[tuple[str, ...], Arm]) -> dict[str, Arm]:
    """The arms by what tells them apart: the words that not all of them share."""
    shared = set.intersection(*map(set, found)) if found else set()
    own = {words: sorted((w for w in words if w not in shared), key=lambda w: w[:9] != "selector=") for words in found}
    names = {words: " ".join(word.removeprefix("selector=") for word in some) for words, some in own.items()}
    plain = "defaults" if len(found) > 1 else "all runs"
    return {name or plain: found[words] for words, name in sorted(names.items(), key=lambda named: named[1])}


def course(run: RunSummary) -> Course:
    """What a run had spent and reached at the start and after each evaluated round; labeling takes no seconds here.

    A label that another run had bought into a shared ledger counts as bought: the order of runs does not matter.

    Raises:
        ValueError: The run has no evaluated round yet.
    """
    if not run.evaluated:
        raise ValueError("it has no evaluated round yet")
    spent = [(0, 0, 0.0), *(costs_of(played, without=("label", "evaluate")) for played in run.evaluated)]
    bought, tokens, seconds = (tuple(map(float, amounts)) for amounts in zip(*spent, strict=True))
    reused = [0, *(labels_reused(played) for played in run.evaluated)]
    labels = tuple(b + r for b, r in zip(bought, reused, strict=True))
    measure, quality = quality_of(run)
    numbers = [played["round"] for played in run.evaluated]
    return Course(
        {"labels": labels, "tokens": tokens, "seconds": seconds},
        quality,
        kl_of(run),
        answers(run.folder / "rounds", numbers, measure) if measure != "accuracy" else {},
        measure,
        judged_by(run.folder),
        arm_words(words_of(run.folder) or ()),
        run.finished,
    )


def quality_of(run: RunSummary) -> tuple[str, tuple[float, ...]]:
    """What all evaluations of a run measured, and its values: the reward where there is one.

    At the start the win rate against the start is one half, and so is the accuracy of a policy that is its reference.

    Raises:
        ValueError: The evaluations have no measure in common.
    """
    evaluations = [played["evaluation"] for played in run.evaluated]
    first = {"win_rate": 0.5, "accuracy": 0.5, **run.start}
    for measure in ("reward", "win_rate", "accuracy"):
        values = [e.get(measure) for e in (first, *evaluations)]
        if None not in values:
            return measure, tuple(map(float, values))
    raise ValueError(
        "its evaluations have neither a reward, a win rate nor an accuracy in common: no judge was set "
        "(labels.evaluation), or it was changed in the course of the run"
    )


def kl_of(run: RunSummary) -> tuple[float, ...]:
    """KL from the start at each evaluation, or the mean log ratio of sampled answers; empty if it was not measured."""
    values = [played["evaluation"].get("kl", played["evaluation"].get("log_ratio")) for played in run.evaluated]
    return () if None in values else (0.0, *map(float, values))


def answers(rounds: Path, numbers: Sequence[int], measure: str) -> dict[str, tuple[float, ...]]:
    """For each held-out prompt its reward, or its outcome against the start, at the start and after each round."""
    found: dict[str, list[float]] = {}
    for at, number in enumerate(numbers, 1):
        columns = ["prompt_id", "rewards", "outcome"]
        table = read_table(round_file(rounds, number), columns=columns, filters=[("split", "=", "heldout")])
        for row in table.to_pylist():
            now, start = row["rewards"] if measure == "reward" else (row["outcome"], 0.5)
            values = found.setdefault(row["prompt_id"], [math.nan] * (len(numbers) + 1))
            values[0] = math.nan if start is None else start
            values[at] = math.nan if now is None else now
    return {prompt: tuple(values) for prompt, values in found.items()}
