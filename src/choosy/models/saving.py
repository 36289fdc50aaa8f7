"""The files of a trained policy, in Hugging Face format."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from choosy.files import replacing_files
from choosy.models.checksums import forget_checksums, write_checksums
from choosy.models.states import on_rank_0
from choosy.models.tokens import Tokens
from choosy.parallel.ranks import current_ranks


def write_policy(
    folder: str,
    model: PreTrainedModel | PeftModel,
    tokens: Tokens,
    *,
    dtype: torch.dtype,
    shared: Collection[str] | None = None,
) -> None:
    """Write the adapter, or the whole model in a precision, with its tokenizer, on rank 0.

    Args:
        shared: Names of the weights that are written, of which each rank holds a share; None = each holds all weights.
    """
    state: dict[str, Tensor] = model.state_dict()
    if shared is not None:  # every rank gathers
        state = on_rank_0({name: tensor for name, tensor in state.items() if name in shared})
    if current_ranks().rank > 0:
        return
    if not isinstance(model, PeftModel):
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    else:
        for config in model.peft_config.values():
            if (base := Path(config.base_model_name_or_path or "")).is_dir():  # loads from any folder
                config.base_model_name_or_path = str(base.resolve())
    forget_checksums(folder)
    with replacing_files(folder) as new:
        model.save_pretrained(str(new), state_dict=state)
        tokens.tokenizer.save_pretrained(str(new))
    write_checksums(folder)
