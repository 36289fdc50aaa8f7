"""A head on the policy that tells how much of a response's key phrases is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from choosy.methods.loss_inputs import Degrees
from choosy.models.policy import Policy
from choosy.models.rows import Group


class DegreeHead(nn.Module):
    """A linear head on the policy's last hidden state, in fp32; all degrees are equally likely at the start."""

    def __init__(self, policy: Policy, degrees: int) -> None:
        super().__init__()
        width = policy.causal_lm.config.get_text_config().hidden_size
        self.linear = nn.Linear(width, degrees, device=policy.device)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Forget what was learned."""
        for weight in self.linear.parameters():
            weight.zero_()

    def forward(self, policy: Policy, groups: Sequence[Group], variants: Sequence[Mapping[int, str]]) -> Degrees:
        """What the head says of the variants of each group's best response, by their degrees.

        A group whose response has fewer than two variants is left out; without any the gradient is 0.
        """
        encode = policy.tokens.encode_response
        several = [n for n, of_item in enumerate(variants) if len(of_item) > 1]
        shown = [
            Group(
                groups[n].prompt_ids,
                [encode(text) if degree else groups[n].response_ids[0] for degree, text in variants[n].items()],
            )
            for n in several
        ]
        nothing = [Group(groups[0].prompt_ids, groups[0].response_ids[:1])]  # for a rank beside others that have some
        logits_VC = self.linear(policy.final_states(shown or nothing).float())
        degree_V = torch.tensor([d for n in several for d in variants[n]], dtype=torch.long, device=logits_VC.device)
        item_V = torch.tensor([n for n in several for _ in variants[n]], dtype=torch.long, device=logits_VC.device)
        return Degrees(logits_VC[: len(degree_V)], degree_V, item_V)
