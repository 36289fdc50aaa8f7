"""TRL's OnlineDPOTrainer on given prompts, a round at a time; runs in .venv-trl, with its job in argv[1]."""

from __future__ import annotations

import json
import resource
import sys
import time

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

job = json.loads(sys.argv[1])
clock = time.process_time if job["one_thread"] else time.perf_counter
tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")


def vowels(prompts, completions, **_) -> list[float]:
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(sum(text.count(v) for v in "aeiou")) for text in texts]


class Rounds(TrainerCallback):
    """Stops before each round until a line comes in, and says what it took."""

    def __init__(self) -> None:
        self.steps = 0
        self.started = 0.0

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        if self.steps % job["steps"]:
            return
        if self.steps == job["steps"]:  # the first round warms up
            say(warm=True)
        else:
            say(seconds=clock() - self.started)
        if self.steps < (job["windows"] + 1) * job["steps"]:
            sys.stdin.readline()
            self.started = clock()


def say(**what) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(what | {"peak_gb": peak}), flush=True)


def main() -> None:
    started = time.perf_counter()
    turns = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in job["prompts"]]
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype="bfloat16"),
        reward_funcs=vowels,
        args=OnlineDPOConfig(
            output_dir=job["folder"],
            per_device_train_batch_size=job["batch_size"],
            max_steps=(job["windows"] + 1) * job["steps"],
            max_new_tokens=job["max_new_tokens"],
            max_length=1024,
            temperature=1.0,
            learning_rate=job["lr"],
            beta=job["beta"],
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(turns),
        processing_class=tokenizer,
        callbacks=[Rounds()],
        peft_config=LoraConfig(**job["lora"], task_type="CAUSAL_LM"),
    )
    say(setup_seconds=time.perf_counter() - started)
    trainer.train()


main()
