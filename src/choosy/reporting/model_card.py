"""The model card of a tuned model."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from choosy.data.sources import PACKAGED
from choosy.files import replacing
from choosy.options.fit_words import PLAY_SEVERAL
from choosy.options.typed import in_the_shell
from choosy.reporting.courses import Interval
from choosy.reporting.summary import MEASURES, TRAINING, RunSummary
from choosy.reporting.sweeps import OF_ONE_RUN, words_of
from choosy.version import __version__

Form = Literal["adapter", "model", "merged", "gguf"]
PICTURE = "curves.png"
CARD = """---
{front}
---

# {title}

{base} tuned on preferences with Choosy. {headline}.

![what was measured against labels, tokens and seconds]({picture})

## Results

{results}

## How it was tuned

{facts}

## How to load it

{code}

## How to repeat it

{repeat}
"""

CHAT = """.apply_chat_template(
    [{"role": "user", "content": "Hello!"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
CODE = """```python
{imports}
model = {loader}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
inputs = tokenizer{call}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```"""
IMPORTS = {
    "AutoPeftModelForCausalLM": "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer",
    "AutoModelForCausalLM": "from transformers import AutoModelForCausalLM, AutoTokenizer",
}
LLAMA_CPP = """```
llama-server -m {file}
```"""
LIBRARY = {"adapter": "peft", "model": "transformers", "merged": "transformers", "gguf": "gguf"}
RELATION = {"adapter": "adapter", "model": "finetune", "merged": "finetune", "gguf": "quantized"}  # as the hub has it
WORD = re.compile(rf"""(?:{PACKAGED}|\w+://|[A-Za-z]:(?=[/\\]))?[^\s'"\[\]{{}},:=]+""")
DIVIDED = re.compile(r"""(?:(?<=^)|(?<=['"]))(?:~?/|[A-Za-z]:[/\\])[^'"\[\]{},]*""")  # from the start or a quote on
ELSEWHERE = re.compile(r"(?!file:)\w+://[^/]")  # an address with a host; file:///a and sqlite:////a have a path here


def model_card(
    run: RunSummary, facts: Mapping[str, str], *, base: str, data: Sequence[str], judged: str, form: Form, chat: bool
) -> str:
    """Return the card of a run's tuned model, in Markdown with the hub's front matter.

    Args:
        run: What the run's files say.
        facts: What the run was made of, as rows of a table.
        base: The hub id of the base model, or the name of its folder.
        data: The hub ids of the data sets, and the names of the files.
        judged: The name of the held-out data.
        form: In what form the model is in its folder.
        chat: Whether the model has a chat template.
    """
    libraries = ("torch", "transformers", *(["peft"] if form == "adapter" else []))
    of_tools = ", ".join([f"choosy {__version__}", *(f"{name} {version(name)}" for name in libraries)])
    made = {"base model": base, **facts, "cost": run.costs, "versions": of_tools}
    title = run.folder.resolve().name
    return CARD.format(
        front=_front(run, title, base=base, data=data, judged=judged, form=form),
        title=title,
        base=base,
        headline=run.headline,
        picture=PICTURE,
        results=_results(run),
        facts=_table(("", ""), ([name, text] for name, text in made.items() if text)),
        code=_code(form, form, chat=chat),
        repeat=repeated(run.folder),
    )


def _front(run: RunSummary, title: str, *, base: str, data: Sequence[str], judged: str, form: Form) -> str:
    """The hub's front matter: what the model is of, and what was measured, as the hub lists it."""
    from huggingface_hub import EvalResult, ModelCardData

    found = {"win_rate": "win rate against the start", "reward": "reward", "accuracy": "accuracy on held-out pairs"}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=judged,
            dataset_name=judged,
            metric_type=name,
            metric_name=what,
            metric_value=round(value, 4),
        )
        for name, what in found.items()
        if (value := run.last.get(name)) is not None
    ]
    is_known = "/" in base
    return ModelCardData(
        base_model=base if is_known else None,
        base_model_relation=RELATION[form] if is_known else None,
        datasets=[name.partition(":")[0] for name in data if "/" in name and not name.startswith(PACKAGED)] or None,
        library_name=LIBRARY[form],
        pipeline_tag="text-generation",
        tags=["choosy", "preference-tuning"],
        model_name=title,
        eval_results=results or None,
    ).to_yaml()


def _results(run: RunSummary) -> str:
    rows = [
        ["win rate against the start", "", _interval(run.last, "win_rate", ".0%")],
        ["win rate at equal lengths", "", _interval(run.last, "win_rate_lc", ".0%")],
    ]
    for name in (name for name in run.measures if name not in ("win_rate", "ties", *TRAINING)):
        form = MEASURES[name][1].replace(".2f", ".3g")
        rows.append([MEASURES[name][0], *(_interval(measured, name, form) for measured in (run.start, run.last))])
    table = _table(("held out", "start", "tuned"), (row for row in rows if row[2]))
    shown = [*([table] if run.evaluated else []), *(["In brackets: 95 % intervals."] if " to " in table else [])]
    return "\n\n".join([*shown, run.notes] if run.notes else shown)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def _interval(measured: Mapping[str, float | None], name: str, form: str) -> str:
    """A measured number with its 95 % interval; "" if there is none."""
    value, low, high = (measured.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return ""
    known = "" if low is None or high is None else Interval(value, low, high).ends(form)
    return f"{value:{form}}" + (f" ({known})" if known else "")


def _code(form: Form, name: str, *, chat: bool) -> str:
    """The lines that load the model by the name of its folder or file, or of its repository."""
    if form == "gguf":
        return LLAMA_CPP.format(file=name)
    loader = "AutoPeftModelForCausalLM" if form == "adapter" else "AutoModelForCausalLM"
    call = CHAT if chat else '("Hello!", return_tensors="pt")'
    return CODE.format(imports=IMPORTS[loader], loader=loader, folder=name, call=call)


def repeated(run_dir: Path) -> str:
    """Return how the run is repeated: the words that were typed, files by their names.

    A run that LightningCLI or a program has composed is repeated by its config.yaml.
    """
    words = words_of(run_dir)
    typed, files = ["fit", "--config", "config.yaml"], ["config.yaml"]
    if words is not None:
        names = [(word, word.lstrip("+~").split("=")[0]) for word in words]
        kept = [word for word, name in names if name not in OF_ONE_RUN and name.partition(".")[0] != "logger"]
        found = [without_paths(word) for word in in_the_shell(kept)]
        if {*PLAY_SEVERAL} & {*kept}:
            found.append(("name=again", []))  # without a name it would be a sweep
        typed, files = ["train", *(word for word, _ in found)], [name for _, names in found for name in names]
    command = f"```\npip install choosy-tuning=={__version__}\n{shlex.join(['choosy', *typed])}\n```"
    needed = ", ".join(f"`{name}`" for name in dict.fromkeys(files))
    return command + (f"\n\nIt needs what is not published here: {needed}." if needed else "")


def without_paths(word: str) -> tuple[str, list[str]]:
    """Return a word of a command line with the files and folders of this machine by their names, and these names.

    Example:
        >>> without_paths("data.train=[/data/a.jsonl,owner/set:train,./b.csv]")
        ('data.train=[a.jsonl,owner/set:train,b.csv]', ['a.jsonl', 'b.csv'])
        >>> without_paths("data.train='/home/ann lee/a.jsonl'")
        ("data.train='a.jsonl'", ['a.jsonl'])
        >>> without_paths("labeler.base_url=http://localhost:8000/v1")
        ('labeler.base_url=http://localhost:8000/v1', [])
        >>> without_paths("labels.ledger=sqlite:////data/x.db")
        ('labels.ledger=x.db', ['x.db'])
        >>> without_paths("~logger.tensorboard")
        ('~logger.tensorboard', [])
    """
    name, equals, value = word.partition("=") if "=" in word else ("", "", word)
    folders = not equals or name.startswith("model.")  # elsewhere a choice may be called like a folder that is here
    text, of_whole = by_last_part(value)
    text, names = by_name(text, folders=folders)
    return name + equals + text, of_whole + names


def by_last_part(value: str) -> tuple[str, list[str]]:
    """Return a text with each whole path that a blank or an equals sign divides by its last part, and these parts.

    Example:
        >>> by_last_part("['/home/ann lee/a.jsonl',/b/c.jsonl]")
        ("['a.jsonl',/b/c.jsonl]", ['a.jsonl'])
    """
    names: list[str] = []

    def named(found: re.Match[str]) -> str:
        if not re.search(r"[\s=]", found[0]):
            return found[0]
        names.append(re.split(r"[/\\]", found[0].rstrip("/\\"))[-1])
        return names[-1]

    return DIVIDED.sub(named, value), names


def by_name(value: str, *, folders: bool) -> tuple[str, list[str]]:
    """Return a text with the files of this machine by their names, and these names; `folders`: its folders, too."""
    names: list[str] = []

    def named(found: re.Match[str]) -> str:
        text = found[0]
        path = Path(os.path.expanduser(text))  # Path's own raises where ~word names no user, as in ~logger.tensorboard
        if text.startswith(PACKAGED) or ELSEWHERE.match(text):
            return text
        is_path = re.search(r"[/\\]", text) and (text.count("/") != 1 or text[0] in "./~" or path.exists())
        if is_path or path.is_file() or (folders and path.is_dir()):
            names.append(re.split(r"[/\\]", text.rstrip("/"))[-1])
            return names[-1]
        if (module := Path(f"{text.partition('.')[0]}.py")).is_file() and "." in text:
            names.append(module.name)
        return text

    return WORD.sub(named, value), names


def is_ours(card: str) -> bool:
    r"""Whether Choosy has written a card, this version or an earlier one.

    Example:
        >>> is_ours("---\ntags:\n- choosy\n---\n"), is_ours("---\ntags: [choosy, x]\n---\n"), is_ours("# choosy")
        (True, True, False)
    """
    head, fence, _ = card.partition("\n---\n")
    return bool(fence) and re.search(r"^(- choosy|tags: \[choosy, .*)$", head, re.MULTILINE) is not None


def copy_card(source: Path, folder: Path, form: Form) -> None:
    """Copy the card of a tuned model that Choosy has written, with its picture, for the same model in another form."""
    card = source / "README.md"
    if not card.is_file() or not is_ours(text := card.read_text(encoding="utf-8")):
        return
    name = next((file.name for file in folder.glob("*.gguf")), folder.name)
    code = _code(form, name, chat="apply_chat_template" in text)
    text = re.sub(r"```python\n.*?```", lambda _: code, text, count=1, flags=re.DOTALL)
    text = re.sub(r"^library_name: .*$", f"library_name: {LIBRARY[form]}", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^base_model_relation: .*$", f"base_model_relation: {RELATION[form]}", text, count=1, flags=re.M)
    with replacing(folder / "README.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    if (source / PICTURE).is_file():
        shutil.copyfile(source / PICTURE, folder / PICTURE)


def with_base(card: str, base: str) -> str:
    """Return a card that Choosy has written, naming the base model by its hub id."""
    head, fence, body = card.removeprefix("---\n").partition("---\n")
    relations = [RELATION[form] for form, name in LIBRARY.items() if f"library_name: {name}\n" in head]
    kept = [line for line in head.splitlines() if not line.startswith("base_model")]
    body = re.sub(r"^\| base model \| .* \|$", f"| base model | {base} |", body, count=1, flags=re.MULTILINE)
    body = re.sub(r"^.+ (?=tuned on preferences with Choosy)", f"{base} ", body, count=1, flags=re.MULTILINE)
    kept += [f"base_model_relation: {relation}" for relation in relations[:1]]
    return "\n".join(["---", f"base_model: {base}", *kept, fence + body])


def on_the_hub(card: str, repo: str) -> str:
    """Return a card that Choosy has written, whose code loads the model from the hub."""
    card = re.sub(r'from_pretrained\("[^"]*"\)', f'from_pretrained("{repo}")', card)
    return re.sub(r"^llama-server -m .*$", f"llama-server -hf {repo}", card, flags=re.MULTILINE)
