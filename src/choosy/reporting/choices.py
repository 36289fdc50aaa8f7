"""Reads from the files of a run's rounds what was sampled, bought and chosen, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from choosy.data.pool import round_file
from choosy.reporting.courses import Z95, Interval
from choosy.reporting.summary import RunSummary

NUMBERS = ("sampled_in", "prompt_utility", "rewards", "logps", "ref_logps", "pairs")
FEWEST = 5  # of pairs of numbers, below which no correlation is told


@dataclass(frozen=True)
class Choice:
    """What one round has sampled, bought and chosen.

    Attributes:
        round: Its number, from 0.
        prompts: Prompts that it sampled, or of whose given responses it bought labels.
        rewards: The rewards of their responses, those that were bought.
        gaps: The reward of the chosen response less that of the rejected one, for each pair made in the round.
        undecided: Judgements of the round that were a tie or invalid; of a prompt whose scores are all equal it is one.
        pairs: Pairs made in the round.
        utilities: What the selector of pairs expected of each of these pairs, else that of prompts of each prompt, with
            what came of it; no other.
        outcome: What came of it, in words.
    """

    round: int
    prompts: int
    rewards: np.ndarray
    gaps: np.ndarray
    undecided: int
    pairs: int
    utilities: Sequence[tuple[float, float]]
    outcome: str

    @property
    def correlation(self) -> Interval:
        """The rank correlation of utilities and outcomes."""
        return rank_correlation(self.utilities)


def rank_correlation(values: Sequence[tuple[float, float]]) -> Interval:
    """Spearman's rank correlation with its 95 % interval (Bonett and Wright 2000); nan of few or of equal numbers.

    Example:
        >>> rho, low, high = rank_correlation([(1, 1), (2, 2), (3, 4), (4, 3), (5, 5)])
        >>> round(rho, 2), round(low, 2), round(high, 2)
        (0.9, -0.17, 1.0)
    """
    columns = [*zip(*values, strict=True)]
    if len(values) < FEWEST or min(len(set(column)) for column in columns) < 2:
        return Interval(math.nan)
    both = [[pc.rank(list(column), tiebreaker=ties).to_numpy() for ties in ("min", "max")] for column in columns]
    rho = float(np.corrcoef([lowest + highest for lowest, highest in both])[0, 1])
    if abs(rho) > 1 - 1e-9:
        return Interval(rho)
    error = Z95 * math.sqrt((1 + rho**2 / 2) / (len(values) - 3))
    return Interval(rho, *(math.tanh(math.atanh(rho) + sign * error) for sign in (-1, 1)))


def choices_of(run: RunSummary) -> list[Choice]:
    """Read what each round of a run has chosen."""
    return [choice for played in run.rounds if (choice := _choice(run.folder, played)) is not None]


def _choice(folder: Path, played: Mapping[str, Any]) -> Choice | None:
    number, judged = played["round"], played["judged"]["round"]
    table = fresh_rows(folder, number, NUMBERS)
    if table is None:
        return None
    pairs = table["pairs"].combine_chunks()
    row_X, flat = pc.list_parent_indices(pairs).to_numpy(), pc.list_flatten(pairs)
    fields = ("chosen", "rejected", "round", "utility")
    of_X = {name: pc.struct_field(flat, name).to_numpy(zero_copy_only=False) for name in fields}
    made_X = of_X["round"] == number
    row_X, chosen_X, rejected_X = row_X[made_X], of_X["chosen"][made_X], of_X["rejected"][made_X]
    gap_X = _at(table, "rewards", row_X, chosen_X) - _at(table, "rewards", row_X, rejected_X)
    utility_X, outcome_X, outcome = of_X["utility"][made_X].astype(float), gap_X, "reward gap"
    if not np.isfinite(utility_X).any():  # no selector of pairs: what was expected of the prompts
        utility_X = table["prompt_utility"].to_numpy(zero_copy_only=False).astype(float)
        outcome_X, outcome = _spreads(table), "spread of rewards"
    elif not np.isfinite(gap_X).any():  # the labeler compares
        won, lost = (
            {name: _at(table, name, row_X, at) for name in ("logps", "ref_logps")} for at in (chosen_X, rejected_X)
        )
        outcome_X = (won["logps"] - won["ref_logps"]) - (lost["logps"] - lost["ref_logps"])
        outcome = "log-ratio gap"
    known_X = np.isfinite(utility_X) & np.isfinite(outcome_X)
    return Choice(
        number,
        table.num_rows,
        pc.drop_null(pc.list_flatten(table["rewards"].combine_chunks())).to_numpy(zero_copy_only=False),
        gap_X[np.isfinite(gap_X)],
        judged.get("ties", 0) + judged.get("invalid", 0),
        len(row_X),
        [*zip(utility_X[known_X].tolist(), outcome_X[known_X].tolist(), strict=True)],
        outcome,
    )


def fresh_rows(
    folder: Path, number: int, columns: Sequence[str], *, heldout: bool = False, among: Set[str] | None = None
) -> pa.Table | None:
    """The rows that a round has sampled or made pairs of; None where its file does not tell them.

    The file's checksum was compared when the run was read, and is not once more.

    Args:
        folder: The folder of the run.
        number: The round's number, from 0.
        columns: The columns to read, `sampled_in` and `pairs` among them.
        heldout: Whether to read those that it has held out, too; `split` is then among the columns.
        among: Only the rows of these prompts; None = all.
    """
    path = round_file(folder / "rounds", number)
    known = pq.read_schema(path).names
    if not {"sampled_in", "pairs"} <= {*known}:
        return None
    filters: list[Any] = [] if heldout else [("split", "=", "train")]
    filters += [] if among is None else [("prompt_id", "in", among)]
    table = pq.read_table(path, columns=[name for name in columns if name in known], filters=filters or None)
    pairs = table["pairs"].combine_chunks()
    rounds = pc.struct_field(pc.list_flatten(pairs), "round")
    paired = pc.list_parent_indices(pairs).filter(pc.equal(rounds, number)).to_numpy()
    sampled = pc.equal(table["sampled_in"], number).to_numpy(zero_copy_only=False)
    held_out = pc.equal(table["split"], "heldout").to_numpy().nonzero()[0] if heldout else []
    fresh = np.union1d(np.union1d(sampled.nonzero()[0], paired), held_out).astype(int)
    return table.take(fresh).combine_chunks()


def _at(table: pa.Table, column: str, row_X: np.ndarray, place_X: np.ndarray) -> np.ndarray:
    """The numbers at places in the lists of a column; nan where there is none."""
    lists = table[column].combine_chunks()
    length = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    begin = np.concatenate([[0], np.cumsum(length)[:-1]]).astype(int) if len(length) else np.zeros(0, int)
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(float)
    found: np.ndarray = values[begin[row_X] + place_X] if len(row_X) else np.zeros(0)
    return found


def _spreads(table: pa.Table) -> np.ndarray:
    """The best less the worst reward of each row; nan of a row with none."""
    rewards = table["rewards"].combine_chunks()
    reward_R, row_R = (
        pc.list_flatten(rewards).to_numpy(zero_copy_only=False).astype(float),
        pc.list_parent_indices(rewards),
    )
    known_R = np.isfinite(reward_R)
    best_P, worst_P = np.full(table.num_rows, -math.inf), np.full(table.num_rows, math.inf)
    np.maximum.at(best_P, row_R.to_numpy()[known_R], reward_R[known_R])
    np.minimum.at(worst_P, row_R.to_numpy()[known_R], reward_R[known_R])
    return np.where(np.isfinite(best_P), best_P - worst_P, math.nan)
