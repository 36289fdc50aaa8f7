"""Sampling: from prompts to fresh responses, one protocol, one file an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from choosy.models.logprobs import Ids
from choosy.models.policy import Policy
from choosy.types import Response

Done = Callable[[Mapping[int, list[Response]]], None]


class Sampler(Protocol):
    """Any engine that samples responses from the policy.

    Attributes:
        max_new_tokens: Longest response, end-of-sequence token included.
        sync_seconds: Seconds spent so far on handing the policy's weights to the engine; 0 where it needs no copy.
    """

    max_new_tokens: int
    sync_seconds: float

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Ids],
        seeds: Sequence[Sequence[int]],
        *,
        plain: bool = False,
        done: Done = lambda ended: None,
    ) -> list[list[Response]]:
        """One response for each seed of each prompt; the same seed gives the same text.

        Args:
            policy: Whose responses.
            prompts: Token ids, chat template applied.
            seeds: Per prompt one seed a response.
            plain: Sample the policy as it is, at temperature 1 and from all tokens, whatever the engine's settings.
            done: Called while sampling goes on with the prompts that have ended together: of each its position and all
                its responses. What it raises ends the sampling.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; it may be used again, and starts anew then."""
        ...


def refuse_settings(*, temperature: float, top_p: float, top_k: int, max_new_tokens: int, batch_size: int) -> None:
    """Settings that every engine has, refused where they would sample nothing.

    Raises:
        ValueError: One of them is out of range.
    """
    for name, value, ok, wanted in (
        ("temperature", temperature, temperature >= 0, ">= 0"),
        ("top_p", top_p, 0 < top_p <= 1, "in (0, 1]"),
        ("top_k", top_k, top_k >= 0, ">= 0 (0 = all tokens)"),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, ">= 1"),
        ("batch_size", batch_size, batch_size >= 1, ">= 1"),
    ):
        if not ok:
            raise ValueError(f"sampler.{name}={value} samples nothing; choose {wanted}.")


def as_response(policy: Policy, ids: Sequence[int], logp: float) -> Response:
    """Sampled token ids with their text; the end-of-sequence token stays in the ids, where there is one."""
    finished = bool(ids) and ids[-1] in policy.stop_ids
    return Response(policy.decode(ids).strip(), tuple(ids), finished, logp)
