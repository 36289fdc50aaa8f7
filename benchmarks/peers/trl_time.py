"""TRL's OnlineDPOTrainer until its held-out answers have a mean reward, or time is up; runs in .venv-trl."""

from __future__ import annotations

import json
import sys
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

job = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
vader = SentimentIntensityAnalyzer()


def compound(text: str) -> float:
    return vader.polarity_scores(text)["compound"]


def reward(prompts, completions, **_) -> list[float]:
    return [compound(c if isinstance(c, str) else c[-1]["content"]) for c in completions]


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


class Clock(TrainerCallback):
    """Counts the processor's seconds of training, and stops for each evaluation."""

    def __init__(self) -> None:
        self.seconds, self.since = 0.0, 0.0

    def on_step_begin(self, args, state, control, **_):
        self.since = time.process_time()

    def on_step_end(self, args, state, control, model, **_):
        self.seconds += time.process_time() - self.since
        if state.global_step % job["every"]:
            return
        mean = heldout(model)
        print(json.dumps({"seconds": self.seconds, "reward": mean, "steps": state.global_step}), flush=True)
        if mean >= job["target"] or self.seconds > job["most_seconds"]:
            control.should_training_stop = True


def heldout(model) -> float:
    """Mean reward of one sampled answer to each held-out prompt."""
    texts = [tokenizer.apply_chat_template(chat(p), tokenize=False, add_generation_prompt=True) for p in job["heldout"]]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    model.eval()
    with torch.no_grad():
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=job["temperature"],
            top_p=job["top_p"],
            top_k=0,
            max_new_tokens=job["max_new_tokens"],
        )
    model.train()
    answers = tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return sum(map(compound, answers)) / len(answers)


def main() -> None:
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype="bfloat16"),
        reward_funcs=reward,
        args=OnlineDPOConfig(
            output_dir=job["folder"],
            per_device_train_batch_size=job["batch_size"],
            num_train_epochs=100,
            max_new_tokens=job["max_new_tokens"],
            max_length=1024,
            temperature=job["temperature"],
            top_p=job["top_p"],
            missing_eos_penalty=job["missing_eos_penalty"],
            learning_rate=job["lr"],
            lr_scheduler_type="constant",
            beta=job["beta"],
            seed=job["seed"],
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=1000,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": chat(prompt)} for prompt in job["prompts"]]),
        processing_class=tokenizer,
        callbacks=[Clock()],
        peft_config=LoraConfig(**job["lora"], task_type="CAUSAL_LM"),
    )
    trainer.train()


main()
