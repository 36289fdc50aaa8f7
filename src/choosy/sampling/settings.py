"""How responses are sampled: the settings that every engine has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, eq=False)
class SamplingSettings:
    """The distribution that responses are drawn from, for an engine's every call or for one.

    Args:
        temperature: 1 samples the policy itself; smaller is sharper; 0 takes the likeliest token.
        top_p: Smallest share of probability that the candidate tokens must reach; 1 = all tokens.
        top_k: Most candidate tokens; 0 = all.
        max_new_tokens: Longest response, end-of-sequence token included.

    Example:
        >>> SamplingSettings(max_new_tokens=32).is_policy, SamplingSettings(top_p=0.9).is_policy
        (True, False)
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        for name, is_in_range, wanted in (
            ("temperature", self.temperature >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, ">= 0 (0 = all tokens)"),
            ("max_new_tokens", self.max_new_tokens >= 1, ">= 1"),
        ):
            if not is_in_range:
                raise ValueError(f"sampler.{name}={getattr(self, name)} samples nothing; choose {wanted}.")

    @property
    def is_policy(self) -> bool:
        """Whether the samples are the policy's own distribution, so that their log-probs estimate its entropy."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k == 0
