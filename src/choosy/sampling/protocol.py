"""The protocol of the engines that sample responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from choosy.models.policy import Policy
from choosy.models.rows import Ids
from choosy.sampling.settings import SamplingSettings
from choosy.types import Candidates, Prompt, Response

Done = Callable[[Mapping[int, list[Response]]], None]


class Sampler(Protocol):
    """An engine that samples responses from the policy; all of them have `SamplingSettings` of their own.

    Attributes:
        temperature: See `SamplingSettings`.
        top_p: See `SamplingSettings`.
        top_k: See `SamplingSettings`.
        max_new_tokens: Longest response, end-of-sequence token included.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int

    @property
    def sync_seconds(self) -> float:
        """Seconds spent so far on copying the policy's weights into the engine; 0 where it needs no copy."""
        ...

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Ids],
        seeds: Sequence[Sequence[int]],
        *,
        settings: SamplingSettings | None = None,
        done: Done = lambda ended: None,
    ) -> list[list[Response]]:
        """Sample one response for each seed of each prompt; the same seed gives the same text.

        Args:
            policy: Whose responses.
            prompts: Token ids, chat template applied.
            seeds: Per prompt one seed a response.
            settings: The distribution of this call; None = the engine's own settings.
            done: Called during the sampling with the prompts that are complete: each one's position and all its
                responses. What it raises ends the sampling.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; the next call starts it again."""
        ...


def check_engine(engine: str, policy: Policy, prompt: Ids, response: Response) -> None:
    """Compare the log-prob that an engine gave a response with the policy's own.

    Raises:
        ValueError: They differ by more than rounding.
    """
    ((own,),) = policy.score([Candidates(Prompt("", ""), (response,), tuple(prompt))])
    n = len(response.ids)
    rounding = 0.01 * n if policy.compute_dtype == torch.float32 else 0.5 + 0.2 * n
    if abs(own - response.logp) > rounding:
        raise ValueError(
            f"sampler={engine} gave a response of {n} tokens the log-probability {response.logp:.2f}, and the policy "
            f"gives it {own:.2f}: the engine samples another model than {policy.source.name} as it is trained. Choose "
            "another sampler, or another adapter."
        )


def as_response(policy: Policy, ids: Sequence[int], logp: float) -> Response:
    """Make a response of sampled token ids; a token that ended it stays in the ids, not in the text."""
    finished = bool(ids) and ids[-1] in policy.tokens.stop_ids
    return Response(policy.decode(ids).strip(), tuple(ids), finished, logp)
