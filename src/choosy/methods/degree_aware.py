"""SPO: any loss of responses, and one of how much of a good response is missing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.methods.keywords import without_keywords
from choosy.methods.loss_inputs import Loss, LossInputs, Need


@dataclass(frozen=True)
class DegreeAwareLoss:
    """Any loss plus share * cross-entropy of degrees of preference, SPO (arXiv 2409.17791).

    The best response of an item is also given without some of its key phrases (RAKE): of C degrees the d-th, from 0 on,
    leaves out d / (C - 1) of them. A linear head on the policy's last hidden state says which degree it sees; the term
    is the mean of -log p(degree) over an item's variants. An item whose response has no key phrase costs nothing more.

    Args:
        loss: The loss.
        degrees: C, at least 2.
        share: The paper's gamma.

    Example:
        >>> from choosy.methods.loss_inputs import Degrees
        >>> from choosy.methods.losses import SigmoidLoss
        >>> seen = Degrees(torch.zeros(2, 4), torch.tensor([0, 3]), torch.tensor([0, 0]))
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[2], degrees=seen)
        >>> DegreeAwareLoss(SigmoidLoss(), degrees=4, share=0.1).items(s)  # 0.4032 + 0.1 * log 4
        tensor([0.5418])
    """

    loss: Loss
    degrees: int = 4
    share: float = 0.1

    def __post_init__(self) -> None:
        if self.degrees < 2:
            raise ValueError(f"loss.degrees={self.degrees} leaves nothing to tell apart; choose loss.degrees >= 2.")
        if not self.share >= 0:
            raise ValueError(f"loss.share={self.share} is no share; choose loss.share >= 0.")

    @property
    def beta(self) -> float:
        return self.loss.beta

    @property
    def needs(self) -> frozenset[Need]:
        return self.loss.needs | {"degrees"}

    def variants(self, text: str) -> dict[int, str]:
        """The response at each degree, the whole one first; a degree that has the words of another is left out.

        Example:
            >>> from choosy.methods.losses import SigmoidLoss
            >>> DegreeAwareLoss(SigmoidLoss(), degrees=3).variants("The red fox jumps. Dogs sleep.")
            {0: 'The red fox jumps. Dogs sleep.', 1: 'The . Dogs sleep.', 2: 'The . .'}
            >>> DegreeAwareLoss(SigmoidLoss()).variants("Yes, it is.")  # a single key phrase
            {0: 'Yes, it is.', 3: ', it is.'}
        """
        degrees: dict[str, int] = {}
        for degree in range(self.degrees):
            degrees.setdefault(without_keywords(text, degree / (self.degrees - 1)), degree)
        return {degree: variant for variant, degree in degrees.items() if variant}

    def items(self, s: LossInputs) -> Tensor:
        loss_B = self.loss.items(s)
        if s.degrees is None:  # of held-out pairs
            return loss_B
        logits_VC, degree_V, item_V = s.degrees
        entropy_V = F.cross_entropy(logits_VC, degree_V, reduction="none")
        none_B = entropy_V.new_zeros(len(s))
        count_B = none_B.index_add(0, item_V, torch.ones_like(entropy_V))
        return loss_B + self.share * none_B.index_add(0, item_V, entropy_V) / count_B.clamp(min=1)

    def rewards(self, s: LossInputs) -> Tensor:
        return self.loss.rewards(s)
