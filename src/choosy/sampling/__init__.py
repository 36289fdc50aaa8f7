"""Sampling: from prompts to fresh responses, one protocol, one file an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from choosy.logprobs import Ids
from choosy.policy import Policy
from choosy.types import Response


class Sampler(Protocol):
    """Any engine that samples responses from the policy."""

    max_new_tokens: int

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Ids],
        seeds: Sequence[Sequence[int]],
        *,
        plain: bool = False,
        tick: Callable[[int], None] = lambda n: None,
    ) -> list[list[Response]]:
        """One response for each seed of each prompt; the same seed gives the same text.

        Args:
            policy: Whose responses.
            prompts: Token ids, chat template applied.
            seeds: Per prompt one seed a response.
            plain: Sample the policy as it is, at temperature 1 and from all tokens, whatever the engine's settings.
            tick: Called with the number of prompts that are done.
        """
        ...
