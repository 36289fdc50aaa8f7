"""The pool: every prompt with its responses, their rewards, the pairs made of them.

It is an Arrow table in memory, one Parquet file a round on disk.

One row holds one prompt's candidates of one round; an earlier round's row stays while its labels are trained on. A
round's file holds the whole pool as it was after that round, so the newest file is all that a resume needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from choosy.data.pool_rows import OWN, POOL_SCHEMA, from_row, null_of
from choosy.data.table_files import damage, facts_of, files_of_rounds, read_table, write_table
from choosy.types import Candidates, Moments, Pair, Response

Keep = Literal["newest", "all"]


class Pool:
    """What is trained on: an immutable table of candidates and the number of the round that last changed it."""

    def __init__(self, table: pa.Table | None = None, *, round: int = -1) -> None:
        self.table = POOL_SCHEMA.empty_table() if table is None else table
        self.round = round
        self._batches = self.table.to_batches()
        self._starts = np.cumsum([0, *map(len, self._batches)])

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def put_rows(self, fresh: pa.Table, *, round: int, keep: Keep = "newest") -> Pool:
        """The pool after a round: a prompt's newest responses, and those that its labels are about.

        Of a prompt's labeled rows the `newest` is kept, until a newer one is labeled, or `all` are.
        """
        ids, new = self.table["prompt_id"], Pool(fresh)
        again = pc.is_in(self._stamps(), value_set=new._stamps())
        superseded = pc.or_(again, pc.and_(pc.invert(self.labeled()), pc.is_in(ids, value_set=fresh["prompt_id"])))
        if keep == "newest":
            labeled_ids = fresh["prompt_id"].filter(new.labeled())
            superseded = pc.or_(superseded, pc.is_in(ids, value_set=labeled_ids))
        old = self.table
        stale: dict[str, Any] = {"origin": "reused", **dict.fromkeys(OWN)}  # of an earlier policy
        for name, value in stale.items():
            column = pa.array([value] * old.num_rows, POOL_SCHEMA.field(name).type)
            old = old.set_column(old.schema.get_field_index(name), name, column)
        both = pa.concat_tables([old, fresh]).combine_chunks()
        kept = pc.indices_nonzero(
            pa.chunked_array([*pc.invert(superseded).chunks, pa.array([True] * len(fresh), pa.bool_())])
        )
        in_order = pc.sort_indices(
            both.select(["prompt_id", "sampled_in"]).take(kept),
            sort_keys=[("prompt_id", "ascending"), ("sampled_in", "ascending")],
        )
        return Pool(both.take(kept.take(in_order)), round=round)  # texts and ids are copied once

    def _stamps(self) -> pa.ChunkedArray:
        """What names each row: its prompt and the round of its responses."""
        sampled_in = pc.cast(self.table["sampled_in"], pa.string())
        return pc.binary_join_element_wise(self.table["prompt_id"], sampled_in, "@")

    def with_earlier(self, fresh: Sequence[Candidates]) -> list[Candidates]:
        """The fresh candidates with the moments of the rewards that their prompts had in earlier rounds."""
        result = []
        for c, (sampled_in, earlier, newest) in zip(fresh, self._moments([c.prompt.id for c in fresh]), strict=True):
            known = c.earlier if sampled_in is None else earlier
            result.append(replace(c, earlier=known if sampled_in == c.round else known + newest))
        return result

    def _moments(self, prompt_ids: Sequence[str]) -> list[tuple[int | None, Moments, Moments]]:
        """Of each prompt the round of its newest responses, and the moments of the earlier rewards and of theirs."""
        rows = self.table.select(["sampled_in", "earlier_rewards", "rewards"]).take(self.newest(prompt_ids))
        return [
            (
                row["sampled_in"],
                Moments(**row["earlier_rewards"] or {}),
                Moments.of([reward for reward in row["rewards"] or () if reward is not None]),
            )
            for row in rows.to_pylist()
        ]

    def reward_moments(self, prompt_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count, mean and sum of squared differences, each (P,), of all rewards that each prompt ever had."""
        every = [earlier + newest for _, earlier, newest in self._moments(prompt_ids)]
        return np.array([m.count for m in every]), np.array([m.mean for m in every]), np.array([m.m2 for m in every])

    def newest(self, prompt_ids: Sequence[str]) -> pa.Array:
        """Row of each prompt's newest candidates; null of a prompt that was never sampled."""
        newest_first = self.table["prompt_id"].combine_chunks()[::-1]  # index_in finds the first
        found = pc.index_in(pa.array(prompt_ids, pa.string()), value_set=newest_first)
        return pc.subtract(pa.scalar(len(self) - 1, pa.int64()), found)

    def rewards(
        self, prompt_ids: Sequence[str], neutral: float | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored rewards of each prompt's newest responses.

        Args:
            prompt_ids: The prompts.
            neutral: A score that says nothing, and counts as none.

        Returns:
            (P, N) rewards; (P, N) whether there is one; (P,) whether the prompt was ever sampled.
        """
        row_P = self.newest(prompt_ids)
        rewards = self.table["rewards"].combine_chunks().take(row_P)  # null where never sampled
        length_P = pc.list_value_length(rewards).fill_null(0).to_numpy(zero_copy_only=False)
        scored_PN = np.arange(length_P.max(initial=0)) < length_P[:, None]
        reward_PN = np.zeros(scored_PN.shape)
        given = pc.list_flatten(rewards)
        reward_PN[scored_PN] = given.to_numpy(zero_copy_only=False)
        scored_PN[scored_PN] = given.is_valid().to_numpy(zero_copy_only=False)
        scored_PN &= reward_PN != neutral
        return reward_PN, scored_PN, row_P.is_valid().to_numpy(zero_copy_only=False)

    def response_tokens(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Tokens (P,) of all of each prompt's newest responses; nan of a prompt that was never sampled."""
        ids = self.table["response_ids"]
        row_X = pc.list_parent_indices(ids).to_numpy()  # X: all responses in turn
        length_X = pc.list_value_length(pc.list_flatten(ids)).to_numpy()
        tokens_R = pa.array(np.bincount(row_X, weights=length_X, minlength=len(self)))
        tokens_P: np.ndarray = tokens_R.take(self.newest(prompt_ids)).to_numpy(zero_copy_only=False)
        return tokens_P

    def candidates(self, rows: Iterable[int] | None = None) -> list[Candidates]:
        """The candidates of some rows, or of all."""
        if rows is None:
            return [from_row(row) for row in self.table.to_pylist()]
        row_X = np.fromiter(rows, np.int64)
        batch_X = np.searchsorted(self._starts, row_X, side="right") - 1  # to take from all of them would copy them
        found: dict[int, Candidates] = {}
        for batch in np.unique(batch_X).tolist():
            place_X = (batch_X == batch).nonzero()[0]
            taken = self._batches[batch].take(pa.array(row_X[place_X] - self._starts[batch]))
            found |= zip(place_X.tolist(), map(from_row, taken.to_pylist()), strict=True)
        return [found[place] for place in range(len(row_X))]

    def part_means(self) -> dict[str, float]:
        """The mean of each part of the rewards of the last round's responses, where the rewards are sums."""
        parts = self._fresh("parts")["parts"].drop_null().to_pylist()
        return means_by_name(of_response for of_prompt in parts for of_response in of_prompt)

    def source_means(self) -> dict[str, float]:
        """The mean reward of the last round's responses to the prompts of each source, where there are several."""
        fresh = self._fresh("source", "rewards")
        rows = fresh.filter(fresh["source"].is_valid()).to_pylist()
        return means_by_name([(row["source"], x) for x in row["rewards"] if x is not None] for row in rows)

    def _fresh(self, *columns: str) -> pa.Table:
        return self.table.select(columns).filter(pc.equal(self.table["origin"], "sampled"))

    def with_labels(self) -> list[Candidates]:
        """The candidates with a pair or a reward."""
        rewards = self.table["rewards"].combine_chunks()
        rewarded = pc.list_parent_indices(rewards).filter(pc.list_flatten(rewards).is_valid())
        paired = pc.greater(pc.list_value_length(self.table["pairs"]), 0).to_numpy(zero_copy_only=False)
        return self.candidates(np.union1d(rewarded.to_numpy(), paired.nonzero()[0]).tolist())

    def with_reference(self, logps: Sequence[Sequence[tuple[float, Sequence[float]]]]) -> Pool:
        """The same rows with other log-probs under the reference: of each row's responses the sum, and the tokens'."""
        assert len(logps) == len(self)
        sums = [[null_of(one) for one, _ in of_row] for of_row in logps]
        tokens = [[of for _, of in of_row] if any(of for _, of in of_row) else None for of_row in logps]
        table = self.table
        for name, values in (("ref_logps", sums), ("ref_token_logps", tokens)):
            column = pa.array(values, POOL_SCHEMA.field(name).type)
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return Pool(table, round=self.round)

    def pair_rows(self, *, round: int | None = None) -> list[tuple[int, int, float]]:
        """(row, position in the row's pairs, weight) of every pair, or of those made in one round."""
        pairs = self.table["pairs"].combine_chunks()
        row_X, flat = pc.list_parent_indices(pairs).to_numpy(), pc.list_flatten(pairs)  # X: all pairs in turn
        place_X = np.arange(len(row_X)) - np.searchsorted(row_X, row_X)
        weight_X, round_X = (pc.struct_field(flat, name).to_numpy(zero_copy_only=False) for name in ("weight", "round"))
        kept_X = slice(None) if round is None else round_X == round
        return list(zip(*(column[kept_X].tolist() for column in (row_X, place_X, weight_X)), strict=True))

    def judged_pairs(self) -> int:
        """How many pairs have been judged, ties and invalid verdicts included."""
        judged = [pc.sum(pc.list_value_length(self.table[column])).as_py() or 0 for column in ("pairs", "undecided")]
        return int(sum(judged))

    def judged_prompts(self) -> int:
        """How many rows have a pair that has been judged."""
        judged = [pc.greater(pc.list_value_length(self.table[column]), 0) for column in ("pairs", "undecided")]
        return pc.sum(pc.or_(*judged)).as_py() or 0

    def lone_rows(self, *, round: int | None = None) -> list[tuple[int, float]]:
        """(row, given weight or 1) of every labeled lone response, or of those sampled in one round."""
        row_X = self._lone_rows()
        if round is not None:
            row_X = row_X.filter(pc.equal(self.table["sampled_in"].combine_chunks().take(row_X), round))
        weights = pc.fill_null(self.table["given_weight"].take(row_X), 1.0).to_pylist()
        return list(zip(row_X.to_pylist(), weights, strict=True))

    def _lone_rows(self) -> pa.Array:
        """Rows with one response whose reward is above or below the threshold."""
        row_X = pc.indices_nonzero(pc.equal(pc.list_value_length(self.table["responses"]), 1))
        reward_X = pc.list_flatten(self.table["rewards"].combine_chunks().take(row_X))
        threshold_X = pc.fill_null(self.table["threshold"].combine_chunks().take(row_X), 0.0)
        return row_X.filter(pc.fill_null(pc.not_equal(reward_X, threshold_X), False))

    def labeled(self) -> pa.Array:
        """Whether there is a label to train on in each row (see `Candidates.labeled`)."""
        paired = pc.greater(pc.list_value_length(self.table["pairs"]), 0).to_numpy(zero_copy_only=False)
        return pa.array(paired | np.isin(np.arange(len(self)), self._lone_rows()))

    def save(self, folder: str | Path, about: Mapping[str, Any], heldout: Sequence[Mapping[str, Any]] = ()) -> Path:
        """Write the round's file: the pool, the held-out rows, and what is known about the round."""
        table = pa.concat_tables([self.table, pa.Table.from_pylist(list(heldout), schema=POOL_SCHEMA)])
        return write_table(table, round_file(folder, self.round), about)

    @staticmethod
    def load(folder: str | Path, round: int) -> tuple[Pool, dict[str, Any]]:
        """The pool as it stood after a round, and what was written about it.

        Raises:
            ValueError: The file is missing or damaged; the message names it and the last good one.
        """
        about = about_round(folder, round)
        return Pool(rows_to_train_on(pq.read_table(round_file(folder, round))), round=round), about


def about_round(folder: str | Path, round: int) -> dict[str, Any]:
    """What was written about a round; refuse its file if it is missing or damaged, and name the last good one."""
    path = round_file(folder, round)
    if why := damage(path):
        good = [f.name for f in files_of_rounds(Path(folder), "parquet") if f != path and not damage(f)]
        last = f"the last good one is {good[-1]}" if good else "no other round is there"
        raise ValueError(
            f"The pool file {path} cannot be read ({why}); {last}. Put the file back, or "
            "train again on the rounds that are whole and the labels in the ledger: type ckpt_path=start."
        )
    return facts_of(path)


def read_candidates(path: Path) -> list[Candidates]:
    """The candidates of a file of rows, which an earlier version may have written; a ValueError if it is damaged."""
    return [from_row(row) for row in with_all_columns(read_table(path)).to_pylist()]


def rows_to_train_on(table: pa.Table) -> pa.Table:
    """The rows of a round's file, or of a piece of one, that are trained on, with all columns."""
    table = with_all_columns(table)
    of_train = pc.equal(table["split"], "train")
    return table if pc.all(of_train).as_py() else table.filter(of_train)


def with_all_columns(table: pa.Table) -> pa.Table:
    """The table with nulls in the columns, and in the facts of a pair, that its version of Choosy did not have."""
    known = {*table.column_names}, {field.name for field in table.schema.field("pairs").type.value_type}
    wanted = {*POOL_SCHEMA.names}, {field.name for field in fields(Pair)}
    return table if known == wanted else pa.Table.from_pylist(table.to_pylist(), schema=POOL_SCHEMA)


def round_file(folder: str | Path, round: int) -> Path:
    """The path of a round's file."""
    return Path(folder) / f"round_{round:03d}.parquet"


def means_by_name(named: Iterable[Iterable[tuple[str, float]]]) -> dict[str, float]:
    """The mean of the numbers that have the same name.

    Example:
        >>> means_by_name([[("short", 1.0), ("right", 0.0)], [], [("short", 3.0)]])
        {'short': 2.0, 'right': 0.0}
    """
    values: dict[str, list[float]] = {}
    for several in named:
        for name, value in several:
            values.setdefault(name, []).append(value)
    return {name: sum(those) / len(those) for name, those in values.items()}


def with_responses(c: Candidates, changed: Mapping[int, Response]) -> Candidates:
    """The candidates with some responses as they are now, by position."""
    return replace(c, responses=tuple(changed.get(n, response) for n, response in enumerate(c.responses)))
