"""Writes a tuned model as one whole model: in Hugging Face format, or as a file of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from choosy.console import hide_progress_bars
from choosy.files import replacing
from choosy.models.adapters import CONFIG
from choosy.models.checksums import write_checksums
from choosy.models.damaged import refusing_damaged
from choosy.models.trust import loaded

Whole = Literal["merged", "gguf"]


def write_whole(source: str, folder: Path, form: Whole, *, name: str = "model", trusted: bool = False) -> Path:
    """Write a tuned model into a folder that it replaces; return the file or the folder that is to be loaded.

    Args:
        source: The folder or hub id of an adapter, which is merged into its base, or of a model.
        folder: Where to.
        form: `merged` = in Hugging Face format, `gguf` = one file for llama.cpp.
        name: What a file for llama.cpp is called.
        trusted: Whether code that comes with the model may run.
    """
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from choosy.models.gguf_file import write_gguf

    hide_progress_bars()
    kind = AutoPeftModelForCausalLM if Path(source, CONFIG).is_file() else AutoModelForCausalLM
    with refusing_damaged(source):
        model = loaded(kind.from_pretrained, source, trusted=trusted, dtype="auto")
        tokenizer = loaded(AutoTokenizer.from_pretrained, source, trusted=trusted)
    whole = model.merge_and_unload() if kind is AutoPeftModelForCausalLM else model
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        if form == "gguf":
            file = write_gguf(whole, tokenizer, unfinished, name)
        else:
            whole.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
        write_checksums(unfinished)
    return folder / file.name if form == "gguf" else folder
