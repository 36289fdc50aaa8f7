"""Writes what a finished run leaves: the tuned model, a summary, curves, a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.strategies import ModelParallelStrategy

from callbacks.evaluation import Evaluator
from choosy.files import replacing
from choosy.models.locate import shown_name
from choosy.options.parts import typed_for
from choosy.reporting.model_card import model_card
from choosy.reporting.report import print_report, shown_settings, write_report
from choosy.reporting.summary import RunSummary, read_run, write_summary
from choosy.terminal import logger

log = logger(__name__)


class Export(Callback):
    """Writes `adapter/` (LoRA) or `model/` (all weights) into the run's folder when the run ends.

    With `callbacks=best` these are the weights after the best round, and else those after the last one.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self.exported: int | None = None  # the number of the best round, from 1

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if bests(trainer) and isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError("callbacks=best exports whole weights, which trainer=fsdp shards; choose trainer=ddp.")
        refuse_unmeasured(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.exported = load_best(trainer, pl_module)
        pl_module.policy.save(str(self.run_dir / ("adapter" if pl_module.policy.lora else "model")))


def bests(trainer: Any) -> list[ModelCheckpoint]:
    """Return the callbacks that keep the best checkpoint by a metric."""
    return [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint) and one.monitor]


def refuse_unmeasured(trainer: Any) -> None:
    """Refuse to keep or wait for the best round by a held-out metric that no evaluation of the run measures."""
    monitors = [one.monitor for one in trainer.callbacks if isinstance(one, ModelCheckpoint | EarlyStopping)]
    heldout = [name for name in monitors if name and name.startswith("heldout/")]
    evaluators = [one for one in trainer.callbacks if isinstance(one, Evaluator)]
    measured = [f"heldout/{name}" for one in evaluators for name in one.measures(trainer.datamodule)]
    if {*heldout} <= {*measured}:
        return
    wrong = next(name for name in heldout if name not in measured)
    advice = f"type one of what is: {', '.join(measured)}"
    if not measured:
        advice = "give data.heldout=FILE or data.heldout_pairs=FILE, and leave callbacks.win_rate in"
    if trainer.datamodule.run.labels.evaluator is None:
        advice += "; for a reward or a win rate type labels.evaluation=labeler"
    raise ValueError(f"callbacks.best.monitor={wrong} is not measured in this run; {advice}.")


def load_best(trainer: Any, module: LightningModule) -> int | None:
    """Load the weights of the best checkpoint, if Lightning has kept one by a metric, and return its round, from 1."""
    number = None
    for kept in bests(trainer):
        if not kept.best_model_path:
            log.warning(
                "No round has measured %s, so that none is the best: exported are the weights after the last round. "
                "callbacks.best.monitor takes a column of metrics.csv that is measured after rounds.",
                kept.monitor,
            )
            continue
        checkpoint = trainer.strategy.load_checkpoint(kept.best_model_path, weights_only=True)
        module.load_state_dict(checkpoint["state_dict"], strict=False)  # frozen weights are not in it
        number, best = checkpoint["epoch"] + 1, float(kept.best_model_score or 0.0)
        log.warning("Exported are the weights after round %d, whose %s is the best: %.3g.", number, kept.monitor, best)
    return number


class Report(Callback):
    """Writes summary.json, curves.png, report.html and the model card when the run ends.

    A run that ends before its last round gets no summary.json, so that no tool takes it for finished, unless
    Lightning's EarlyStopping has ended it.

    Args:
        run_dir: Where `rounds/` is.
        console: Whether to print the answers before and after, the rounds, and the paths.
    """

    def __init__(self, run_dir: str, *, console: bool = True) -> None:
        self.run_dir = Path(run_dir)
        self.console = console

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # after every on_fit_end, in which the tuned model is written
        if stage != "fit" or not trainer.is_global_zero:
            return
        if not any(self.run_dir.glob("rounds/*.parquet")):
            log.warning("No report: %s holds no rounds/*.parquet; is callbacks.report.run_dir right?", self.run_dir)
            return
        run = read_run(self.run_dir)
        callbacks = cast(Any, trainer).callbacks
        exported = next((one.exported for one in callbacks if isinstance(one, Export)), None)
        write_card(self.run_dir, run, trainer, pl_module, exported)
        write_report(run)
        stops = [one.stopping_reason for one in callbacks if isinstance(one, EarlyStopping)]
        early = any(reason != EarlyStoppingReason.NOT_STOPPED for reason in stops)
        if run.finished or early:  # last, since a run that has a summary has ended
            write_summary(run, self.run_dir / "summary.json", stopped_early=not run.finished)
        if self.console:
            print_report(run)


def write_card(folder: Path, summary: RunSummary, trainer: Any, module: Any, exported: int | None = None) -> None:
    """Write the model card beside the tuned model, in place of the template that PEFT leaves.

    What it says of the model was measured after the round whose weights are exported; None = after the last one.
    """
    tuned = next((folder / name for name in ("adapter", "model") if (folder / name).is_dir()), None)
    if tuned is None:
        return
    policy, data = module.policy, trainer.datamodule
    run, chosen = data.run, shown_settings(folder)
    selectors = [name_of(one) for one in (run.prompt_selector, run.pair_selector) if one is not None]
    sources = [data.train] if isinstance(data.train, str) else data.train
    judge = run.labels.evaluator
    who, judged_as = run.labels.labeler.name, chosen.get("labeler", "")
    facts = {
        "loss": f"{chosen.get('loss') or name_of(module.loss)}, beta {module.loss.beta}",
        "weighting": chosen.get("weighting") or name_of(run.weighting),
        "selector": chosen.get("selector") or ", ".join(selectors) or "none",
        "labeler": who if not judged_as or who.startswith(judged_as) else f"{judged_as} ({who})",
        "judge of held-out answers": "" if judge is None else judge.labeler.name,
        "data": ", ".join(Path(source).name for source in sources),
        "rounds": f"{len(summary.rounds)} of {run.rounds}, seed {run.seed}",
        "weights": "" if exported is None else f"after round {exported}, the best one",
    }
    chat = bool(policy.tokens.tokenizer.chat_template)
    upto = replace(summary, rounds=summary.rounds[:exported])
    card = model_card(upto, facts, base=shown_name(policy.source.name), folder=tuned.name, chat=chat)
    with replacing(tuned / "README.md") as unfinished:
        unfinished.write_text(card, encoding="utf-8")


def name_of(part: object) -> str:
    """Return the menu's name of a part, or its class if it has none."""
    return typed_for(part).rpartition("=")[2]
