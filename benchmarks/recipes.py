"""Plays the recipes of conf/experiment on SmolLM2-135M, each once in some minutes, and tells what was seen.

`make recipes` plays all of them, `make recipes ONLY=hypo,bmc,kto` these. What a recipe showed is kept in
`benchmarks/results/recipes.json` and is not repeated, so that a killed command can be typed again; docs/methods.md has
the table.
Sizes and learning rates are those of a small model and few prompts, not the papers'; a run is of one seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from common import RESULTS, ROOT, busy_share, commit, machine, write_between
from faulty_judge import Asked, FaultyJudge

from choosy.data.reading import read_prompts
from choosy.labeling.vader import Vader
from choosy.models.locate import resolve_model
from choosy.models.policy import Policy
from choosy.reporting.summary import RunSummary, read_run
from choosy.sampling.generate import Generate
from choosy.types import Message, Prompt, Response, seed_of

RUNS = ROOT / "runs" / "recipes"
KEPT = RESULTS / "recipes.json"
PAGE, SEEN = ROOT / "docs" / "methods.md", "Seen on SmolLM2 ([how](#what-was-seen))"
START, END = "<!-- recipes: written by benchmarks/recipes.py -->", "<!-- end of recipes -->"
PROMPTS, TOKENS = 32, 24

EVERY = (
    *("trainer=cpu", "seed=0", f"data.limit={PROMPTS}", "data.heldout_limit=64", f"sampler.max_new_tokens={TOKENS}"),
    *("evaluation.sampler.temperature=1.0", "evaluation.sampler.top_p=1.0", "batching.batch_size=8"),
    *("warmup_steps=2", "callbacks.report.console=false", "callbacks.checkpoint.every_n_steps=0"),
)
GIVEN = ("data.train={given}", "data.heldout=choosy:prompts/heldout.jsonl", "labeler@labels.evaluation=vader")
ON_PAIRS = (*GIVEN, "epochs_per_round=4")
ONLINE = ("rounds=2", "epochs_per_round=2")
BY_VADER = (*ONLINE, "labeler=vader")
ALL_WEIGHTS, LORA = "lr=1e-5", "lr=2e-4"  # the papers' are for larger models and many more steps
RECIPES: Mapping[str, Sequence[str]] = {
    "hypo": (*GIVEN, LORA),
    "bmc": (*ON_PAIRS, ALL_WEIGHTS, "editor.model=smollm2", "editor.base_url={editor}"),
    "kto": (*ON_PAIRS, ALL_WEIGHTS),
    "wpo": (*BY_VADER, ALL_WEIGHTS),
    "ld_dpo": (*ON_PAIRS, ALL_WEIGHTS),
    "simpo": (*BY_VADER, ALL_WEIGHTS),
    "orpo": (*ON_PAIRS, ALL_WEIGHTS),
    "cpo": (*ON_PAIRS, LORA),
    "bco": (*ON_PAIRS, ALL_WEIGHTS),
    "rpo": (*BY_VADER, ALL_WEIGHTS, "data.responses=4"),
    "tr_dpo": (*BY_VADER, ALL_WEIGHTS),
    "ada_dpo": (*ON_PAIRS, LORA),
    "ra_dpo": (*ON_PAIRS, ALL_WEIGHTS),
    "spo": (*ON_PAIRS, LORA),
    "rdo": (*ON_PAIRS, ALL_WEIGHTS),
    "selm": (*BY_VADER, ALL_WEIGHTS),
    "xpo": (*BY_VADER, ALL_WEIGHTS),
    "pro": (*BY_VADER, ALL_WEIGHTS),
    "dlma": (*ONLINE, ALL_WEIGHTS, "labeler@labels.evaluation=vader"),
    "lora_litee": (
        *(*ONLINE, LORA, "labeler@labeler.paid=vader", "labeler.model.encoder=[demo:minilm,{policy}]"),
        *("labeler.min_labels=48", "labeler.model.max_length=96", "labeler@labels.evaluation=vader"),
    ),
}


def answers(policy: Policy, prompts: Sequence[Prompt], each: int, engine: Generate) -> list[list[str]]:
    """So many responses to each prompt, the same at every call."""
    ids = [policy.tokens.encode_prompt(prompt) for prompt in prompts]
    seeds = [[seed_of("recipes", prompt.id, n) for n in range(each)] for prompt in prompts]
    return [[r.text for r in of_prompt] for of_prompt in engine.sample(policy, ids, seeds)]


def given_pairs() -> list[dict[str, Any]]:
    """Of four responses of SmolLM2 to each prompt the best and the worst by VADER, with scores from 1 to 10.

    Beside them stands the worst as the same model rewrites it towards the best, for `bmc`.
    """
    policy = Policy("demo:smollm2")
    policy.load(device=torch.device("cpu"), seed=0)
    prompts = read_prompts("choosy:prompts/train.jsonl", as_chat=True, limit=PROMPTS)
    engine = Generate(temperature=0.7, top_p=0.9, max_new_tokens=TOKENS)
    rows, vader = [], Vader()
    for prompt, texts in zip(prompts, answers(policy, prompts, 4, engine), strict=True):
        scores = vader.score([(prompt, Response(text)) for text in texts])
        ranked = sorted(zip(scores, texts, strict=True))
        (low, worst), (high, best) = ranked[0], ranked[-1]
        ten = {"chosen_score": round(5.5 + 4.5 * high, 1), "rejected_score": round(5.5 + 4.5 * low, 1)}
        if low < high:
            rows.append({"prompt": prompt.text, "chosen": best, "rejected": worst, **ten})
    wanted = [
        f'Rewrite this sentence so that it sounds as cheerful as "{row["chosen"]}" Change only a few words.\n\n'
        f"{row['rejected']}"
        for row in rows
    ]
    asked = [Prompt(f"edit {n}", text, (Message("user", text),)) for n, text in enumerate(wanted)]
    edits = answers(policy, asked, 1, Generate(temperature=0.0, max_new_tokens=TOKENS))
    return [{**row, "edit": edit} for row, (edit,) in zip(rows, edits, strict=True)]


@contextmanager
def places(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """What stands in braces in the lines of recipes: the pairs' file, the editor's address, the policy's folder."""
    path, lines = RUNS / f"pairs_{PROMPTS}x{TOKENS}.jsonl", [line for name in names for line in RECIPES[name]]
    if not path.exists() and any("{given}" in line for line in lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in given_pairs()))
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    edits = {(row["chosen"].strip(), row["rejected"].strip()): row["edit"] for row in rows}

    def reply(asked: Asked) -> str:
        code = asked.user.split("lines that hold only ")[-1].split()[0].rstrip(".")
        return f"{code}\n{edits[asked.first.strip(), asked.second.strip()]}\n{code}"

    with FaultyJudge(reply) as editor:
        yield {"given": str(path), "editor": editor.url, "policy": resolve_model("demo:smollm2")}


def play(name: str, where: Mapping[str, str]) -> dict[str, Any]:
    """Play a recipe in a process of its own on one thread, and return what it showed."""
    folder, log = RUNS / name, RUNS / f"{name}.log"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed, or of other settings
    RUNS.mkdir(parents=True, exist_ok=True)
    typed = [line.format(**where) for line in (*EVERY, *RECIPES[name])]
    with log.open("w") as output:
        command = [sys.executable, ROOT / "train.py", f"experiment={name}", *typed, f"run_dir={folder}"]
        busy = busy_share(command, {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, output)
    return seen(read_run(folder), busy)


def seen(run: RunSummary, busy: float) -> dict[str, Any]:
    """The numbers of a run, and its answers to the first held-out prompt."""
    numbers, first = run.numbers(), run.answers[0]
    changes = [a.reward_after - a.reward_before for a in run.answers if None not in (a.reward_after, a.reward_before)]
    half = 1.96 * stdev(changes) / math.sqrt(len(changes))
    return {
        "reward": numbers["reward"],
        "change": [fmean(changes), fmean(changes) - half, fmean(changes) + half],
        "kl": run.last["kl"],
        "labels": numbers["labels"]["spent"],
        "items": numbers["pairs_trained"],
        "seconds": numbers["seconds"]["total"] * busy,
        "example": {"prompt": first.prompt, "before": first.before, "after": first.after},
    }


def table(kept: Mapping[str, Any]) -> list[str]:
    """The recipes that were played with the settings that stand here, those that were not, and what was typed."""
    played = {name: kept[name] for name in RECIPES if is_finished(name, kept)}
    lines = [
        "| `experiment=` | labels | reward, before | after | change, 95 % interval | KL | seconds |",
        *["|---|---|---|---|---|---|---|"],
    ]
    for name, one in played.items():
        before, after = one["reward"]["initial"], one["reward"]["final"]
        change, low, high = one["change"]
        lines.append(
            f"| `{name}` | {one['labels']} | {before:.2f} | {after:.2f} | {change:+.2f} ({low:+.2f} to {high:+.2f}) "
            f"| {one['kl']:.2f} | {one['seconds']:.0f} |"
        )
    if left := [f"`{name}`" for name in RECIPES if name not in played]:
        lines += ["", f"Not played yet: {', '.join(left)}."]
    return lines


def with_outcome(page: str, name: str, one: Mapping[str, Any]) -> str:
    """The page with what was seen of a recipe behind its method's command."""
    reward = " → ".join(f"{one['reward'][end]:.2f}" for end in ("initial", "final"))
    seen = f"{SEEN}: reward {reward}, KL {one['kl']:.2f}."
    command = re.compile(rf"(`experiment={name}\b.*?)(\n\n{re.escape(SEEN)}[^\n]*)?(?=\n\n)", re.DOTALL)
    return command.sub(lambda found: f"{found[1]}\n\n{seen}", page, count=1)


def write(kept: Mapping[str, Any]) -> None:
    """Put the table into docs/methods.md, and each recipe's outcome into its section."""
    write_between(PAGE, START, END, table(kept))
    for name in RECIPES:
        if is_finished(name, kept):
            PAGE.write_text(with_outcome(PAGE.read_text(), name, kept[name]))


def is_finished(name: str, kept: Mapping[str, Any]) -> bool:
    """Whether a recipe was played as it would be now."""
    return name in kept and kept[name]["typed"] == list(RECIPES[name]) and kept[name]["of_all"] == list(EVERY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="recipes, with commas between them (default: all)")
    names = [name for name in parser.parse_args().only.split(",") if name] or list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        sys.exit(f"no such recipe: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    kept = json.loads(KEPT.read_text())["recipes"] if KEPT.exists() else {}
    left = [name for name in names if not is_finished(name, kept)]
    print(f"{len(names) - len(left)} of {len(names)} recipes are finished", flush=True)
    with places(left) as where:
        for name in left:
            as_typed = {"commit": commit(), "typed": list(RECIPES[name]), "of_all": list(EVERY)}
            kept[name] = {**as_typed, **play(name, where)}
            KEPT.write_text(json.dumps({"machine": machine(), "recipes": kept}, indent=1) + "\n")
            write(kept)
            print(name, json.dumps({k: v for k, v in kept[name].items() if k not in as_typed}), flush=True)
    write(kept)


if __name__ == "__main__":
    main()
