"""Whatever adapter is loaded, what is sampled is what is scored, trained and computed by PEFT itself."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM

from choosy.models.adapters import Lora
from choosy.models.loading import switch_off_dropout
from choosy.models.policy import Policy
from choosy.models.rows import Group
from choosy.sampling.generate import Generate
from choosy.types import Candidates, Message, Prompt, Response

IDS = tuple(b"Tell me about tea.")
ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, Any] = {
    "plain": LoraConfig(r=4, target_modules=ATTENTION),
    "rslora": LoraConfig(r=4, target_modules=ATTENTION, use_rslora=True),
    "dora": LoraConfig(r=4, target_modules=ATTENTION, use_dora=True),
    "head saved": LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["lm_head"]),
    "head adapted": LoraConfig(r=4, target_modules=[*ATTENTION, "lm_head"]),
    "embeddings adapted": LoraConfig(r=4, target_modules=[*ATTENTION, "embed_tokens"]),
    "bias of lora": LoraConfig(r=4, target_modules=ATTENTION, lora_bias=True),
    "dropout": LoraConfig(r=4, target_modules=ATTENTION, lora_dropout=0.3),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha with dropout": LoHaConfig(r=4, target_modules=ATTENTION, module_dropout=0.3, rank_dropout=0.3),
    "lokr": LoKrConfig(r=4, target_modules=ATTENTION),
}
OF_HEADS = ["plain", "head saved", "head adapted", "embeddings adapted"]


def tied(folder: Path, to: Path) -> Path:
    """The tiny model with its head tied to its embeddings."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def adapter(model: Path, config: Any, folder: Path) -> Path:
    """An adapter, moved away from zero, as a PEFT script leaves it."""
    config = replace(config, task_type="CAUSAL_LM")  # a copy: PEFT writes the model's name into it
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        for p in made.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    made.save_pretrained(folder)
    return folder


def by_peft(policy: Policy, ids: tuple[int, ...]) -> float:
    """The log-probability of a response by the adapted model's own forward."""
    with torch.no_grad():
        logp_LV = policy.model(input_ids=torch.tensor([[*IDS, *ids]])).logits[0].log_softmax(-1)
    return sum(logp_LV[len(IDS) + n - 1, token].item() for n, token in enumerate(ids))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, of adapters of heads, embeddings and biases
@pytest.mark.parametrize(
    ("kind", "head"), [*((kind, "untied") for kind in KINDS), *((kind, "tied") for kind in KINDS if kind in OF_HEADS)]
)
def test_sampled_scored_and_trained_alike(kind: str, head: str, tiny_policy_dir: Path, tmp_path: Path) -> None:
    model = tied(tiny_policy_dir, tmp_path / "tied") if head == "tied" else tiny_policy_dir
    folder = adapter(model, KINDS[kind], tmp_path / "adapter")
    policy = Policy(str(model), lora=Lora(), adapter=str(folder), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    (responses,) = Generate(max_new_tokens=8).sample(policy, [IDS], [list(range(6))])
    wanted = [by_peft(policy, r.ids) for r in responses]
    (scored,) = policy.score([Candidates(Prompt("p", ""), tuple(responses), IDS)])
    policy.train()
    group = Group(IDS, [r.ids for r in responses])
    trained = policy.token_logps([group]).split([len(r.ids) for r in responses])
    assert scored == pytest.approx(wanted, abs=1e-3)
    assert [logp_T.sum().item() for logp_T in trained] == pytest.approx(wanted, abs=1e-3)
    assert [r.logp for r in responses] == pytest.approx(wanted, abs=1e-3)


def test_only_plain_lora_is_sharded(tiny_policy_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_policy_dir, KINDS["dora"], tmp_path / "adapter")
    policy = Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(folder), dtype="float32")
    with pytest.raises(ValueError, match=r"trainer=fsdp shards plain LoRA only, .* choose trainer=ddp"):
        policy.load(device=torch.device("cpu"), seed=0, sharded=True)


def test_learned_prompts_are_refused(tiny_policy_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_policy_dir, PromptTuningConfig(num_virtual_tokens=2), tmp_path / "adapter")
    policy = Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(folder), dtype="float32")
    with pytest.raises(ValueError, match=r"model\.adapter=.* does not load: .*prompt learning"):
        policy.load(device=torch.device("cpu"), seed=0)


def first_logp(policy: Policy) -> float:
    policy.load(device=torch.device("cpu"), seed=0)
    ((logp,),) = policy.score([Candidates(Prompt("p", ""), (Response("tea", tuple(b"tea")),), IDS)])
    return logp


def test_a_folder_with_an_adapter_means_the_adapter(tiny_policy_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_policy_dir, KINDS["plain"], tmp_path / "run" / "adapter")
    right = first_logp(Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(folder), dtype="float32"))
    assert right != first_logp(Policy(str(tiny_policy_dir), lora=Lora(), dtype="float32"))
    run = str(tmp_path / "run")
    for name, of in ((tiny_policy_dir, run), (folder, None), (run, None), (run, str(folder))):
        assert first_logp(Policy(str(name), lora=Lora(), adapter=of, dtype="float32")) == right


def test_an_adapter_names_a_local_model_from_any_folder(
    tiny_policy_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_policy_dir.parent)
    policy = Policy(tiny_policy_dir.name, lora=Lora(), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    policy.save(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tiny_policy_dir.resolve())


def test_a_run_that_trained_all_weights_is_a_model(tiny_policy_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_policy_dir, tmp_path / "run" / "model")
    assert Policy(str(tmp_path / "run"), dtype="float32").source.name == str(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=rf"holds no adapter.*type model\.name={tmp_path}/run"):
        Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(tmp_path / "run"))


def test_a_folder_without_an_adapter_is_named(tiny_policy_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"model\.adapter={tmp_path} holds no adapter: there is no adapter_config\.json"
    ):
        Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(tmp_path))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora(r=8), r"has r=4, and model\.lora\.r=8 would change nothing; leave out model\.lora\.r"),
        (Lora(alpha=5), r"model\.lora\.alpha=5 would change nothing"),
        (Lora(targets=["k_proj"]), r"model\.lora\.targets=\['k_proj'\] would change nothing"),
        (Lora(options={"use_dora": True}), r"model\.lora\.options={'use_dora': True} would change nothing"),
    ],
)
def test_settings_that_an_adapter_overrules_are_refused(lora, message, tiny_policy_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_policy_dir, KINDS["plain"], tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        Policy(str(tiny_policy_dir), lora=lora, adapter=str(folder))
    same = Lora(r=4, targets=ATTENTION[::-1], options={"use_dora": False})
    assert Policy(str(tiny_policy_dir), lora=same, adapter=str(folder)).adapter == str(folder)


def test_two_adapters_are_one_too_many(tiny_policy_dir: Path, tmp_path: Path) -> None:
    one, two = (str(adapter(tiny_policy_dir, KINDS["plain"], tmp_path / name)) for name in ("one", "two"))
    with pytest.raises(ValueError, match=r"leave one out"):
        Policy(one, lora=Lora(), adapter=two)
    with pytest.raises(ValueError, match=r"is an adapter, which model\.lora=null does not train"):
        Policy(one, lora=None)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
        {"target_parameters": ["q_proj.weight"]},
        {"trainable_token_indices": [1, 2]},
        {"rank_pattern": {"q_proj": 2}},
    ],
    ids=str,
)
def test_a_configured_adapter_is_sampled_as_it_is_scored(options, tiny_policy_dir: Path) -> None:
    targets = [] if "target_parameters" in options else ["q_proj", "v_proj"]
    policy = Policy(str(tiny_policy_dir), lora=Lora(r=4, targets=targets, options=options), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_(0.3 * torch.randn_like(p))
    (responses,) = Generate(max_new_tokens=8).sample(policy, [IDS], [list(range(4))])
    (scored,) = policy.score([Candidates(Prompt("p", ""), tuple(responses), IDS)])
    wanted = [by_peft(policy, r.ids) for r in responses]
    assert [r.logp for r in responses] == pytest.approx(wanted, abs=1e-3)
    assert scored == pytest.approx(wanted, abs=1e-3)


def test_muon_leaves_out_the_trained_copy_of_the_head(tiny_policy_dir: Path) -> None:
    options = {"modules_to_save": ["lm_head"]}
    policy = Policy(str(tiny_policy_dir), lora=Lora(r=4, targets=["q_proj", "embed_tokens"], options=options))
    policy.load(device=torch.device("cpu"), seed=0)
    of_vocabulary = {name for name, p in policy.trainable() if getattr(p, "of_vocabulary", False)}
    assert of_vocabulary == {name for name, _ in policy.trainable() if "lm_head" in name} != set()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 0}, r"model\.lora\.r=0 trains nothing"),
        ({"options": {"lora_dropout": 0.1}}, "every dropout is 0"),
        ({"options": {"init_lora_weights": "pissa_niter_4"}}, "changes the frozen weights"),
        ({"options": {"use_dorra": True}}, r"is no argument of PEFT's LoraConfig\. Did you mean use_dora\?"),
        ({"options": {"lora_alpha": 3}}, r"goes by model\.lora\.alpha\."),
        (
            {"targets": "vv_proj"},
            r"no such layer\. Did you mean v_proj\? It has down_proj, [^.]*q_proj, up_proj, v_proj\.$",
        ),
        ({"targets": ["q_proj", "vv_proj"]}, r"names vv_proj, and the model has no such layer"),
        ({"targets": "nothing.*"}, r"PEFT makes no adapter of model\.lora: .*nothing"),
        ({"targets": ["norm"]}, r"PEFT makes no adapter of model\.lora: "),
    ],
    ids=str,
)
def test_a_configured_adapter_that_makes_no_sense(lora: Any, message: str, tiny_policy_dir: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(str(tiny_policy_dir), lora=Lora(**lora), dtype="float32").load(device=torch.device("cpu"), seed=0)


def test_every_dropout_is_off_also_one_that_a_layer_keeps_as_a_number() -> None:
    """OPT calls a function with its rate, and skips whole layers."""
    size = {"vocab_size": 50, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(**size, word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5, layerdrop=0.5))
    switch_off_dropout(model)
    ids_1L = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted, *found = (model.train(mode)(input_ids=ids_1L).logits for mode in (False, True, True))
    for logits in found:
        torch.testing.assert_close(logits, wanted)


def test_a_dtype_that_is_none_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"model\.dtype=float8 is none of auto, bfloat16, float32"):
        Policy("/no/such/model", dtype="float8")  # type: ignore[arg-type]


def test_the_log_says_which_settings_an_adapter_brings(
    tiny_policy_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = adapter(
        tiny_policy_dir, LoraConfig(r=3, lora_alpha=5, target_modules=["v_proj", "q_proj"]), tmp_path / "a"
    )
    policy = Policy(str(tiny_policy_dir), lora=Lora(r=16), adapter=str(folder), dtype="float32")
    with caplog.at_level(logging.INFO):
        policy.load(device=torch.device("cpu"), seed=0)
    assert "is used with its own LORA settings: r=3, lora_alpha=5, target_modules=['q_proj', 'v_proj']." in caplog.text


def test_a_tokenizer_beside_an_adapter_is_used(tiny_policy_dir: Path, tmp_path: Path, caplog: Any) -> None:
    folder = adapter(tiny_policy_dir, KINDS["plain"], tmp_path / "adapter")
    prompt = Prompt("p", "Why?", (Message("user", "Why?"),))
    plain = Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(folder)).tokens
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_dir)
    tokenizer.chat_template = f"Q: {tokenizer.chat_template}"
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.INFO):
        brought = Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(folder)).tokens
        first = plain.tokenizer("Q: ", add_special_tokens=False).input_ids
        assert brought.encode_prompt(prompt) == (*first, *plain.encode_prompt(prompt))
    assert f"model.adapter={folder} brings its own tokenizer" in caplog.text
    assert Policy(str(folder), lora=Lora()).tokens.encode_prompt(prompt) == brought.encode_prompt(prompt)
    assert brought.window == plain.window, "the context window is the model's"


def test_targets_that_the_model_lacks_are_named(tiny_policy_dir: Path) -> None:
    policy = Policy(str(tiny_policy_dir), lora=Lora(targets=["q_proj", "vv_proj"]), dtype="float32")
    with pytest.raises(ValueError, match=r"targets names vv_proj, and the model has no such layer\. .* v_proj"):
        policy.load(device=torch.device("cpu"), seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reference_whose_adapter_adds_nothing_is_scored_without_it(dtype: Any, tiny_policy_dir: Path) -> None:
    policy = Policy(str(tiny_policy_dir), lora=Lora(r=4), dtype=dtype)
    policy.load(device=torch.device("cpu"), seed=0)
    candidates = [Candidates(Prompt("p", ""), (Response("", (65, 66, 67)), Response("", (68,))), IDS)]
    trained = [name for name, _ in policy.trainable()]
    (fresh,) = policy.score(candidates)
    asked: list[bool] = []
    layer = next(module for name, module in policy.model.named_modules() if name.endswith("q_proj"))
    layer.register_forward_hook(lambda *_: asked.append(layer.disable_adapters))

    def score_reference() -> list[float]:
        (scored,) = policy.score_reference(candidates)
        return [r.logp_ref for r in scored.responses]

    assert score_reference() == fresh  # to the bit
    assert asked == [True]
    with torch.no_grad():
        for name, p in policy.trainable():
            if "lora_B" in name:
                p.fill_(0.1)
    (moved,) = policy.score(candidates)
    assert score_reference() == fresh != moved
    policy.states.refer_to_current()
    assert score_reference() == moved
    assert asked == [True, False, True, False]
    assert [name for name, _ in policy.trainable()] == trained
