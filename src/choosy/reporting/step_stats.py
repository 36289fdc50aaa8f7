"""What one optimiser step shows: its loss, and the implicit rewards and log-probs of its items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from choosy.data.pool import PairKey


@dataclass(frozen=True)
class StepStats:
    """The forwards of a step as one rank, or all of them together, computed them.

    Attributes:
        loss: The step's loss: the weighted losses, summed and divided by the items of the step.
        reward_R: Implicit reward of every response, item after item.
        logp_R: Summed log-probability of every response.
        best_R: Whether a response is the best of its item.
        bad: The pairs whose loss is not finite.
    """

    loss: float
    reward_R: Tensor
    logp_R: Tensor
    best_R: Tensor
    bad: tuple[PairKey, ...] = ()

    @classmethod
    def sum(cls, parts: Sequence[StepStats]) -> StepStats:
        """The stats of several parts of one step."""
        none = torch.empty(0)
        return cls(
            sum(part.loss for part in parts),
            torch.cat([none, *(part.reward_R for part in parts)]),
            torch.cat([none, *(part.logp_R for part in parts)]),
            torch.cat([none.bool(), *(part.best_R for part in parts)]),
            tuple(key for part in parts for key in part.bad),
        )

    def metrics(self) -> dict[str, float]:
        """Rewards, accuracies, margins and log-probs under TRL's names; nothing of a step without items.

        Example:
            >>> reward_R, logp_R, best_R = map(torch.tensor, ([2.0, -1.0], [-3.0, -4.0], [True, False]))
            >>> metrics = StepStats(0.5, reward_R, logp_R, best_R).metrics()
            >>> {name: value for name, value in metrics.items() if name.startswith("rewards")}
            {'rewards/chosen': 2.0, 'rewards/rejected': -1.0, 'rewards/accuracies': 1.0, 'rewards/margins': 3.0}
        """
        if not len(self.best_R):
            return {}
        item_R = self.best_R.cumsum(0) - 1
        margin_R = (self.reward_R[self.best_R][item_R] - self.reward_R)[~self.best_R]
        found = {
            "rewards/chosen": self.reward_R[self.best_R].mean(),
            "rewards/rejected": self.reward_R[~self.best_R].mean(),
            "rewards/accuracies": (margin_R > 0).float().mean(),
            "rewards/margins": margin_R.mean(),
            "logps/chosen": self.logp_R[self.best_R].mean(),
            "logps/rejected": self.logp_R[~self.best_R].mean(),
        }
        return {name: value.item() for name, value in found.items()}
