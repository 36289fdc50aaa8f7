"""Checks what else a model can do, on tasks of lm-evaluation-harness."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from choosy.terminal import logger

if TYPE_CHECKING:
    from choosy.models.policy import Policy

Results = dict[str, dict[str, float]]  # metrics by task


class Tasks(NamedTuple):
    """Tasks of the harness by name, the folder of their YAML files (None = those that come with it), and a limit."""

    names: tuple[str, ...]
    folder: str | None = None
    limit: int | None = None


def refuse_without_harness() -> None:
    """Raise a ValueError where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise ValueError("--tasks needs lm-evaluation-harness; type pip install 'choosy-tuning[eval]'")


def capabilities(policy: Policy, tasks: Tasks, *, seed: int) -> Results:
    """Return what the harness measures, with standard errors as `METRIC_stderr`.

    Questions are asked as plain text, as most published figures of base models are; the harness says how in its YAML.

    Raises:
        ValueError: There is no task of a name, or its data cannot be loaded.
    """
    logger("lm_eval").setLevel(logging.ERROR)  # it warns of any model that is loaded already
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks.folder, include_defaults=tasks.folder is None)
    if unknown := [name for name in tasks.names if name not in manager.all_tasks]:
        where = f"in {tasks.folder}" if tasks.folder else "in lm-evaluation-harness, whose `lm-eval ls tasks` lists all"
        raise ValueError(f"There is no task {unknown[0]} {where}.")
    policy.eval()
    model = HFLM(pretrained=policy.causal_lm, tokenizer=policy.tokens.tokenizer, batch_size=8)
    seeds = {f"{name}_random_seed": seed for name in ("numpy", "torch", "fewshot")}
    try:
        with policy.precision():
            found: Any = simple_evaluate(
                model, tasks=[*tasks.names], task_manager=manager, limit=tasks.limit, log_samples=False, **seeds
            )
    except (OSError, ConnectionError) as error:
        raise ValueError(
            f"The data of {', '.join(tasks.names)} cannot be loaded ({error}); tasks of yours go by --task-folder DIR."
        ) from error
    return {name: numbers(metrics) for name, metrics in found["results"].items()}


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a task by their names; a filter's name follows unless there is no other.

    Example:
        >>> numbers({"alias": "quiz", "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict": 1.0})
        {'acc': 0.5, 'acc_stderr': 0.1, 'exact_match,strict': 1.0}
    """
    return {name.removesuffix(",none"): float(x) for name, x in metrics.items() if "," in name and is_number(x)}


def is_number(x: object) -> bool:
    """Whether the harness has measured it: it writes `N/A` for the error of a metric that has none."""
    return isinstance(x, int | float)


def sentences(found: Mapping[str, Results], others: Sequence[str]) -> list[str]:
    """Return a line for each metric of each task, with the figures of the others before that of the tuned model.

    Example:
        >>> found = {"start": {"quiz": {"acc": 0.5, "acc_stderr": 0.1}}, "tuned": {"quiz": {"acc": 0.25}}}
        >>> sentences(found, ["start"])
        ['quiz, acc: start 0.5 ± 0.1, tuned 0.25']
    """
    lines = []
    for task, metrics in found["tuned"].items():
        for metric in (name for name in metrics if "_stderr" not in name):
            measured = [f"{who} {as_text(found[who][task], metric)}" for who in (*others, "tuned")]
            lines.append(f"{task}, {metric}: {', '.join(measured)}")
    return lines


def as_text(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric with its standard error, if it has one."""
    base, comma, kind = name.partition(",")
    error = metrics.get(f"{base}_stderr{comma}{kind}")
    return f"{metrics[name]:.3g}" + ("" if error is None else f" ± {error:.2g}")
