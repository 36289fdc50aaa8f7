"""Whole runs that sample the next round's prompts while this round trains."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from forked import Forked, fork_samplers
from hydra.errors import InstantiationException
from lightning.pytorch import Callback
from tiny import ROOT, command, ending, labels, typed
from torch.testing import assert_close

from choosy.resume import partial_rounds
from choosy.sampling import generate
from choosy.sampling.elsewhere import Elsewhere

HERE = Path(__file__).parent
ROUNDS = ["rounds=3", "lr=1e-2", "selector=random", "callbacks.random_prompts.fraction=0.5", "data.heldout=null"]


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that sample start in a moment."""
    fork_samplers(monkeypatch)


class Now(Callback):
    """Notes how likely the policy that begins a round makes the responses of the round's pairs."""

    def __init__(self) -> None:
        self.logps: dict[tuple[int, str, str], float] = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        number, pool = trainer.current_epoch, trainer.datamodule.run.pool
        for c in pool.candidates():
            if c.round == number:
                (found,) = pl_module.policy.score([c])
                self.logps |= {(number, c.prompt.id, r.text): x for r, x in zip(c.responses, found, strict=True)}


def fresh(table: pd.DataFrame, number: int) -> pd.DataFrame:
    return table[table["sampled_in"] == number].reset_index(drop=True)


def test_each_round_is_sampled_from_the_weights_that_the_round_before_began_with(play, capsys):
    now = Now()
    run = play(*ROUNDS, "sampler.ahead=1", "sampler.max_ratio=1.02", callbacks=[now])
    said = capsys.readouterr().err
    still = play(*ROUNDS, "lr=0", name="still")  # its round 1 is sampled from the start, too
    columns = ["prompt_id", "responses", "response_ids", "logps"]
    pd.testing.assert_frame_equal(fresh(run.round(1), 1)[columns], fresh(still.round(1), 1)[columns])
    assert said.count("sampled ahead, while the round before trained") == 2
    assert "6 prompts sampled ahead" in said
    assert "of which training hid" in said
    ratios = []
    for number in (1, 2):
        table = fresh(run.round(number), number)
        assert len(table) == 6
        ratios.append([])
        for _, row in table.iterrows():
            ratio = [
                math.exp(now.logps[number, row["prompt_id"], text] - logp)
                for text, logp in zip(row["responses"], row["logps"], strict=True)
            ]
            for pair in row["pairs"]:
                both = ratio[pair["chosen"]], ratio[pair["rejected"]]
                ratios[-1] += both
                wanted = math.prod(max(1 / 1.02, min(1.02, x)) for x in both)
                assert pair["weight"] == pytest.approx(wanted, rel=1e-4)
    assert all(pair["weight"] == 1 for pairs in fresh(run.round(0), 0)["pairs"] for pair in pairs), "on policy"
    assert max(abs(x - 1) for of_round in ratios for x in of_round) > 0.02, "the policy has moved"
    metrics = pd.read_csv(run.run_dir / "metrics.csv").dropna(subset="seconds/hidden")
    for of_round, (_, row) in zip(ratios, metrics.iloc[1:].iterrows(), strict=True):
        assert row["importance/ratio"] == pytest.approx(sum(of_round) / len(of_round), rel=1e-4)
        assert row["importance/clipped"] == pytest.approx(
            sum(not 1 / 1.02 <= x <= 1.02 for x in of_round) / len(of_round)
        )
    assert not list(run.run_dir.glob("rounds/sampl*"))


# -- interruptions ---------------------------------------------------------------------------------------------


class Stop(Callback):
    """Raises an error before a step of the first round."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (0, 2):
            raise self.error


def in_a_batch(number: int, act: Callable[[], object]) -> Callable[..., Any]:
    """Sample, but `act` in a batch of a process: the third is after the first one, which is a check, and round 0."""
    sample, batches = generate._sample_batch, []

    def counted(*given: Any) -> Any:
        batches.append(given)
        if len(batches) == number:
            act()
        return sample(*given)

    return counted


def fail() -> None:
    raise ValueError("the second GPU is on fire")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAILS = {
    "an error": (fail, "the second GPU is on fire"),
    "kill -9": (die, r"ended by signal 9, perhaps for its mem.*resume"),
}


KIND = "data.instructions={_target_:choosy.models.instructions.Instructions,texts:[Be kind.,Be cruel.],place:system}"


@pytest.mark.slow
def test_interrupted_in_whatever_way_it_ends_as_if_never_interrupted(play, monkeypatch, caplog):
    monkeypatch.setattr(partial_rounds, "EVERY", 0.0)
    lines = [*ROUNDS, "sampler.ahead=1", "callbacks.checkpoint.every_n_steps=1"]
    whole = play(*lines, name="whole")
    for name, (act, message) in FAILS.items():
        with monkeypatch.context() as patched:
            patched.setattr(generate, "_sample_batch", in_a_batch(3, act))
            with pytest.raises(ValueError, match=message):
                play(*lines, name=name)
        assert "could not be sampled; this round is trained and saved" in caplog.text
        caplog.clear()
        files = {path.name for path in (whole.run_dir.parent / name).rglob("round_*")}
        assert files == {"round_000.parquet", "round_000.ckpt"}, "the round that trained is over"
    for name, error in {"Ctrl-C": KeyboardInterrupt(), "any error": RuntimeError("a step fails")}.items():
        with pytest.raises((SystemExit, KeyboardInterrupt, RuntimeError)):
            play(*lines, name=name, callbacks=[Stop(error)])
        assert all(one.returncode is not None for one in Forked.started), "a process goes on"
    assert "could not be sampled" not in caplog.text
    for name in (*FAILS, "Ctrl-C", "any error"):
        resumed = play(*lines, "ckpt_path=last", name=name)
        assert_close(resumed.weights, whole.weights, rtol=0, atol=0)
        for number in range(3):
            pd.testing.assert_frame_equal(resumed.round(number), whole.round(number))


CERTAINTY = ["selector=optune_certainty"]
GAIN = ["selector=predicted_gain", "learned_reward.embedder=policy", "learned_reward.min_labels=4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "count", "selector"),
    [("sampling ahead", 11, CERTAINTY), ("training", 4, CERTAINTY), ("training", 4, GAIN)],
    ids=["sampling ahead", "training", "training, with a learned reward"],
)
def test_killed_while_it_samples_ahead_it_ends_as_if_never_killed(
    point, count, selector, tmp_path, tiny_policy_dir, prompts_file
):
    lines = typed(tmp_path, tiny_policy_dir, prompts_file)
    lines += ["rounds=3", "sampler.ahead=1", "sampler.batch_size=2", "lr=1e-2", *selector]
    lines += ["data.responses=3", "callbacks.checkpoint.every_n_steps=1", "labeler.fingerprint=toy"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = command(HERE / "killed.py", "nowhere", 0, *lines, f"run_dir={whole}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    killed = command(HERE / "killed.py", point, count, *lines, f"run_dir={run}", folder=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert point == "training" or len(list(run.glob("rounds/sampling_001*"))) == 1, "some of round 1 is there"
    resumed = command(HERE / "killed.py", "nowhere", 0, *lines, f"run_dir={run}", "ckpt_path=last", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert ending(run) == ending(whole)


@pytest.mark.slow
def test_an_evaluation_that_waits_for_sampling_that_fails_is_made_all_the_same(play, monkeypatch, caplog, tmp_path):
    def fail_once() -> None:
        if not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            time.sleep(2)  # until the evaluation waits
            fail()

    lines = [*ROUNDS[:-1], "sampler.ahead=1"]  # with held-out prompts, which the start policy answers first
    whole = play(*lines, name="whole")
    with monkeypatch.context() as patched:
        patched.setattr(generate, "_sample_batch", in_a_batch(3, fail_once))
        with pytest.raises(ValueError, match="the second GPU is on fire"):
            play(*lines, name="fails")
    assert "could not be sampled; this round is trained and saved" in caplog.text
    assert list((whole.run_dir.parent / "fails").rglob("round_000.ckpt")), "the round that trained is over"
    resumed = play(*lines, "ckpt_path=last", name="fails")
    assert_close(resumed.weights, whole.weights, rtol=0, atol=0)
    for number in range(3):
        pd.testing.assert_frame_equal(resumed.round(number), whole.round(number))
        pd.testing.assert_frame_equal(resumed.round(number, "heldout"), whole.round(number, "heldout"))


class EndsEarly(Callback):
    """Ends the run after its first round, as early stopping does."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


@pytest.mark.slow
def test_a_run_that_ends_early_leaves_nothing_of_the_next_round_and_can_go_on(play):
    lines = [*ROUNDS, "sampler.ahead=1"]
    whole, early = play(*lines, name="whole"), play(*lines, callbacks=[EndsEarly()])
    assert (early.run_dir / "rounds" / "round_000.parquet").exists()
    assert not list(early.run_dir.glob("rounds/sampl*"))
    on = play(*lines, "ckpt_path=last")
    assert_close(on.weights, whole.weights, rtol=0, atol=0)
    pd.testing.assert_frame_equal(on.round(2), whole.round(2))


def test_a_resumed_run_with_another_stream_of_prompts_is_refused(play):
    lines = [*ROUNDS[:2], "data.heldout=null", "sampler.ahead=1", "callbacks.checkpoint.every_n_steps=1"]
    with pytest.raises(RuntimeError, match="a step fails"):
        play(*lines, callbacks=[Stop(RuntimeError("a step fails"))])
    with pytest.raises(ValueError, match=r"data\.prompts_per_round is another\. Type the old one"):
        play(*lines, "data.prompts_per_round=4", "ckpt_path=last")


# -- the process that samples ----------------------------------------------------------------------------------


def test_a_call_that_waits_for_one_that_fails_starts_the_process_again(load_policy):
    policy, engine = load_policy(), Elsewhere.of(generate.Generate(max_new_tokens=4, ahead=1))
    engine.start(policy)
    begun = threading.Event()

    def fails() -> None:
        with engine._turn:
            begun.set()
            time.sleep(0.3)
            engine._end()

    thread = threading.Thread(target=fails)
    thread.start()
    begun.wait()
    try:
        ((response,),) = engine.sample(policy, [(5, 6)], [[1]])
    finally:
        thread.join()
        engine.close()
    assert response.ids
    assert engine.waited_seconds > 0.1


class Leaves(generate.Generate):
    """Notes that it was closed."""

    def close(self) -> None:
        Path(self.note).write_text("closed")


def test_an_engine_is_closed_in_its_process(load_policy, tmp_path):
    inner = Leaves(max_new_tokens=4, ahead=1)
    inner.note = str(tmp_path / "note")
    engine = Elsewhere.of(inner)
    engine.sample(load_policy(), [(5, 6)], [[1]])
    engine.close()
    assert (tmp_path / "note").read_text() == "closed"
    assert Forked.started[0].returncode == 0


# -- what is refused -------------------------------------------------------------------------------------------

REFUSED = {
    "two rounds ahead": (["sampler.ahead=2"], "one round ahead, or none; type 1 or 0"),
    "a single round": (["rounds=1"], "rounds=1 has none; type rounds=2"),
    "ratios below 1": (["sampler.max_ratio=0.5"], r"choose >= 1 \(1 = responses"),
    "an unknown device": (["sampler.ahead_device=tpu"], "none of auto, cpu, cuda and cuda:N"),
    "given responses": (["data=offline", "data.heldout=null"], "data=offline has given responses"),
    "instructions": ([KIND], "not known of one under data.instructions"),
    "samples of the policy": (["loss=kto"], "sampler.ahead=1 gives those of one round before"),
}


@pytest.mark.parametrize(("lines", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_spent(lines, message, play, tmp_path):
    with pytest.raises((ValueError, InstantiationException), match=message):  # Hydra's around that of a constructor
        play("sampler.ahead=1", *lines)
    assert not list(tmp_path.glob("run/ledger*"))
    assert not Forked.started


@pytest.mark.slow
def test_sharded_weights_are_refused_before_anything_is_spent(tmp_path, tiny_policy_dir, prompts_file):
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "trainer=fsdp", "trainer.accelerator=cpu"]
    words = [ROOT / "train.py", *lines, "trainer.devices=2", "sampler.ahead=1", f"run_dir={tmp_path / 'run'}"]
    run = command(*words, folder=tmp_path, ranks=2)
    assert run.returncode != 0
    assert "sampler.ahead=1 copies whole weights to the process that samples, and trainer=fsdp" in run.stderr
    assert labels(tmp_path / "run" / "ledger.sqlite").empty
