"""TRL's DPOTrainer on given rows, a window of steps at a time; runs in .venv-trl, with its job in argv[1]."""

from __future__ import annotations

import json
import resource
import sys
import time

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

job = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(job["model"])


class Windows(TrainerCallback):
    """Stops before each window of steps until a line comes in, and says what it took."""

    def __init__(self) -> None:
        self.steps = self.started = 0

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        measured = self.steps - job["warmup_steps"]
        if measured > 0 and measured % job["steps"] == 0:
            say(seconds=time.perf_counter() - self.started)
        if measured == 0:
            say(warm=True)
        if measured >= 0 and measured % job["steps"] == 0 and measured < job["windows"] * job["steps"]:
            sys.stdin.readline()
            self.started = time.perf_counter()


def say(**what) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(what | {"peak_gb": peak}), flush=True)


def main() -> None:
    rows = job["rows"]
    columns = ("prompt", "chosen", "rejected")
    data = Dataset.from_list(
        [
            {name: tokenizer.decode(row[f"{name}_ids"][: -1 if name != "prompt" else None]) for name in columns}
            for row in rows
        ]
    )
    started = time.perf_counter()
    trainer = DPOTrainer(
        model=job["model"],
        args=DPOConfig(
            output_dir=job["folder"],
            per_device_train_batch_size=job["batch_size"],
            max_length=4096,
            max_steps=job["warmup_steps"] + job["windows"] * job["steps"],
            learning_rate=job["lr"],
            lr_scheduler_type="constant",
            beta=job["beta"],
            bf16=job["bf16"],
            use_cpu=True,
            gradient_checkpointing=False,  # its default trades time for memory; time is what is compared
            precompute_ref_log_probs=job["precompute"],
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
            model_init_kwargs={"dtype": "bfloat16" if job["lora"] and job["bf16"] else "float32"},
        ),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Windows()],
        peft_config=LoraConfig(**job["lora"], task_type="CAUSAL_LM") if job["lora"] else None,
    )
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):
        for name in columns:
            assert list(theirs[f"{name}_ids"]) == row[f"{name}_ids"], "both sides must see the same tokens"
    say(setup_seconds=time.perf_counter() - started)
    trainer.train()
    say(losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


main()
