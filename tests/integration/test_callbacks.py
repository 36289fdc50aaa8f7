"""Callbacks do their work in any order, and a round's table is written without any of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny import ending, typed

from choosy.main import compose, plain, train
from choosy.reporting.metrics import log_at_once
from choosy.sealed import read_json
from choosy.start import is_finished


@pytest.fixture
def lines(tmp_path, tiny_policy_dir, prompts_file, monkeypatch) -> list[str]:
    monkeypatch.syspath_prepend(tmp_path)
    small = ["data.limit=4", "data.heldout_limit=2", "~logger.tensorboard", "callbacks.checkpoint.every_n_steps=1"]
    return [*typed(tmp_path, tiny_policy_dir, prompts_file), *small, "selector=optune_certainty", "data.responses=3"]


def about(run_dir: Path, number: int) -> dict[str, Any]:
    """What is written about a round with its table."""
    return json.loads(pq.read_schema(run_dir / "rounds" / f"round_{number:03d}.parquet").metadata[b"choosy"])


@pytest.mark.slow
def test_the_order_of_the_callbacks_does_not_matter(lines, tmp_path):
    train(compose(lines), tmp_path / "one")
    cfg = compose(lines)
    names = list(cfg.callbacks)
    cfg.callbacks = OmegaConf.create({name: cfg.callbacks[name] for name in reversed(names)})
    assert list(cfg.callbacks) == names[::-1]
    train(cfg, tmp_path / "other")
    assert ending(tmp_path / "one") == ending(tmp_path / "other")
    assert about(tmp_path / "other", 1)["evaluation"]["win_rate"] is not None
    page = (tmp_path / "other" / "report.html").read_text()
    assert '<a href="adapter">' in page, "the report is written after the adapter"
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        path.name for path in (tmp_path / "other").iterdir()
    }


class Scored(Callback):
    """Logs these scores, a round each, and keeps the weights of each; dies after some of them."""

    def __init__(self, scores: Sequence[float], *, dies: int = 0) -> None:
        self.scores, self.dies = scores, dies
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        number = trainer.current_epoch
        log_at_once(pl_module, {"mine/quality": self.scores[number]}, step=trainer.global_step - 1)
        self.weights[number] = {name: p.detach().clone() for name, p in pl_module.policy.trainable()}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.dies and trainer.current_epoch == self.dies:
            raise RuntimeError("killed")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.dies:
            raise RuntimeError("killed")


BEST = ["callbacks=best", "callbacks.best.monitor=mine/quality", "callbacks.early_stopping.patience=2"]


def is_exported(run_dir: Path, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the run's adapter has these weights."""
    adapter = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    return all(torch.equal(adapter[name.replace(".default", "")], p) for name, p in weights.items())


def test_the_best_round_is_exported_and_a_run_that_gets_worse_ends(lines, tmp_path):
    scored, run_dir = Scored([1, 5, 3, 2, 9, 9]), tmp_path / "run"
    config = compose([*lines, *BEST, "rounds=6"])
    trainer = train(config, run_dir, callbacks=[scored])
    assert len(scored.weights) == 4, "the second round is the best, and two more are no better"
    now = dict(trainer.lightning_module.policy.trainable())
    assert all(torch.equal(now[name], kept) for name, kept in scored.weights[1].items())
    assert is_exported(run_dir, scored.weights[1])
    assert not is_exported(run_dir, scored.weights[3])
    assert is_finished({**plain(config), "run_dir": str(run_dir)}, run_dir)


def test_a_run_that_is_resumed_after_its_best_round_exports_it(lines, tmp_path):
    before, after, run_dir = Scored([1, 5, 3], dies=2), Scored([1, 5, 3]), tmp_path / "run"
    words = [*lines, *BEST, "rounds=3"]
    with pytest.raises(RuntimeError, match="killed"):
        train(compose(words), run_dir, callbacks=[before])
    train(compose([*words, "ckpt_path=last"]), run_dir, callbacks=[after])
    assert [*after.weights] == [2]
    assert is_exported(run_dir, before.weights[1])


@pytest.mark.parametrize("stop", ["patience=2", "divergence_threshold=2.5"])
def test_a_run_that_was_stopped_early_plays_no_further_round_when_it_is_resumed(lines, tmp_path, stop):
    before, after, run_dir = Scored([5, 3, 2, 9], dies=9), Scored([5, 3, 2, 9]), tmp_path / "run"
    words = [*lines, *BEST, f"++callbacks.early_stopping.{stop}", "rounds=4"]
    with pytest.raises(RuntimeError, match="killed"):
        train(compose(words), run_dir, callbacks=[before])
    assert len(before.weights) == 3
    assert not (run_dir / "summary.json").exists()
    train(compose([*words, "ckpt_path=last"]), run_dir, callbacks=[after])
    assert not after.weights
    assert not (run_dir / "rounds" / "round_003.parquet").exists()
    assert read_json(run_dir / "summary.json")["stopped_early"] is True
    assert is_exported(run_dir, before.weights[0])


def test_more_patience_lets_a_stopped_run_go_on(lines, tmp_path):
    further, run_dir = Scored([5, 3, 2, 1, 9]), tmp_path / "run"
    words = [*lines, *BEST, "rounds=5"]
    train(compose(words), run_dir, callbacks=[Scored([5, 3, 2])])
    patient = [*words, "callbacks.early_stopping.patience=4", "ckpt_path=last"]
    train(compose(patient), run_dir, callbacks=[further])
    assert [*further.weights] == [3, 4]
    assert "stopped_early" not in read_json(run_dir / "summary.json")
    assert is_exported(run_dir, further.weights[4])


def test_a_run_that_stops_after_its_first_round_is_finished(lines, tmp_path):
    stop = "+callbacks.early_stopping.stopping_threshold=1"
    train(compose([*lines, *BEST, stop]), tmp_path / "run", callbacks=[Scored([5, 3])])
    assert read_json(tmp_path / "run" / "summary.json")["stopped_early"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["labeler._target_=toy.Longer", "weighting=uniform"],
            "type one of what is: heldout/win_rate, heldout/win_rate_lc",
        ),
        (["data.heldout=null"], "give data.heldout=FILE or data.heldout_pairs=FILE"),
        (["callbacks.win_rate=null"], "leave callbacks.win_rate in"),
        (["labels.evaluation=none"], "type one of what is: heldout/kl, heldout/length"),
        (["labels.evaluation=none"], "for a reward or a win rate type labels.evaluation=labeler"),
        (["callbacks.best.monitor=heldout/rewad"], "monitor=heldout/rewad is not measured in this run"),
    ],
)
def test_a_best_round_by_what_is_not_measured_is_refused_before_anything_is_spent(lines, tmp_path, words, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        train(compose([*lines, "selector=none", "data.responses=2", "callbacks=best", *words]), tmp_path / "run")
    assert not [*tmp_path.glob("run/rounds/*")]


@pytest.mark.parametrize("words", [["callbacks.win_rate.every=2"], ["callbacks.best.monitor=mine/qualty"]])
def test_a_round_that_was_not_measured_ends_no_run(lines, tmp_path, words, caplog):
    scored = Scored([5, 3])
    train(compose([*lines, "callbacks=best", *words]), tmp_path / "run", callbacks=[scored])
    assert (tmp_path / "run" / "summary.json").exists()
    assert is_exported(tmp_path / "run", scored.weights[1])
    assert ("No round has measured mine/qualty" in caplog.text) == (words[0].endswith("qualty"))


def test_the_card_has_the_numbers_of_the_round_that_is_exported(lines, tmp_path):
    run_dir = tmp_path / "run"
    train(compose([*lines, *BEST, "rounds=3"]), run_dir, callbacks=[Scored([5, 3, 2])])
    card = (run_dir / "adapter" / "README.md").read_text()
    first, last = (f"{about(run_dir, number)['evaluation']['reward']:.3g} (" for number in (0, 2))
    assert first != last
    (reward,) = [line for line in card.splitlines() if line.startswith("| reward ")]
    assert first in reward
    assert last not in reward
    assert "| weights | after round 1, the best one |" in card
    assert "| rounds | 3 of 3, seed 0 |" in card


def test_a_round_is_written_and_counted_without_callbacks(lines, tmp_path):
    optional = ["progress", "win_rate", "checkpoint", "preemption", "export", "report"]
    without = [line for line in lines if not line.startswith("callbacks.")]
    trainer = train(compose([*without, *(f"~callbacks.{name}" for name in optional)]), tmp_path / "run")
    facts = [about(tmp_path / "run", number) for number in (0, 1)]
    pairs = [written["pairs_trained"] for written in facts]
    assert 0 < pairs[0] < pairs[1] == trainer.datamodule.run.record.counts["pairs_trained"]
    assert facts[1]["evaluation"] is None
    assert "seconds/sync" in (tmp_path / "run" / "metrics.csv").read_text()


def test_each_round_says_of_which_labels_its_pairs_are_made(lines, tmp_path, capsys):
    few = ["selector=none", "pairing=all", "epochs_per_round=2", "callbacks.win_rate=null"]
    trainer = train(compose([*lines, *few]), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "to train on" in line]
    counts = re.findall(
        r"(\d+) pairs to train on, 2 times each: (\d+) from 12 labels bought \(a score serves", "".join(said)
    )
    (first, new), (later, newer) = [[*map(int, each)] for each in counts]
    assert first == new
    assert said[1].endswith(f", {later - newer} from earlier rounds") == (later > newer)
    assert 2 * (first + later) == trainer.datamodule.run.record.counts["pairs_trained"]
