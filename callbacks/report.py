"""Writes what a finished run leaves: the tuned model, a summary, curves, a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.strategies import ModelParallelStrategy

from callbacks.evaluation import Evaluator
from choosy.data.heldout import heldout_source
from choosy.data.sources import Source
from choosy.files import replacing
from choosy.models.gguf_file import refuse_gguf
from choosy.models.locate import shown_name
from choosy.options.parts import typed_for
from choosy.reporting.curves import write_curves
from choosy.reporting.exports import write_whole
from choosy.reporting.model_card import PICTURE, Form, by_name, copy_card, model_card
from choosy.reporting.report import print_report, shown_settings, write_report
from choosy.reporting.summary import RunSummary, read_run, write_summary
from choosy.terminal import logger

log = logger(__name__)


class Export(Callback):
    """Writes `adapter/` (LoRA) or `model/` (all weights) into the run's folder when the run ends.

    With `callbacks=best` these are the weights after the best round, and else those after the last one.

    Args:
        run_dir: The run's folder.
        form: What is written beside: `merged` = the whole model in `merged/`, `gguf` = a file for llama.cpp in `gguf/`.
    """

    def __init__(self, run_dir: str, *, form: Literal["adapter", "merged", "gguf"] = "adapter") -> None:
        self.run_dir = Path(run_dir)
        self.form = form
        self.exported: int | None = None  # the number of the best round, from 1

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if bests(trainer) and isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError("callbacks=best exports whole weights, which trainer=fsdp shards; choose trainer=ddp.")
        refuse_unmeasured(trainer)
        if self.form == "merged" and not pl_module.policy.lora:
            raise ValueError("export=merged merges an adapter, and model.lora=null writes all weights; leave it out.")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self.form == "gguf":
            refuse_gguf(pl_module.policy.causal_lm.config, pl_module.policy.tokens.tokenizer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.exported = load_best(trainer, pl_module)
        policy = pl_module.policy
        tuned = self.run_dir / ("adapter" if policy.lora else "model")
        policy.save(str(tuned))
        if self.form != "adapter" and trainer.is_global_zero:
            name, trusted = self.run_dir.resolve().name, policy.source.trust_remote_code
            with logged_errors(self.form, f"choosy merge {self.run_dir} DIR{' --gguf' * (self.form == 'gguf')}"):
                write_whole(str(tuned), self.run_dir / self.form, self.form, name=name, trusted=trusted)


@contextmanager
def logged_errors(what: str, again: str) -> Iterator[None]:
    """Log an error in writing what a command can write again, so that the run ends in order.

    An error of the disk, which has a number, ends the run: it can be resumed when there is room.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        log.error("%s is not written (%s); when that is mended, type %s", what, why, again)


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
        again = f"choosy report {self.run_dir}"
        with logged_errors("curves.png", again):
            write_curves(run)
        with logged_errors("README.md of the tuned model", again):
            write_cards(self.run_dir, run, trainer, pl_module, exported)  # with the curves
        with logged_errors("report.html", again):
            write_report(run)  # with the card's code
        stops = [one.stopping_reason for one in callbacks if isinstance(one, EarlyStopping)]
        early = any(reason != EarlyStoppingReason.NOT_STOPPED for reason in stops)
        if run.finished or early:  # last, since a run that has a summary has ended
            write_summary(run, self.run_dir / "summary.json", stopped_early=not run.finished)
        if self.console:
            print_report(run)


def write_cards(folder: Path, summary: RunSummary, trainer: Any, module: Any, exported: int | None = None) -> None:
    """Write the model card and its picture beside each form of the tuned model, in place of PEFT's template.

    What it says of the model was measured after the round whose weights are exported; None = after the last one.
    """
    form: Form = "adapter" if module.policy.lora else "model"
    tuned = folder / form
    if not tuned.is_dir():
        return
    policy, data = module.policy, trainer.datamodule
    run, chosen = data.run, shown_settings(folder)
    selectors = [name_of(one) for one in (run.prompt_selector, run.pair_selector) if one is not None]
    heldout = heldout_source(data.train, data.heldout) or data.heldout_pairs
    trained_on, judged_on = names_of(data.train), names_of(heldout or data.train)
    judge = run.labels.evaluator
    who, judged_as = run.labels.labeler.name, chosen.get("labeler", "")
    facts = {
        "loss": f"{chosen.get('loss') or name_of(module.loss)}, beta {module.loss.beta}",
        "weighting": chosen.get("weighting") or name_of(run.weighting),
        "selector": chosen.get("selector") or ", ".join(selectors) or "none",
        "labeler": who if not judged_as or who.startswith(judged_as) else f"{judged_as} ({who})",
        "judge of held-out answers": judge.labeler.name if judge and summary.answers else "",
        "data": ", ".join(trained_on),
        "held-out data": ", ".join(judged_on) if heldout or summary.evaluated else "",
        "rounds": f"{len(summary.rounds)} of {run.rounds}, seed {run.seed}",
        "weights": "" if exported is None else f"after round {exported}, the best one",
    }
    card = model_card(
        replace(summary, rounds=summary.rounds[:exported]),
        {name: without_folders(text) for name, text in facts.items()},
        base=shown_name(policy.source.name),
        data=trained_on,
        judged=", ".join(judged_on),
        form=form,
        chat=bool(policy.tokens.tokenizer.chat_template),
    )
    with replacing(tuned / "README.md") as unfinished:
        unfinished.write_text(card, encoding="utf-8")
    if (folder / PICTURE).is_file():  # it may not have been drawn
        shutil.copyfile(folder / PICTURE, tuned / PICTURE)
    forms: tuple[Form, ...] = ("merged", "gguf")
    for other in forms:
        if (folder / other).is_dir():
            copy_card(tuned, folder / other, other)


def names_of(source: Source) -> list[str]:
    """Return the hub ids of a data source, and the names of its files."""
    sources = [source] if isinstance(source, str) else source
    here = {one for one in sources if Path(one).expanduser().exists()}
    return [Path(one).name if one in here else without_folders(shown_name(one)) for one in sources]


def without_folders(text: str) -> str:
    """Return a text with the files of this machine by their names, as in the name of a labeler of several functions."""
    return "+".join(by_name(part, folders=True)[0] for part in text.split("+"))


def name_of(part: object) -> str:
    """Return the menu's name of a part, or its class if it has none."""
    return typed_for(part).rpartition("=")[2]
