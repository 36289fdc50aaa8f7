"""The floating-point operations that a training step needs."""

from __future__ import annotations

from choosy.models.policy import Policy
from choosy.models.rows import Group


def flops(policy: Policy, groups: list[Group]) -> float:
    """Useful floating-point operations of one step: no padding, no recomputation, each prompt once.

    A frozen weight takes two products (forward, gradient of its input), a trained one three.
    """
    model, config = policy.causal_lm, policy.causal_lm.config
    frozen = policy.lora is not None
    embedding = model.get_input_embeddings().weight.numel()
    adapters = sum(p.numel() for _, p in policy.trainable()) if frozen else 0
    base = sum(p.numel() for p in model.parameters()) - embedding - adapters
    tokens = sum(group.tokens for group in groups)
    predicted = sum(len(ids) for group in groups for ids in group.response_ids)
    linear = 2 * tokens * (base * (2 if frozen else 3) + 3 * adapters)
    head = 2 * predicted * embedding * (2 if frozen else 3)
    seen = 0.0  # (query, key) pairs
    for prompt, responses in groups:
        seen += len(prompt) ** 2 / 2
        seen += sum(len(ids) * len(prompt) + len(ids) ** 2 / 2 for ids in responses)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return linear + head + 3 * 4 * seen * width * config.num_hidden_layers
