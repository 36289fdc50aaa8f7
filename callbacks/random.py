"""The control of every experiment: prompts or pairs at random, at the same budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from callbacks.selector import PairChooser, PromptChooser
from choosy.methods.selection import Direction, pair_positions
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
    """Labels a random share of the pairs."""

    direction: Direction = field(default="largest", init=False)

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        return [[0.0] * len(pair_positions(len(c.responses))) for c in candidates]
