"""Choosy's rounds on given prompts, as `train.py` plays them, a round at a time."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import LambdaCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from flops import flops, matmul_peak

from choosy.main import compose, train
from choosy.models.rows import Group, common_prefix
from choosy.types import Candidates

job = json.loads(sys.argv[1])
sys.path.insert(0, job["folder"])


def say(**what: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(what | {"peak_gb": peak}), flush=True)


def round_flops(policy: Any, run: Any) -> float:
    """Useful operations of the last round: sampling and scoring its responses, and the steps on all it trained on."""
    pool = run.pool.candidates()
    fresh = [group_of(c) for c in pool if c.round == run.pool.round]
    trained = [group_of(c) for c in pool if c.pairs]
    steps = [trained[at : at + job["batch_size"]] for at in range(0, len(trained), job["batch_size"])]
    return 2 * flops(policy, once(fresh), train=False) + sum(flops(policy, once(step)) for step in steps)


def once(groups: list[Group]) -> list[Group]:
    """The groups with what all their prompts begin with, such as a system prompt, in the first alone."""
    begun = len(common_prefix([group.prompt_ids for group in groups]))
    return groups[:1] + [group._replace(prompt_ids=group.prompt_ids[begun:]) for group in groups[1:]]


def group_of(c: Candidates) -> Group:
    return Group(c.prompt_ids, [r.ids for r in c.responses])


def main() -> None:
    folder = Path(job["folder"])
    (folder / "vowels_reward.py").write_text(
        "def vowels(prompt, response):\n    return float(sum(response.count(v) for v in 'aeiou'))\n"
    )
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in job["prompts"]))
    clock = time.process_time if job["one_thread"] else time.perf_counter
    started = [0.0, 0.0]  # when the round began, and the peak then
    seconds_of: dict[str, float] = {}

    def begin() -> None:
        sys.stdin.readline()
        peak = matmul_peak(clock)
        started[:] = clock(), peak

    def end(trainer: Any, module: Any) -> None:
        phases = dict(trainer.datamodule.run.phases.seconds)
        spent = {} if job["one_thread"] else {k: v - seconds_of.get(k, 0.0) for k, v in phases.items()}
        seconds_of.update(phases)
        if trainer.current_epoch == 0:
            say(warm=True)
        else:
            seconds = clock() - started[0]
            useful, peak = round_flops(module.policy, trainer.datamodule.run), max(started[1], matmul_peak(clock))
            say(seconds=seconds, phases=spent, flops=useful, peak_flop_per_s=peak)
        if trainer.current_epoch < job["windows"]:  # the next round is played as soon as this hook returns
            begin()

    say(setup_seconds=0.0)
    train(
        compose(
            [
                "trainer=cpu",
                f"model.name={job['model']}",
                f"data.train={folder / 'prompts.jsonl'}",
                "data.heldout=null",
                "labeler=function",
                "labeler.path=vowels_reward.vowels",
                f"rounds={job['windows'] + 1}",
                f"batching.batch_size={job['batch_size']}",
                f"sampler.max_new_tokens={job['max_new_tokens']}",
                f"lr={job['lr']}",
                f"loss.beta={job['beta']}",
                "data.responses=2",
                "weighting=uniform",
                "callbacks.report.console=false",
                *job["overrides"],
            ]
        ),
        folder / "run",
        callbacks=[LambdaCallback(on_train_epoch_end=end)],
    )


main()
