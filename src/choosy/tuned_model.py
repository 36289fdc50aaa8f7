"""Uses the tuned model of a run: evaluates it on other prompts, merges its adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choosy.console import hide_progress_bars
from choosy.files import replacing
from choosy.labeling.run_ledger import ledger_of
from choosy.main import built, compose, plain
from choosy.models.damaged import refusing_damaged
from choosy.models.trust import loaded
from choosy.options.typed import quoted
from choosy.options.words import Words
from choosy.reporting.summary import refuse_sweep
from choosy.sealed import read_yaml
from choosy.terminal import say
from choosy.types import Candidates, Prompt, seed_of

if TYPE_CHECKING:  # functions import torch and transformers once the words of the command are read
    from choosy.labeling.buyer import LabelBuyer
    from choosy.models.policy import Policy
    from choosy.sampling.generate import Generate


@dataclass(frozen=True)
class TunedRun:
    """The folder of a run that has written its tuned model.

    Attributes:
        folder: The run's folder.
        config: What `config.yaml` holds.
        model: The folder of the tuned model: an adapter, or all weights.
    """

    folder: Path
    config: dict[str, Any]
    model: Path

    @classmethod
    def open(cls, folder: str) -> TunedRun:
        """Find a run's tuned model; a ValueError if it has none."""
        path = Path(folder)
        if not (path / "config.yaml").is_file():
            refuse_sweep(path)
            raise ValueError(f"{folder} is not the folder of a run: it has no config.yaml; type one such as runs/demo.")
        model = next((path / name for name in ("adapter", "model") if (path / name).is_dir()), None)
        if model is None:
            raise ValueError(f"{folder} has no tuned model yet; resume the run with ckpt_path=last.")
        config = read_yaml(path / "config.yaml")
        if "evaluation" not in config:
            raise ValueError(f"{folder} was composed by LightningCLI; this command reads what `choosy train` composed.")
        return cls(path, config, model)

    @classmethod
    def open_or_merged(cls, folder: str) -> TunedRun:
        """Find a run's tuned model, or take a model's folder such as `choosy merge` writes, with default settings."""
        path = Path(folder)
        if (path / "config.yaml").is_file() or not (path / "config.json").is_file():
            return cls.open(folder)
        return cls(path, plain(compose([f"model.name={quoted(folder)}", "model.lora=null"])), path)

    @property
    def trusted(self) -> bool:
        """Whether the run was allowed to run code that comes with its model."""
        return bool(self.config["module"]["policy"].get("trust_remote_code", False))

    @property
    def sampler(self) -> Generate:
        """The sampler of held-out answers."""
        from choosy.sampling.generate import Generate

        settings = self.config["evaluation"]["sampler"]
        return Generate(**{name: value for name, value in settings.items() if name != "_target_"})

    def policy(self, *, start: bool = False) -> Policy:
        """Load the tuned policy, or the one that the run started from."""
        import torch

        named = dict(self.config["module"]["policy"])
        if not start:
            is_adapter = (self.model / "adapter_config.json").is_file()
            named |= {"adapter" if is_adapter else "name": str(self.model)}
        policy: Policy = built(named)
        policy.load(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"), seed=self.config["seed"])
        return policy

    def judge(self) -> LabelBuyer | None:
        """Who judges held-out answers in this run, if anybody can; its labels are kept in the run's ledger."""
        from choosy.resume.run_folder import run_id

        named = {**self.config["labels"], "budget": None, "budget_money": None}
        named["ledger"] = str(ledger_of(self.folder))
        labels: LabelBuyer = built(named)
        labels.open(f"{run_id(self.folder)}#eval")
        return None if labels.evaluator is None or labels.evaluator.terms.given_only else labels.evaluator


def answers(run: TunedRun, policy: Policy, prompts: Sequence[Prompt]) -> list[Candidates]:
    """Sample one answer to each prompt."""
    ids = [policy.tokens.encode_prompt(prompt) for prompt in prompts]
    seeds = [[seed_of(run.config["seed"], "eval", prompt.id)] for prompt in prompts]
    sampled = run.sampler.sample(policy, ids, seeds)
    return [Candidates(p, tuple(of_prompt), i) for p, of_prompt, i in zip(prompts, sampled, ids, strict=True)]


def evaluate_run(words: list[str]) -> None:
    """Compare the tuned model's answers to other prompts with the start's."""
    parser = Words("choosy eval", description="Compare the answers of a run's tuned model with the start's.")
    parser.add_argument("run_dir", metavar="RUN", help="the folder of the run")
    parser.add_argument("prompts", help="what to answer: a file or another source, as data.heldout is")
    parser.add_argument("--limit", type=int, help="the most prompts")
    typed = parser.parse_args(words)
    run = TunedRun.open(typed.run_dir)
    from choosy.reporting.display import quiet
    from choosy.rounds.evaluate import OUTCOME, evaluate

    quiet()
    tuned = run.policy()
    judge = run.judge()
    prompts = built(run.config["data"]["reader"]).prompts(typed.prompts, tuned, limit=typed.limit, judge=judge)
    now = answers(run, tuned, prompts)
    del tuned
    before = {c.prompt.id: c for c in answers(run, run.policy(start=True), prompts)}
    found = evaluate(now, before, judge)
    names = {value: name for name, value in {"won": OUTCOME["first"], "tied": OUTCOME["tie"], "lost": 0.0}.items()}
    rows = [
        {"prompt": row["prompt"], "tuned": row["responses"][0], "start": row["responses"][1]}
        | {"rewards": row["rewards"], "outcome": names.get(row["outcome"])}
        for row in found.rows
    ]
    out = run.folder / "eval" / f"{Path(typed.prompts).stem}.jsonl"
    with replacing(out, private=True) as unfinished:
        unfinished.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    measured = found.metrics
    parts = [f"{len(rows)} prompts answered"]
    if measured["win_rate"] is not None:
        low, high = measured["win_rate_low"], measured["win_rate_high"]
        parts.append(f"win rate {measured['win_rate']:.0%} against the start ({low:.0%} to {high:.0%})")
    if measured["reward"] is not None:
        parts.append(f"mean reward {measured['reward']:.3g}")
    if judge is None:
        parts.append("not judged, as the run has no labeler for sampled answers")
    say(", ".join(parts))
    say(out)


def merge(words: list[str]) -> None:
    """Write the tuned model as one model, without an adapter."""
    parser = Words("choosy merge", description="Write a run's tuned model as one model, its adapter merged in.")
    parser.add_argument("run_dir", metavar="RUN", help="the folder of the run")
    parser.add_argument("folder", metavar="DIR", help="a new folder for the model")
    typed = parser.parse_args(words)
    run, folder = TunedRun.open(typed.run_dir), Path(typed.folder)
    if run.model.name == "model":
        raise ValueError(
            f"The run has tuned all weights, and {run.model} is the whole model; there is nothing to merge."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; type a new folder.")
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    hide_progress_bars()
    with refusing_damaged(str(run.model)):
        model = loaded(AutoPeftModelForCausalLM.from_pretrained, run.model, trusted=run.trusted, dtype="auto")
    merged = model.merge_and_unload()
    merged.save_pretrained(folder)
    loaded(AutoTokenizer.from_pretrained, run.model, trusted=run.trusted).save_pretrained(folder)
    say(f"{folder} holds the whole model; AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it")
