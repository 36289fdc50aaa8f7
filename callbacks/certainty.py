"""Active preference learning (arXiv 2402.08114): label the pairs that the implicit reward is most certain about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from callbacks.selector import PairChooser
from choosy.errors import refuse_unknown
from choosy.methods import selection
from choosy.models.rounding import Rescore, log_ratios
from choosy.rounds.context import Round
from choosy.types import Candidates


@dataclass(kw_only=True, eq=False)
class Certainty(PairChooser):
    """Labels the pairs with the largest |difference of implicit rewards|, where an error of the policy shows.

    Args:
        rescore: Whether log-probs are computed again in fp32, in two passes, which a policy in bf16 needs until it has
            moved by about a nat: `auto` computes them again in rounds in which rounding is larger than the gaps, and
            never for a policy in fp32; `never` takes those that sampling gave, and warns; `fp32` is for all rounds.
    """

    rescore: Rescore = "auto"
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unknown("callbacks.certainty.rescore", self.rescore, get_args(Rescore))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.datamodule.run.reference_share == 1:
            raise ValueError(
                "reference=previous_round makes the policy its own reference when pairs are chosen, so that certainty "
                "would draw lots; choose reference=initial, or another pair selector such as selector=dissimilarity."
            )

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        if at.policy.states.is_reference():
            ratios = [[0.0] * len(c.responses) for c in candidates]
        else:
            stale = at.ahead is not None
            ratios = log_ratios(at.policy, candidates, at.ranks, rescore=self.rescore, stale=stale)
        return [selection.certainty([at.loss.beta * ratio for ratio in of_prompt]) for of_prompt in ratios]
