"""The control of every experiment: prompts or pairs at random, at the same budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from callbacks.selector import PairChooser, PromptChooser
from choosy.methods.selection import Direction, length_matched, pair_positions
from choosy.rounds.context import Round
from choosy.types import Candidates, Prompt


@dataclass(kw_only=True, eq=False)
class RandomPrompts(PromptChooser):
    """Samples a random share of the prompts again: all utilities are equal, and the seed breaks the ties."""

    fraction: float | None = 0.3
    warmup_rounds: int = 1
    direction: Direction = field(default="largest", init=False)

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        return [0.0] * len(prompts)


@dataclass(kw_only=True, eq=False)
class RandomPairs(PairChooser):
    """Labels a random share of the pairs, or of single responses."""

    direction: Direction = field(default="largest", init=False)

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        return [[0.0] * len(pair_positions(len(c.responses))) for c in candidates]

    def response_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[float]:
        return [0.0] * len(candidates)


@dataclass(kw_only=True, eq=False)
class LengthMatched(PairChooser):
    """Labels a random share of the pairs whose two responses have nearly the same number of tokens.

    Args:
        tolerance: How much longer than the other a response may be, as a share; only if such pairs do not suffice, the
            next most alike follow.
    """

    direction: Direction = field(default="largest", init=False)
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tolerance >= 0:
            raise ValueError(
                f"tolerance={self.tolerance} matches no pair; choose callbacks.length_matched.tolerance>=0."
            )

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        return [length_matched([r.length for r in c.responses], self.tolerance) for c in candidates]
