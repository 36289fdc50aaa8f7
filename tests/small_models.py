"""The size of the random models that tests build."""

from __future__ import annotations

from typing import Any

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # with a tenth, the default, every token is as likely as any other and no mistake shows
}
