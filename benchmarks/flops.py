"""The floating-point operations that passes of a model need, with the best rates of machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from choosy.models.policy import Policy
from choosy.models.rows import Group


def flops(policy: Policy, groups: Sequence[Group], *, train: bool = True) -> float:
    """Useful floating-point operations of one step: no padding, no recomputation, each prompt once.

    A frozen weight takes two products (forward, gradient of its input), a trained one three. Without `train` they are
    those of one forward pass without adapters.
    """
    model, config = policy.causal_lm, policy.causal_lm.config
    frozen = policy.lora is not None
    embedding = model.get_input_embeddings().weight.numel()
    adapters = sum(p.numel() for _, p in policy.trainable()) if frozen else 0
    base = sum(p.numel() for p in model.parameters()) - embedding - adapters
    tokens = sum(group.tokens for group in groups)
    predicted = sum(len(ids) for group in groups for ids in group.response_ids)
    products = (2 if frozen else 3) if train else 1
    linear = 2 * tokens * (base * products + (3 * adapters if train else 0))
    head = 2 * predicted * embedding * products
    seen = 0.0  # (query, key) pairs
    for prompt, responses, _ in groups:
        seen += len(prompt) ** 2 / 2
        seen += sum(len(ids) * len(prompt) + len(ids) ** 2 / 2 for ids in responses)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return linear + head + (3 if train else 1) * 4 * seen * width * config.num_hidden_layers


def matmul_peak(clock: Callable[[], float] = time.perf_counter) -> float:
    """The best rate of bf16 matrix products on this machine now, in FLOP/s."""
    best = 0.0
    for m, k, n in ((2048, 2048, 2048), (2048, 576, 1536)):
        one, other = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16)
        for _ in range(6):
            started = clock()
            torch.nn.functional.linear(one, other)
            best = max(best, 2 * m * k * n / (clock() - started))
    return best


PUBLISHED = {  # dense bf16 products of NVIDIA's data sheets in TFLOP/s, by what a card's name has; the first that fits
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H200 NVL": 835,
    "H100": 989,
    "H200": 989,
    "A100": 312,
}


def published_peak(card: str) -> float | None:
    """The FLOP/s that a card's data sheet promises for dense bf16 products; None of a card that is not known.

    Example:
        >>> published_peak("NVIDIA H100 80GB HBM3"), published_peak("NVIDIA H100 PCIe"), published_peak("cpu")
        (989000000000000.0, 756000000000000.0, None)
    """
    return next((tera * 1e12 for name, tera in PUBLISHED.items() if name in card), None)
