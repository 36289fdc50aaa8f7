"""The model card of a tuned model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from choosy.reporting.summary import OF_PAIRS, RunSummary
from choosy.version import __version__

CARD = """---
{front}
---

# {title}

{base} tuned on preferences with Choosy. {headline}.

| | |
|---|---|
{rows}

```python
{code}
```
"""

IMPORTS = {
    "AutoPeftModelForCausalLM": "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer",
    "AutoModelForCausalLM": "from transformers import AutoModelForCausalLM, AutoTokenizer",
}
CODE = """{imports}
model = {loader}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
inputs = tokenizer{call}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))"""

CHAT = """.apply_chat_template(
    [{"role": "user", "content": "Hello!"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""


def model_card(run: RunSummary, facts: Mapping[str, str], *, base: str, folder: str, chat: bool) -> str:
    """Return the card of a run's tuned model, in Markdown with the hub's front matter.

    Args:
        run: What the run's files say.
        facts: What the run was made of, as rows of the table.
        base: The hub id of the base model, or the name of its folder.
        folder: The folder of the tuned model in the run's: `adapter` or `model`.
        chat: Whether the model has a chat template.
    """
    adapter = folder == "adapter"
    libraries = ("torch", "transformers", *(["peft"] if adapter else []))
    last = run.last
    measured = {
        "held-out win rate against the start": _interval(last, "win_rate", ".0%"),
        "held-out reward": " → ".join(filter(None, (_interval(look, "reward", ".3g") for look in (run.start, last)))),
        **{f"held-out {name}": run.course(name) for name in OF_PAIRS},
        "cost": run.costs,
        "versions": ", ".join([f"choosy {__version__}", *(f"{name} {version(name)}" for name in libraries)]),
    }
    rows = {name: text for name, text in {"base model": base, **facts, **measured}.items() if text}
    front = [
        *([f"base_model: {base}"] if "/" in base else []),
        f"library_name: {'peft' if adapter else 'transformers'}",
    ]
    loader = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    call = CHAT if chat else '("Hello!", return_tensors="pt")'
    code = CODE.format(imports=IMPORTS[loader], loader=loader, folder=folder, call=call)
    return CARD.format(
        front="\n".join([*front, "pipeline_tag: text-generation", "tags: [choosy, preference-tuning]"]),
        title=run.folder.resolve().name,
        base=base,
        headline=run.headline,
        rows="\n".join(f"| {name} | {text} |" for name, text in rows.items()),
        code=code,
    )


def _interval(measured: Mapping[str, float | None], name: str, form: str) -> str:
    """A measured number with its 95 % interval; "" if there is none."""
    value, low, high = (measured.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return ""
    return f"{value:{form}}" + ("" if low is None or high is None else f" ({low:{form}} to {high:{form}})")
