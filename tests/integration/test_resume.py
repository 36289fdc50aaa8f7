"""A run that was killed and goes on ends as the run that was never killed, to the bit."""

from __future__ import annotations

import json
import sys
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from lightning.pytorch import Callback
from test_configs import options
from tiny import MIXTURE, WEIGHTED
from torch.testing import assert_close

from choosy.data import shared_pool
from choosy.data.table_files import damage, read_about, write_table
from choosy.reporting.summary import read_run
from choosy.reporting.sweeps import read_sweep
from choosy.rounds.sample import FreshResponses

EXACTLY = {"rtol": 0.0, "atol": 0.0}
ROUNDS = ["rounds=3", "selector=random", "callbacks.random_prompts.fraction=0.5"]


class Killed(Exception):
    """The machine stops here."""


class Kill(Callback):
    """Stops the run before a step of a round; step None: after the sampling, before the training starts."""

    def __init__(self, epoch: int, step: int | None) -> None:
        self.epoch = epoch
        self.step = step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self.step is None and trainer.current_epoch == self.epoch:
            raise Killed

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.step):
            raise Killed


@pytest.fixture
def sampled_rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds that were sampled, in order, over all runs of the test."""
    rounds: list[int] = []
    sample = FreshResponses.__call__

    def counted(self: FreshResponses, at: Any, chosen: Any, *, begun: Any, **how: Any) -> Any:
        if any(prompt.id not in begun for prompt, _ in chosen):
            rounds.append(at.number)
        return sample(self, at, chosen, begun=begun, **how)

    monkeypatch.setattr(FreshResponses, "__call__", counted)
    return rounds


SETTINGS = {
    "plain": [],
    "two instructions": [
        "data.instructions={_target_:choosy.models.instructions.Instructions,texts:[Be kind.,Be cruel.],place:system}",
        *("labeler=contrastive", "loss=dlma", "data.responses=2"),
    ],
    "moving reference": ["reference=previous_round", "pool.keep=all", "epochs_per_round=2", "schedule=cosine"],
    "learned reward": [
        "+callbacks.predicted_gap._target_=callbacks.predicted_gap.PredictedGap",
        *("+callbacks.predicted_gap.thompson=true", "+callbacks.predicted_gap.fraction=1.0"),
        *("learned_reward.embedder=policy", "learned_reward.min_labels=4", "data.responses=3"),
    ],
    "d-optimal, oversampled by gain": [
        *("~callbacks.random_prompts", "+callbacks.predicted_gain._target_=callbacks.predicted_gain.PredictedGain"),
        *("+callbacks.predicted_gain.oversample=2", "+callbacks.predicted_gain.fraction=null"),
        "+callbacks.predicted_gain.warmup_rounds=0",
        *("+callbacks.d_optimal._target_=callbacks.d_optimal.DOptimal", "+callbacks.d_optimal.count=2"),
        *("+callbacks.d_optimal.fraction=null", "batching.batch_size=1", "weighting=inverse_gap"),
        *("learned_reward.embedder=policy", "learned_reward.min_labels=4", "data.responses=3"),
    ],
    "predicted gain and spread": [
        *("~callbacks.random_prompts", "+callbacks.predicted_gain._target_=callbacks.predicted_gain.PredictedGain"),
        *("+callbacks.spread._target_=callbacks.spread.Spread", "+callbacks.spread.explore=0.5"),
        *("learned_reward.embedder=policy", "learned_reward.min_labels=4", "data.responses=3"),
    ],
    "weighted rewards on a mixture": [
        *(line.replace("toy.vowels", "toy_rewards.toy") for line in WEIGHTED),
        *(*MIXTURE, "data.heldout=auto", "data.limit=30"),
    ],
    "shrunk means": [
        *("~callbacks.random_prompts", "+callbacks.optune._target_=callbacks.optune.OPTune"),
        *("+callbacks.optune.statistic=shrunk", "+callbacks.optune.direction=smallest"),
    ],
    "predicted gaps": [
        *("labeler._target_=toy_rewards.Longer", "weighting=wdpo", "reward_gap=predicted", "data.responses=2"),
        *("learned_reward.embedder=policy", "learned_reward.min_labels=4"),
    ],
    "differences": [
        *("labeler._target_=toy_rewards.Longer", "weighting=wdpo", "reward_gap=difference", "data.responses=2"),
        *("learned_reward.embedder=policy", "learned_reward.min_labels=4"),
    ],
    "mixed reference": ["model=smollm2_full", "lr=1e-3", "reference=0.6", "pool.keep=all"],
    "weights of tokens": ["loss=bmc", "lr=1e-2"],
    "items in pieces": ["batching.tokens_per_step=1", "model.compute.split_long=true", "lr=1e-2"],
    "reset": ["reset_policy=each_round", "warmup_steps=3", "labels.budget=40"],
    "kl of the last step": ["loss=kto", "data.responses=3", "lr=1e-2"],
    "mean reward of the steps": ["loss=bco", "lr=1e-2"],
    "a head that tells degrees": ["loss=spo", "loss.share=1.0", "lr=1e-2", "sampler.max_new_tokens=24"],
    "stale own samples": ["loss=hypo", "loss.shares.kl=1.0", "data.responses=3", "lr=1e-2", "epochs_per_round=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_run_killed_three_times_ends_as_if_never_killed(settings, play, sampled_rounds):
    """It is killed in the training of round 0, after the sampling of round 1, and in the training of round 1."""
    whole = play(*ROUNDS, *settings, name="whole")
    assert sampled_rounds == [0, 1, 2]
    sampled_rounds.clear()
    for kill in [(0, 1), (1, None), (1, 1)]:
        with pytest.raises(Killed):
            play(*ROUNDS, *settings, "ckpt_path=auto", name="killed", callbacks=[Kill(*kill)])
    resumed = play(*ROUNDS, *settings, "ckpt_path=last", name="killed")
    assert sampled_rounds == [0, 1, 2]  # no round is sampled again
    assert_close(resumed.weights, whole.weights, **EXACTLY)
    for number in range(3):
        for split in ("train", "heldout"):
            pd.testing.assert_frame_equal(resumed.round(number, split), whole.round(number, split))
    for counted in ("labels", "tokens_generated", "pairs_trained", "win_rate", "reward", "rounds"):
        assert resumed.summary[counted] == whole.summary[counted], counted


@pytest.mark.slow
@pytest.mark.parametrize("loss", options("loss"))
def test_any_loss_goes_on_in_the_middle_of_a_round(loss, play):
    few = [f"loss={loss}", "rounds=1", "epochs_per_round=2", "lr=1e-3", "data.heldout=null"]
    whole = play(*few, name="whole")
    with pytest.raises(Killed):
        play(*few, "ckpt_path=auto", name="killed", callbacks=[Kill(0, 4)])
    resumed = play(*few, "ckpt_path=last", name="killed")
    assert resumed.losses == whole.losses
    assert_close(resumed.weights, whole.weights, **EXACTLY)


def test_stale_own_samples_of_given_pairs_count_by_their_likelihood_now(play, tmp_path):
    """What the policy made of its samples when it drew them is in the pool, which a killed run reads again."""
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "No."} for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stale = ["data=offline", "labeler=dataset", f"data.train={tmp_path / 'rows.jsonl'}", "data.heldout=null"]
    stale += ["loss=hypo", "loss.shares.kl=1.0", "data.own_samples=3", "rounds=1"]
    stale += ["batching.batch_size=5", "epochs_per_round=3", "lr=1e-2"]
    run = play(*stale, name="whole")
    for row in run.pool.to_dict("records"):
        assert len({tuple(ids) for ids in row["own_ids"]}) == 3
        assert list(row["own_logps"]) == pytest.approx(list(row["own_ref_logps"]), abs=1e-3), "as at the start"
    with pytest.raises(Killed):
        play(*stale, "ckpt_path=auto", name="killed", callbacks=[Kill(0, 4)])
    resumed = play(*stale, "ckpt_path=last", name="killed")
    assert resumed.losses == run.losses
    assert_close(resumed.weights, run.weights, **EXACTLY)
    clipped = play(*stale, "loss.parts.kl.clip=1.0", name="clipped")
    assert clipped.losses[2:] != pytest.approx(run.losses[2:], rel=1e-3)


def test_a_finished_run_is_not_overwritten(play):
    play("rounds=1", "data.heldout=null")
    with pytest.raises(ValueError, match=r"already holds a finished run.*another name=.*ckpt_path=last"):
        play("rounds=1", "data.heldout=null")


def test_there_must_be_something_to_go_on_with(play):
    with pytest.raises(ValueError, match=r"ckpt_path=last: .* holds no run to resume"):
        play("ckpt_path=last")


def test_a_damaged_pool_file_is_named_when_the_run_goes_on(play, tmp_path):
    with pytest.raises(Killed):
        play(*ROUNDS, callbacks=[Kill(2, None)])
    damaged = tmp_path / "run" / "rounds" / "round_001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"round_001\.parquet cannot be read .*last good one is round_00[02]\.parquet"):
        play(*ROUNDS, "ckpt_path=last")


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 30], ids=["no budget", "a budget that the round has spent"])
def test_a_half_written_round_is_played_again(budget, play, sampled_rounds, tmp_path):
    lines = [*ROUNDS, *([f"labels.budget={budget}"] if budget else [])]
    with pytest.raises(Killed):
        play(*lines, callbacks=[Kill(1, None)])
    whole = play(*lines, name="whole")
    sampled_rounds.clear()
    (tmp_path / "run" / "rounds" / "round_001.parquet").write_bytes(b"PAR1")
    resumed = play(*lines, "ckpt_path=last")
    assert sampled_rounds == ([1] if budget else [1, 2])  # with the budget spent, round 2 samples nothing
    pd.testing.assert_frame_equal(resumed.pool, whole.pool)
    assert resumed.summary["labels"] == whole.summary["labels"]


@pytest.mark.slow
def test_damaged_start_answers_are_named_and_sampled_again(play, tmp_path, capsys):
    whole = play(*ROUNDS, name="whole")
    with pytest.raises(Killed):
        play(*ROUNDS, callbacks=[Kill(1, 1)])
    start = tmp_path / "run" / "rounds" / "start.parquet"
    before = start.read_bytes()
    start.write_bytes(before[:500] + bytes([before[500] ^ 1]) + before[501:])
    resumed = play(*ROUNDS, "ckpt_path=last")
    shown = capsys.readouterr()
    assert "start.parquet is damaged (its bytes are not those that were written)" in shown.out + shown.err
    assert damage(start) is None
    assert resumed.summary["win_rate"] == whole.summary["win_rate"]
    assert resumed.summary["labels"] == whole.summary["labels"]


def test_a_run_of_a_version_without_some_columns_goes_on(play, tmp_path):
    whole = play(*ROUNDS, name="whole")
    with pytest.raises(Killed):
        play(*ROUNDS, callbacks=[Kill(1, 1)])
    rounds = tmp_path / "run" / "rounds"
    assert not [*rounds.glob("*.arrow")], "an error leaves no mapped pool"
    for path in rounds.glob("*.parquet"):
        write_table(pq.read_table(path).drop_columns(["source", "parts"]), path, read_about(path))
    (left := rounds.parent / "served" / "choosy-1").mkdir(parents=True)
    resumed = play(*ROUNDS, "ckpt_path=last")
    assert not left.exists(), "an adapter that a killed run has left for a server is deleted"
    pd.testing.assert_frame_equal(resumed.pool, whole.pool)
    assert resumed.summary["win_rate"] == whole.summary["win_rate"]


def test_an_error_while_the_first_pool_is_put_together_leaves_no_file_of_it(play, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(shared_pool, "merged", failing)
    with pytest.raises(OSError, match="no space left"):
        play(*ROUNDS)
    assert not [*(tmp_path / "run" / "rounds").glob("*.arrow*")]


def test_the_metrics_of_before_the_interruption_are_kept(play):
    with pytest.raises(Killed):
        play("data.heldout=null", callbacks=[Kill(1, 1)])
    resumed = play("data.heldout=null", "ckpt_path=last")
    steps = pd.read_csv(resumed.run_dir / "metrics.csv").dropna(subset="loss_step")["step"]
    assert sorted(set(steps)) == list(range(steps.max() + 1))


def test_a_run_folder_may_have_any_name(play):
    name = "why? #1 lr%41=2 [ü] 'x'"
    one = ["data.heldout=null", "rounds=2"]
    play(*one, "+trainer.max_steps=1", name=name)
    assert play(*one, "ckpt_path=last", name=name).summary["rounds"] == 2


def test_a_reward_that_was_edited_before_a_resume_is_not_shown_beside_its_earlier_scale(play, tmp_path, monkeypatch):
    """Rewards of another scale would look as if the policy had become better or worse."""
    monkeypatch.delitem(sys.modules, "toy_rewards", raising=False)
    play("rounds=2")
    file = tmp_path / "toy_rewards.py"
    file.write_text(file.read_text().replace("% 7", "% 7 * 100 - 1000"))
    sys.modules.pop("toy_rewards")
    run = play("rounds=3", "ckpt_path=last")
    found = read_run(run.run_dir)
    first, second, third = found.table()[1:]
    reward = found.headings.index("reward")
    assert first[reward] == second[reward] == "–"
    before, after = found.start["reward"], found.last["reward"]
    assert -1000 <= min(before, after) < max(before, after) + 1 <= -399
    assert third[reward] == f"{after:.2f}"
    assert run.summary["reward"] == {"initial": before, "final": after}
    assert all(answer.reward_before is not None for answer in found.answers)
    assert "was changed after round 2: the rewards and win rates before (round 1, 2) are left out" in found.notes
    with pytest.raises(ValueError, match="found none"):  # nor are they compared with other runs' rewards
        read_sweep(tmp_path)
