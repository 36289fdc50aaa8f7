"""What trackers get of a run: its metrics under TRL's names, and a table of each round's answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from choosy.data.pool import Pool
from choosy.redaction import scrub

Row = Mapping[str, Any]

TRL = {  # our metric: as DPOTrainer and OnlineDPOTrainer name it
    "loss_step": "loss",
    "lr": "learning_rate",
    "heldout/loss": "eval_loss",
    "heldout/accuracy": "eval_rewards/accuracies",
    "heldout/margin": "eval_rewards/margins",
}
ALIKE = ("rewards/", "logps/", "objective/", "val/", "grad_norm", "kl", "epoch")  # how names begin that are TRL's


@runtime_checkable
class Tracker(Protocol):
    """A logger that shows the answers of each round.

    Attributes:
        table_rows: So many answers of a split at most; 0 for none.
    """

    table_rows: int

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers."""

    def log_answers(self, rows: Sequence[Row], *, round: int, step: int) -> None:
        """Log the table of a round's answers."""


def log_round(loggers: Iterable[object], pool: Pool, heldout: Sequence[Row], *, step: int) -> None:
    """Give the trackers among some loggers what the answers of a round were like, and the table of them."""
    for each in loggers:
        if isinstance(each, Tracker):
            each.log_metrics(of_answers(pool.table, round=pool.round), step=step)
            if rows := answers(pool.table, heldout, round=pool.round, most=each.table_rows):
                each.log_answers(rows, round=pool.round, step=step)


def as_trl(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics under TRL's names; one that TRL does not have keeps its own.

    Example:
        >>> as_trl({"loss_step": 0.7, "rewards/margins": 0.1, "heldout/accuracy": 0.5, "labels/spent": 8.0})
        {'loss': 0.7, 'rewards/margins': 0.1, 'eval_rewards/accuracies': 0.5, 'labels/spent': 8.0}
    """
    return {TRL.get(name, name): value for name, value in metrics.items()}


def in_sections(metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return metrics as the Trainer of transformers gives TRL's to W&B and Trackio: below `train/` and `eval/`.

    Example:
        >>> in_sections({"loss_step": 0.7, "heldout/accuracy": 0.5, "labels/spent": 8.0}, step=3)
        {'train/loss': 0.7, 'eval/rewards/accuracies': 0.5, 'labels/spent': 8.0, 'train/global_step': 3}
    """
    found = {}
    for name, value in as_trl(metrics).items():
        if name.startswith("eval_"):
            name = f"eval/{name.removeprefix('eval_')}"
        elif name in TRL.values() or name.startswith(ALIKE):
            name = f"train/{name}"
        found[name] = value
    return found | {"train/global_step": step}


def of_answers(pool: pa.Table, *, round: int) -> dict[str, float]:
    """Return what OnlineDPOTrainer logs of fresh answers: their rewards, and of sampled ones KL and ends."""
    fresh = pool.filter(pc.equal(pool["sampled_in"], round))
    reward_R, logp_R, ref_R, ended_R = (
        pc.list_flatten(fresh[name]) for name in ("rewards", "logps", "ref_logps", "finished")
    )
    means = {
        "objective/scores": pc.mean(reward_R),
        "objective/kl": pc.mean(pc.subtract(logp_R, ref_R)),
        "val/contain_eos_token": pc.mean(pc.cast(ended_R.filter(pc.is_valid(logp_R)), pa.float64())),
    }
    return {name: mean.as_py() for name, mean in means.items() if mean.is_valid}


def answers(pool: pa.Table, heldout: Sequence[Row], *, round: int, most: int) -> list[dict[str, Any]]:
    """Return the answers of a round, one a row, with their rewards and what was chosen.

    Args:
        pool: The pool's table.
        heldout: The round's rows of held-out prompts.
        round: The number of the round.
        most: So many answers of either split at most, the first ones.
    """
    sampled = pool.filter(pc.equal(pool["sampled_in"], round)).slice(0, most)
    of_split = (chain.from_iterable(map(_answers, rows)) for rows in (sampled.to_pylist(), heldout))
    return [row for rows in of_split for row in islice(rows, most)]


def _answers(row: Row) -> Iterator[dict[str, Any]]:
    """Yield the answers of a row of the pool."""
    pairs = row["pairs"] or []
    nothing = [None] * len(row["responses"])
    columns = (row["responses"], *(row[name] or nothing for name in ("rewards", "logps", "ref_logps")))
    for place, (text, reward, logp, ref_logp) in enumerate(zip(*columns, strict=True)):
        its = [pair for pair in pairs if place in (pair["chosen"], pair["rejected"])]
        choices = {"chosen" if pair["chosen"] == place else "rejected" for pair in its}
        if row["split"] == "heldout":
            choices = {*("tuned", "start")[place : place + 1]}  # whose answer it is
        yield {
            "split": row["split"],
            "prompt": _safe(row["prompt"]),
            "completion": _safe(text),
            "reward": _short(reward),
            "choice": ", ".join(sorted(choices)),
            "utility": _short(its[0]["utility"] if its else None),
            "prompt_utility": _short(row["prompt_utility"]),
            "weight": _short(its[0]["weight"] if its else None),
            "logp": _short(logp),
            "ref_logp": _short(ref_logp),
            "outcome": row["outcome"],
        }


def _short(number: float | None) -> float | None:
    """A number in six digits, as a table shows it."""
    return None if number is None else float(f"{number:.6g}")


def _safe(text: str) -> str:
    """A text without secrets, and without half characters, which no tracker can write."""
    return scrub(text).encode("utf-8", "backslashreplace").decode()
