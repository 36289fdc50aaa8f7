"""How closely the reference follows the policy from round to round."""

from __future__ import annotations

from typing import Literal

from choosy.models.policy import Policy

Reference = Literal["initial", "previous_round"] | float


def policy_share(reference: Reference) -> float:
    """The share of the policy's weights in the reference of the next round; the rest are the old reference's.

    0 keeps the start, 1 takes the policy as it is (TR-DPO's hard update, arXiv 2404.09656), what lies between mixes the
    two (its soft update).

    Raises:
        ValueError: It is neither a word that is known nor such a share.

    Example:
        >>> policy_share("initial"), policy_share("previous_round"), policy_share(0.6)
        (0.0, 1.0, 0.6)
    """
    share = {"initial": 0.0, "previous_round": 1.0}.get(str(reference), reference)
    if not isinstance(share, int | float) or (reference != "initial" and not 0 < share <= 1):
        raise ValueError(
            f"reference={reference} is none of initial, previous_round, or the policy's share in (0, 1] of the next "
            "round's reference."
        )
    return float(share)


def refuse_mixed_adapters(reference: Reference, policy: Policy) -> None:
    """Refuse to mix the weights of adapters."""
    if 0 < policy_share(reference) < 1 and policy.lora is not None:
        raise ValueError(
            f"reference={reference} mixes weights, and the product of an adapter's mixed factors is not the mixture of "
            "their products: type model=smollm2_full (model.lora=null), or reference=previous_round."
        )


def refuse_moving(reference: Reference, embedder: str) -> None:
    """Refuse to embed with a reference that moves, since embeddings of several rounds are compared."""
    if embedder == "policy" and policy_share(reference):
        raise ValueError(
            f"learned_reward.embedder=policy embeds with the reference, which reference={reference} moves: type "
            "reference=initial, or learned_reward.embedder=minilm."
        )
