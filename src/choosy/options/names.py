"""Says which option was meant by a name that is none."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

ELSEWHERE = {  # what TRL, PEFT, transformers, LLaMA-Factory and Lightning call it: what Choosy calls it
    "lr": "learning_rate",
    "batching.batch_size": "per_device_train_batch_size train_batch_size batch_size micro_batch_size",
    "rounds": "max_epochs",
    "rounds (of fresh responses) or epochs_per_round (over the pairs of a round)": "num_train_epochs num_epochs "
    "epochs n_epochs",
    "epochs_per_round": "num_ppo_epochs num_mini_epochs num_iterations ppo_epochs steps_per_generation",
    "warmup_steps": "num_warmup_steps warmup lr_warmup_steps warmup_ratio warmup_fraction",
    "schedule (constant, linear or cosine)": "lr_scheduler_type lr_scheduler scheduler lr_schedule scheduler_type "
    "lr_scheduler_kwargs",
    "max_grad_norm": "gradient_clip_val clip_grad_norm grad_clip gradient_clipping",
    "optimizer": "optim optimizer_type",
    "optimizer.weight_decay": "weight_decay",
    "+optimizer.betas=[0.9,0.95]": "adam_beta1 adam_beta2 betas",
    "+optimizer.eps=1e-8": "adam_epsilon eps",
    "run_dir": "output_dir save_dir logging_dir default_root_dir dirpath",
    "name": "run_name exp_name wandb_name project_name",
    "seed": "data_seed random_seed seed_everything",
    "ckpt_path": "resume_from_checkpoint resume checkpoint",
    "model.name": "model_name_or_path model_name model_id pretrained_model_name_or_path base_model model_path "
    "sft_model_path base_model_name_or_path",
    "model.adapter": "adapter_name_or_path adapter_path peft_model_id lora_path adapter_model",
    "model.revision": "model_revision",
    "model.trust_remote_code": "trust_remote_code",
    "model.dtype (auto, bfloat16 or float32)": "torch_dtype dtype precision mixed_precision",
    "model.dtype=bfloat16": "bf16 pure_bf16",
    "model.dtype=nf4": "load_in_4bit use_4bit quantization_bit bnb_4bit_quant_type bnb_4bit_compute_dtype",
    "model.chat_template": "chat_template template chat_template_path",
    "model.lora.r": "lora_r lora_rank r rank",
    "model.lora.alpha": "lora_alpha alpha",
    "model.lora.targets": "lora_target target_modules lora_target_modules lora_targets",
    "model.lora.options": "modules_to_save use_rslora use_dora target_parameters lora_bias additional_target "
    "rank_pattern alpha_pattern exclude_modules layers_to_transform init_lora_weights lora_target_parameters "
    "lora_modules_to_save",
    "model.lora": "use_peft peft_config finetuning_type use_lora peft",
    "model.compute.attention": "attn_implementation flash_attn flash_attention use_flash_attention_2",
    "model.compute.fused": "use_liger_kernel use_liger_loss",
    "batching.tokens_per_step (tokens of one forward pass)": "precompute_ref_batch_size",
    "model.compute.gradient_checkpointing": "gradient_checkpointing use_gradient_checkpointing",
    "router_aux_loss_coef": "output_router_logits aux_loss_coef moe_aux_loss_coef router_aux_loss moe_aux_loss_coeff",
    "reference": "ref_model sync_ref_model ref_model_mixup_alpha ref_model_sync_steps ref_adapter_name reference_model",
    "loss": "loss_type pref_loss loss_fn",
    "loss.beta": "beta pref_beta kl_coef init_kl_coef dpo_beta",
    "loss.shares (of loss=rpo and other sums)": "loss_weights rpo_alpha",
    "loss.weighing.alpha (of loss=ld_dpo)": "ld_alpha",
    "loss.divergence (of loss=f_dpo)": "f_divergence_type",
    "loss.alpha (of loss=f_dpo)": "f_alpha_divergence_coef",
    "loss.temperature (of loss=discopop)": "discopop_tau",
    "loss=wpo": "use_weighting",
    "loss.good_weight (of loss=kto)": "desirable_weight",
    "loss.bad_weight (of loss=kto)": "undesirable_weight",
    "loss.gamma": "simpo_gamma gamma cpo_alpha",
    "loss.label_smoothing": "label_smoothing dpo_label_smoothing",
    "data.train (ID:SUBSET:SPLIT)": "dataset_config dataset_train_split",
    "data.heldout (ID:SUBSET:SPLIT)": "dataset_test_split",
    "data.train": "dataset dataset_name train_file train_dataset dataset_path prompts train_data data_path train_files",
    "data.shares (of several sources in data.train)": "interleave_probs mix_strategy dataset_mixture data_mixture "
    "dataset_weights dataset_mixer probabilities",
    "data.heldout": "eval_dataset validation_file val_dataset eval_data test_file heldout",
    "data.limit": "max_samples max_train_samples train_samples num_samples",
    "data.heldout_limit": "max_eval_samples eval_samples",
    "data.responses": "num_generations n_samples num_return_sequences group_size best_of_n num_generation",
    "data.reader.max_prompt_tokens": "max_prompt_length max_source_length prompt_max_length",
    "data.reader.max_prompt_tokens (of a prompt) and sampler.max_new_tokens (of a response)": "max_length cutoff_len "
    "max_seq_length max_seq_len model_max_length",
    "data.reader.too_long (drop or error)": "truncation_mode truncation",
    "sampler.max_new_tokens": "max_new_tokens max_completion_length max_target_length response_length generate_max_len "
    "max_tokens",
    "sampler.temperature": "temperature",
    "sampler.top_p": "top_p",
    "sampler.top_k": "top_k",
    "sampler=vllm": "use_vllm vllm_mode vllm",
    "sampler.gpu_memory (of sampler=vllm)": "vllm_gpu_memory_utilization gpu_memory_utilization",
    "sampler.sleep (of sampler=vllm)": "vllm_enable_sleep_mode",
    "sampler.tensor_parallel (of sampler=vllm)": "vllm_tensor_parallel_size tensor_parallel_size",
    "sampler=vllm_server sampler.servers": "vllm_server_base_url vllm_server_host vllm_server_port",
    "sampler.patience (of sampler=vllm_server)": "vllm_server_timeout",
    "labeler": "reward judge judges annotator",
    "labeler.weights": "reward_weights",
    "labeler=reward_model labeler.model": "reward_model_path reward_model reward_model_name",
    "labeler=function labeler.path": "reward_function reward_func reward_fn reward_funcs function",
    "labels.budget": "label_budget budget max_labels",
    "labels.missing_eos_penalty": "missing_eos_penalty",
    "callbacks.win_rate.every": "eval_steps eval_strategy evaluation_strategy",
    "callbacks.checkpoint.every_n_steps": "save_steps save_strategy save_interval every_n_train_steps",
    "callbacks.checkpoint.keep": "save_total_limit save_top_k",
    "logger": "report_to loggers use_wandb wandb_project",
    "trainer": "accelerator device use_cpu no_cuda",
    "trainer.devices": "devices num_gpus gpus n_gpus num_processes nproc_per_node",
    "trainer.strategy": "strategy",
    "trainer=fsdp": "deepspeed fsdp fsdp_config zero_stage",
    "selector": "selection acquisition sampling_strategy query_strategy",
    "weighting": "weights pair_weights",
}
NONE = {  # what Choosy has no option for, and why
    "Gradients accumulate by themselves: batching.batch_size counts the items of one optimiser step, and "
    "batching.tokens_per_step the tokens of one forward pass": "gradient_accumulation_steps accumulate_grad_batches",
    "A run counts rounds, not steps: type rounds=8 and data.prompts_per_round=64": "max_steps total_steps",
    "Choosy sets every dropout to 0, so that a response is scored as it is sampled": "lora_dropout dropout "
    "attention_dropout hidden_dropout disable_dropout",
    "Choosy loads no weights in 8 bits: type model.dtype=nf4 for 4 bits": "load_in_8bit quantization_config "
    "quantization_method",
    "Choosy has no fp16: type model.dtype=bfloat16, or model.dtype=float32": "fp16",
    "Every step is logged": "logging_steps logging_strategy log_every_n_steps logging_first_step",
    "Choosy learns from preferences and has no policy gradient: loss=sigmoid is DPO, on fresh responses": "grpo ppo "
    "rloo reinforce reinforce_plus_plus dapo gspo remax",
    "Loading takes model.dtype, model.revision and model.compute.attention": "model_init_kwargs",
    "Log-probs of the reference are computed once a round and kept in rounds/": "precompute_ref_log_probs",
    "Padding is Choosy's own business and changes no value": "padding_free pad_to_multiple_of pad_token packing "
    "train_sampling_strategy group_by_length",
    "Choosy offloads nothing to the CPU: type model.compute.gradient_checkpointing=true": "activation_offloading",
    "Choosy computes a response on one device: type model.compute.gradient_checkpointing=true, and for the longest "
    "responses model.compute.split_long=true too": "context_parallel_size sequence_parallel_size context_parallel "
    "sequence_parallel",
    "Sampling takes temperature, top_p and top_k, whose probabilities are known": "min_p repetition_penalty "
    "generation_kwargs cache_implementation",
    "An engine of sampler=vllm runs in the run's own processes, with the settings that it needs": "vllm_group_port "
    "vllm_model_impl vllm_structured_outputs_regex",
    "Sharded weights are gathered to sample: model.compute.gather says when": "ds3_gather_for_generation",
    "A run uploads nothing by itself; afterwards type choosy push RUN OWNER/NAME": "push_to_hub hub_model_id hub_token",
    "Every tracker gets a table of each round's answers: logger=wandb, mlflow or trackio": "log_completions "
    "num_completions_to_print",
    "What is done goes by the command: choosy train, choosy report": "stage do_train do_eval do_predict task",
    "Columns are found by their names, and those without a use are named": "remove_unused_columns dataset_num_proc "
    "preprocessing_num_workers",
}
HINTS = {  # what else may have been meant by a choice that a group does not have
    "model": "A model of yours goes by model.name=FOLDER.",
    "data": "Your data go by data.train=FILE.",
    "labeler": "A function of yours goes by labeler=function labeler.path=my_rewards.function.",
    "optimizer": "Any other class goes by optimizer._target_=torch.optim.NAME.",
    "logger": "Several go by 'logger=[wandb,mlflow]', none by ~logger, others by their class: "
    "+logger.comet._target_=lightning.pytorch.loggers.CometLogger.",
}
CHOICES = {  # what others call a choice of a group: what Choosy calls it
    "loss": {
        **{"dpo": "sigmoid", "cdpo": "sigmoid loss.label_smoothing=0.1", "slic": "hinge", "kto_pair": "kto"},
        **{"nll": "sft", "cross_entropy": "sft", "exo_pair": "exo", "nca_pair": "nca", "sppo_hard": "sppo"},
        **{"bco_pair": "bco", "sigmoid_norm": "sigmoid_averaged", "smaug": "dpop", "slic_hf": "hinge"},
    },
    "optimizer": {
        **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "fused_adamw", "default"), "adamw"),
        **dict.fromkeys(("adamw_bnb_8bit", "paged_adamw_8bit", "adamw8bit", "adam8bit", "adam_8bit"), "adamw_8bit"),
    },
    "logger": {"tensorboard": "default", "csv": "default"},
    "labeler": {
        **dict.fromkeys(
            ("gpt", "gpt4", "gpt_4", "gpt_4o", "openai", "llm", "llm_judge", "ai", "claude", "api"), "judge"
        ),
        **dict.fromkeys(("rm", "reward", "pairrm", "classifier"), "reward_model"),
        **dict.fromkeys(("reward_function", "reward_func", "reward_fn", "python", "custom", "rule"), "function"),
        **dict.fromkeys(("people", "person", "annotators", "web"), "human"),
        **{"thumbs": "thumbs_human", "human_thumbs": "thumbs_human"},
        **dict.fromkeys(("gold", "given", "data", "file", "ground_truth", "none"), "dataset"),
        **{"self": "contrastive", "self_reward": "contrastive", "dlma": "contrastive", "sentiment": "vader"},
    },
    "trainer": {
        **dict.fromkeys(("deepspeed", "zero", "zero2", "zero3", "fsdp2", "model_parallel"), "fsdp"),
        **dict.fromkeys(("multi_gpu", "distributed", "accelerate", "torchrun", "dp"), "ddp"),
        **{"cuda": "gpu", "single_gpu": "gpu", "mps": "auto", "default": "auto", "slurm": "multi_node"},
    },
    "sampler": dict.fromkeys(("hf", "huggingface", "transformers", "default"), "generate"),
    "data": {
        **dict.fromkeys(("online", "prompts", "prompt", "onpolicy"), "on_policy"),
        **dict.fromkeys(
            ("pairs", "preference", "preferences", "pairwise", "dpo", "kto", "off_policy", "static"), "offline"
        ),
    },
    "selector": {
        **{"apl": "certainty", "real": "dissimilarity", "diversity": "dissimilarity", "adpo": "d_optimal"},
        **{"ucb": "delta_ucb", "random_prompts": "random", "all": "none", "reward_gap": "predicted_gap"},
    },
    "weighting": {"none": "uniform", "reward_gap": "wdpo", "optune": "wdpo", "madpo": "inverse_gap", "given": "column"},
    "model": {"lora": "smollm2", "full": "smollm2_full", "demo": "smollm2"},
}
COMMANDS_OF_OTHERS = {  # what TRL, LLaMA-Factory and their like call a command: what to type
    name: ours
    for ours, names in {
        "choosy merge RUN DIR": "export merge_and_unload",
        "choosy merge RUN DIR --gguf": "gguf convert quantize to_gguf",
        "choosy chat RUN": "generate infer inference predict serve vllm-serve api webchat",
        "choosy evaluate RUN data=prompts.jsonl": "test validate score",
        "choosy push RUN OWNER/NAME": "upload publish push_to_hub",
        "choosy train, whose default is DPO on fresh responses": "dpo online_dpo rlhf rl",
        "choosy train data=offline data.train=rows.jsonl, where the responses are given": "finetune fine-tune",
        "choosy train loss=kto": "kto",
        "choosy train loss=sft": "sft",
        "choosy train name=NAME ckpt_path=last, with what was typed before": "resume continue",
        "choosy train": "run start tune",
        "choosy train -m": "sweep multirun",
        "choosy report RUN": "show summary status",
        "choosy labels stats RUN": "stats ledger",
    }.items()
    for name in names.split()
}
OURS = {name: ours for ours, names in ELSEWHERE.items() for name in names.split()}
WHY_NONE = {name: why for why, names in NONE.items() for name in names.split()}


def meant(typed: str, options: Collection[str], value: str = "") -> str:
    """Return a sentence on the option that was meant by a name, or "" if none is near.

    With the value that was typed the sentence ends with what to type.

    Example:
        >>> meant("data.limt", ["data.limit", "data.train", "lr"])
        'Did you mean data.limit?'
        >>> meant("learning_rate", ["lr"])
        'learning_rate is called lr here.'
        >>> meant("loss_type", ["lr"], "dpo")
        'loss_type is called loss here: type loss=sigmoid.'
        >>> meant("loss.beta", ["loss.parts.own.beta", "lr"])
        'Did you mean loss.parts.own.beta?'
        >>> meant("model.lr", ["model.lora", "lr"])
        'Did you mean lr?'
    """
    last = typed.rpartition(".")[2]
    if last in WHY_NONE:
        return f"{WHY_NONE[last]}."
    if last in OURS and OURS[last] != typed:
        return f"{last} is called {OURS[last]} here{to_type(OURS[last], value)}."
    place = typed.rpartition(".")[0]
    if place and last in options:
        return f"Did you mean {last}?"
    beside = [option for option in options if option.rpartition(".")[0] == place]
    if place and (near := get_close_matches(typed, beside, n=1, cutoff=max(0.8, 1 - 2 / len(typed)))):
        return f"Did you mean {near[0]}?"
    if near := get_close_matches(typed, options, n=1, cutoff=0.8):
        return f"Did you mean {near[0]}?"
    of_last = {option.rpartition(".")[2]: option for option in sorted(options, key=len, reverse=True)}
    of_last |= {name: ours for name, ours in OURS.items() if ours != typed}
    near = get_close_matches(last, of_last, n=1, cutoff=0.75)
    return f"Did you mean {of_last[near[0]]}?" if near else ""


def to_type(ours: str, value: str) -> str:
    """Return how a value of another library's option is typed here, behind a colon; "" where it has another meaning.

    Example:
        >>> to_type("labeler=function labeler.path", "rewards.py:f"), to_type("logger", "true")
        (': type labeler=function labeler.path=rewards.py:f', '')
    """
    word = value.lower().replace("-", "_")
    fits = word.isidentifier() if ours in CHOICES else word.isdigit() if ours.startswith("callbacks.") else bool(word)
    is_another = "(" in ours or "=" in ours.split()[-1] or ours in ("reference", "model.lora")
    if not fits or is_another or word in ("true", "false", "none", "null"):
        return ""
    return f": type {ours}={CHOICES.get(ours, {}).get(word, value)}"


def file_meant(path: Path) -> str:
    """Return a question on the file or folder that was meant by a path that is not there; "" if none is near."""
    try:
        beside = [one.name for one in path.parent.iterdir() if one.name != path.name]
    except OSError:
        return ""
    near = get_close_matches(path.name, beside, n=1, cutoff=0.75)
    return f"did you mean {path.parent / near[0]}?" if near else ""


def any_of(words: Collection[str]) -> str:
    """Join alternatives as a sentence does.

    Example:
        >>> any_of(["a", "b", "c"])
        'a, b or c'
    """
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
