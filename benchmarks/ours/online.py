"""Choosy's rounds on given prompts, as `train.py` plays them, a round at a time."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import LambdaCallback

from choosy.main import compose, train

job = json.loads(sys.argv[1])
sys.path.insert(0, job["folder"])


def say(**what: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(what | {"peak_gb": peak}), flush=True)


def main() -> None:
    folder = Path(job["folder"])
    (folder / "vowels_reward.py").write_text(
        "def vowels(prompt, response):\n    return float(sum(response.count(v) for v in 'aeiou'))\n"
    )
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in job["prompts"]))
    started = [0.0]
    seconds_of: dict[str, float] = {}

    def begin() -> None:
        sys.stdin.readline()
        started[0] = time.perf_counter()

    def end(trainer: Any, module: Any) -> None:
        phases = dict(trainer.datamodule.run.phases.seconds)
        spent = {k: v - seconds_of.get(k, 0.0) for k, v in phases.items()}
        seconds_of.update(phases)
        if trainer.current_epoch == 0:
            say(warm=True)
        else:
            say(seconds=time.perf_counter() - started[0], phases=spent)
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
