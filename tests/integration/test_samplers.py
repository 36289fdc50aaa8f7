"""What every sampling engine promises, on every device there is: one suite for all of them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import command, skip_without_vllm

from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.sampling import vllm, vllm_refusals
from choosy.sampling.auto import Auto, fastest
from choosy.sampling.generate import Generate, refuse_deterministic
from choosy.sampling.protocol import Sampler, check_engine
from choosy.sampling.settings import SamplingSettings
from choosy.sampling.vllm import Vllm
from choosy.sampling.vllm_server import VllmServer
from choosy.types import Candidates, Prompt, Response, seed_of

ENGINES = {"generate": Generate, "vllm": Vllm, "vllm_server": VllmServer}
DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 24}
BUILT = {"max_new_tokens": 64, "max_prompt_tokens": 128, "batch_size": 32, "compiled": False}

Make = Callable[..., Sampler]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def policy(request: pytest.FixtureRequest, wide_policy_dir: Path) -> Policy:
    """The wide policy, its adapter moved away from zero, in fp32."""
    policy = Policy(str(wide_policy_dir), lora=Lora(r=4), dtype="float32")
    policy.load(device=torch.device(request.param), seed=0)
    move(policy, seed=1)
    return policy


@torch.no_grad()
def move(policy: Policy, *, seed: int) -> None:
    """Other weights, as a round of training leaves them."""
    noise = torch.Generator().manual_seed(seed)
    for name, p in policy.trainable():
        if "lora_B" in name:
            p.copy_(torch.empty(p.shape).normal_(0, 0.05, generator=noise))


@pytest.fixture(scope="module", params=list(ENGINES))
def make(request: pytest.FixtureRequest, policy: Policy) -> Iterator[Make]:
    """Make the engine with these settings; vLLM and its servers, slow to start, are started once and set anew."""
    if request.param == "generate":
        yield lambda **settings: Generate(**DEFAULTS | settings)
        return
    skip_without_vllm()
    if request.param == "vllm":
        engine: Sampler = Vllm(**BUILT)
    else:
        servers = request.getfixturevalue("vllm_servers")
        folder = request.getfixturevalue("tmp_path_factory").mktemp("served")
        engine = VllmServer(servers=list(servers), folder=str(folder))

    def made(**settings: Any) -> Sampler:
        for name, value in (DEFAULTS | settings).items():
            setattr(engine, name, value)
        return engine

    yield made
    engine.close()


def prompts(policy: Policy) -> list[tuple[int, ...]]:
    return [policy.tokens.encode_prompt(Prompt(text, text)) for text in ("Tea?", "Tell me about rain.", "x" * 60)]


SEEDS = [[seed_of("one", n) for n in range(3)], [seed_of("two", 0)], [seed_of("three", n) for n in range(2)]]


def ids(sampled: list[list[Response]]) -> list[list[tuple[int, ...]]]:
    return [[r.ids for r in of_prompt] for of_prompt in sampled]


def test_one_response_for_each_seed_of_each_prompt(make, policy):
    ended: list[tuple[int, list[Response]]] = []
    sampled = make().sample(policy, prompts(policy), SEEDS, done=lambda some: ended.extend(some.items()))
    assert [len(of_prompt) for of_prompt in sampled] == [3, 1, 2]
    assert sorted(ended) == [*enumerate(sampled)], "each prompt is reported once, with all that is returned for it"
    for r in (r for of_prompt in sampled for r in of_prompt):
        assert 1 <= len(r.ids) <= 24
        assert r.text == policy.tokens.decode(r.ids).strip()
        assert r.finished or len(r.ids) == 24
    assert make().sample(policy, [], []) == []


def test_the_text_depends_on_the_seed_alone(make, policy):
    asked = prompts(policy)
    together = ids(make().sample(policy, asked, SEEDS))
    assert ids(make().sample(policy, asked, SEEDS)) == together
    assert ids(make().sample(policy, asked[::-1], SEEDS[::-1])) == together[::-1]
    alone = [
        [make().sample(policy, [p], [[seed]])[0][0].ids for seed in of_prompt]
        for p, of_prompt in zip(asked, SEEDS, strict=True)
    ]
    assert alone == together
    others = ids(make().sample(policy, asked, [[seed + 1 for seed in of_prompt] for of_prompt in SEEDS]))
    assert all(a != b for mine, theirs in zip(together, others, strict=True) for a, b in zip(mine, theirs, strict=True))
    assert len(set(together[0])) == 3


def test_it_stops_at_the_end_and_keeps_it(make, policy):
    (responses,) = make(max_new_tokens=48).sample(policy, prompts(policy)[:1], [list(range(64))])
    ended = [r for r in responses if r.finished]
    assert 0 < len(ended) < 64
    for r in responses:
        assert (r.ids[-1] in policy.tokens.stop_ids) == r.finished
        assert not policy.tokens.stop_ids & set(r.ids[:-1])
        assert policy.tokens.tokenizer.eos_token not in r.text
        assert r.finished or len(r.ids) == 48


def test_a_response_may_end_at_once(make, policy, monkeypatch):
    asked = prompts(policy)[:1]
    seeds = [list(range(12))]
    (first,) = make(max_new_tokens=1).sample(policy, asked, seeds)
    monkeypatch.setattr(policy.tokens, "stop_ids", frozenset({first[0].ids[0]}))
    (responses,) = make(max_new_tokens=4).sample(policy, asked, seeds)
    assert responses[0].ids == first[0].ids
    assert responses[0].finished


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 50}], ids=["plain", "cut"])
def test_the_log_prob_is_the_policys_own(settings, make, policy):
    asked = prompts(policy)
    sampled = make(**settings).sample(policy, asked, SEEDS)
    scored = policy.score([Candidates(Prompt("", ""), tuple(rs), p) for p, rs in zip(asked, sampled, strict=True)])
    for responses, own in zip(sampled, scored, strict=True):
        assert [r.logp for r in responses] == pytest.approx(own, abs=1e-3)


def first_token_probabilities(
    policy: Policy, prompt: tuple[int, ...], *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> torch.Tensor:
    """By the book: heat, keep the top_k, keep the smallest set that reaches top_p, and share out the rest."""
    with policy.for_sampling():
        logits = policy.causal_lm(torch.tensor([prompt], device=policy.device)).logits[0, -1].double().cpu()
    order = logits.argsort(descending=True)
    if top_k:
        order = order[:top_k]
    share = (logits[order] / temperature).softmax(-1)
    kept = int((share.cumsum(-1) < top_p - 1e-12).sum()) + 1
    probabilities = torch.zeros_like(logits)
    probabilities[order[:kept]] = share[:kept] / share[:kept].sum()
    return probabilities


@pytest.mark.parametrize(
    ("own", "of_the_call"),
    [
        ({}, None),
        ({"temperature": 0.6}, None),
        ({"top_p": 0.7}, None),
        ({"top_k": 12}, None),
        ({"temperature": 1.5, "top_p": 0.8, "top_k": 40}, None),
        ({"temperature": 0.3, "top_p": 0.5, "top_k": 3}, {}),
        ({}, {"temperature": 0.6}),
        ({"top_k": 3}, {"top_p": 0.7}),
        ({"temperature": 0.3}, {"top_k": 12}),
    ],
    ids=lambda settings: "none" if settings is None else "-".join(settings) or "plain",
)
def test_first_tokens_come_as_often_as_the_settings_say(own, of_the_call, make, policy):
    settings = None if of_the_call is None else SamplingSettings(max_new_tokens=1, **of_the_call)
    sampler = make(max_new_tokens=1 if settings is None else 24, **own)
    if isinstance(sampler, VllmServer) and len(own) not in (0, 3):
        pytest.skip("a request for each response: all settings at once, and those of a call, show it")
    n, prompt = 1500 if isinstance(sampler, VllmServer) else 3000, prompts(policy)[1]
    (responses,) = sampler.sample(policy, [prompt], [[seed_of("chi", i) for i in range(n)]], settings=settings)
    assert all(len(r.ids) == 1 for r in responses)
    in_force = own if of_the_call is None else of_the_call
    refute([r.ids[0] for r in responses], first_token_probabilities(policy, prompt, **in_force))


def refute(seen: list[int], probabilities: torch.Tensor) -> None:
    """Fail if tokens were not drawn with these probabilities, by chi-square."""
    n, counts = len(seen), Counter(seen)
    expected = (probabilities * n).tolist()
    assert not [token for token in counts if expected[token] == 0], "tokens that were cut off"
    common = [token for token, often in enumerate(expected) if often >= 5]
    rest = n - sum(expected[token] for token in common), n - sum(counts[token] for token in common)
    bins = [(expected[token], counts[token]) for token in common] + ([rest] if rest[0] >= 1 else [])
    total = sum(often for often, _ in bins)
    found = sum(often for _, often in bins)
    assert len(bins) >= 3
    statistic = sum((often - e * found / total) ** 2 / (e * found / total) for e, often in bins)
    assert upper_tail(statistic, len(bins) - 1) > 1e-3


def upper_tail(statistic: float, degrees: int) -> float:
    """The probability that a chi-square variable is larger than this; a machine with a GPU may lack SciPy."""
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(*half))


def test_the_upper_tail_is_that_of_published_tables() -> None:
    for degrees, statistic in ((1, 3.841), (5, 11.070), (20, 31.410)):
        assert upper_tail(statistic, degrees) == pytest.approx(0.05, abs=1e-4)


def test_temperature_zero_takes_the_likeliest_token(make, policy):
    prompt = prompts(policy)[1]
    ((greedy,),) = make(temperature=0, max_new_tokens=6).sample(policy, [prompt], [[7]])
    for n, token in enumerate(greedy.ids):
        assert first_token_probabilities(policy, prompt + greedy.ids[:n]).argmax() == token


def test_new_weights_are_sampled_at_once_and_the_old_ones_come_back(make, policy):
    asked, before = prompts(policy), {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    old = ids(make().sample(policy, asked, SEEDS))
    with policy.states.as_start():
        start = make().sample(policy, asked, SEEDS)
        scored = policy.score([Candidates(Prompt("", ""), tuple(r), p) for p, r in zip(asked, start, strict=True)])
    assert ids(start) != old
    for responses, own in zip(start, scored, strict=True):
        assert [r.logp for r in responses] == pytest.approx(own, abs=1e-3)
    assert ids(make().sample(policy, asked, SEEDS)) == old
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())


def test_a_closed_engine_starts_again(make, policy):
    sampler, asked = make(), prompts(policy)[:1]
    before = ids(sampler.sample(policy, asked, SEEDS[:1]))
    sampler.close()
    sampler.close()
    assert ids(sampler.sample(policy, asked, SEEDS[:1])) == before


@pytest.mark.parametrize("engine", [SamplingSettings, *ENGINES.values(), Auto], ids=lambda engine: engine.__name__)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, r"sampler\.temperature=-1\.0 samples nothing; choose >= 0"),
        ({"top_p": 0.0}, r"sampler\.top_p=0\.0 samples nothing; choose in \(0, 1\]"),
        ({"top_k": -1}, r"sampler\.top_k=-1 samples nothing; choose >= 0"),
        ({"max_new_tokens": 0}, r"sampler\.max_new_tokens=0 samples nothing; choose >= 1"),
        ({"batch_size": 0}, r"sampler\.batch_size=0 samples nothing; choose >= 1"),
    ],
)
def test_settings_that_sample_nothing_are_refused(setting, message, engine):
    if engine is SamplingSettings and "batch_size" in setting:
        pytest.skip("an engine's own")
    with pytest.raises(ValueError, match=message):
        engine(**setting)


def test_settings_of_one_engine_are_refused_by_it(monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda: True)
    with pytest.raises(ValueError, match=r"sampler\.cache_gib=0 holds no cache; choose above 0, or null"):
        Vllm(cache_gib=0)
    with pytest.raises(ValueError, match=r"sampler\.gpu_memory=1\.5 is no share .* choose in \(0, 1\]"):
        Vllm(gpu_memory=1.5)
    with pytest.raises(ValueError, match=r"sampler\.tensor_parallel=0 makes no engine; choose >= 1"):
        Vllm(tensor_parallel=0)
    with pytest.raises(ValueError, match=r"tensor_parallel=2 has processes .* sampler\.ahead=1 .*; choose one of the"):
        Vllm(tensor_parallel=2, ahead=1)


# -- vLLM ---------------------------------------------------------------------------------------------------------


def test_vllm_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"needs vLLM 0\.32, which is not installed.*pip install.*sampler=generate"):
        Vllm()


def test_vllm_refuses_a_prompt_it_was_not_built_for(policy, monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda: True)
    with pytest.raises(ValueError, match=r"_tokens=60 is wanted .*; type sampler\.max_prompt_tokens=60 or more"):
        Vllm(max_prompt_tokens=8).sample(policy, [tuple(range(60))], [[0]])


def test_vllm_refuses_longer_responses_than_it_was_built_for(policy, monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda: True)
    with pytest.raises(ValueError, match=r"max_new_tokens=9 is wanted .*; type sampler\.max_new_tokens=9 or more"):
        Vllm(max_new_tokens=8).sample(policy, [(1,)], [[0]], settings=SamplingSettings(max_new_tokens=9))


def test_vllm_refuses_where_it_cannot_run():
    with pytest.raises(ValueError, match=r"takes whole weights.*Choose sampler=generate, model\.compute\.gather=alw"):
        vllm_refusals.refuse_shares(SimpleNamespace(is_gathered=False))
    with pytest.raises(ValueError, match=r"on cuda and the installed vLLM is built for cpu; choose trainer=cpu"):
        vllm_refusals.refuse_device("cuda", "cpu")


@pytest.mark.parametrize(
    ("processes", "ranks", "config", "message"),
    [
        (
            2,
            1,
            {},
            r"tensor_parallel=2 makes engines of 2 processes each, and this run has 1; choose 1 or another numb",
        ),
        (3, 4, {}, r"tensor_parallel=3 makes .*, and this run has 4; choose 1, 2, 4 or another number of trainer\.dev"),
        (4, 4, {"num_attention_heads": 6}, r"=4 divides every layer .*, and x has num_attention_heads=6; choose a div"),
        (3, 3, {"num_key_value_heads": 2}, r"=3 divides every layer .*, and x has num_key_value_heads=2; choose a div"),
        (4, 8, {"intermediate_size": 6}, r"=4 divides every layer .*, and x has intermediate_size=6; choose a divisor"),
        (4, 8, {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": None}, None),
        (2, 2, {"num_key_value_heads": 4}, None),
    ],
)
def test_vllm_refuses_groups_that_do_not_divide(processes, ranks, config, message):
    sizes = {"num_attention_heads": 12, "num_key_value_heads": 12, "intermediate_size": 24} | config
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**sizes)))
    policy = SimpleNamespace(causal_lm=model, source=SimpleNamespace(name="x"))
    if message is None:
        vllm_refusals.refuse_group(policy, processes, ranks)
        return
    with pytest.raises(ValueError, match=message):
        vllm_refusals.refuse_group(policy, processes, ranks)


def test_a_run_whose_processes_make_no_engine_ends_before_its_weights_are_loaded(play, monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda: True)
    monkeypatch.setattr(Policy, "load", lambda *_, **__: pytest.fail("the weights were loaded"))
    with pytest.raises(ValueError, match=r"tensor_parallel=2 makes engines of 2 processes each, and this run has 1"):
        play("sampler=vllm", "sampler.tensor_parallel=2")
    with pytest.raises(ValueError, match=r"tensor_parallel=2 has processes of the run share .*; choose one of the two"):
        Vllm(tensor_parallel=2, ahead=1)


def test_vllm_sleeps_on_no_cpu(policy, monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda: True)
    if policy.device.type == "cuda":
        pytest.skip("it sleeps on a GPU")
    with pytest.raises(ValueError, match=r"sampler\.sleep=true .* policy is on the CPU, where an engine cannot; leave"):
        Vllm(sleep=True).sample(policy, prompts(policy), SEEDS)


def test_vllm_refuses_weights_that_it_cannot_take_as_an_adapter(monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda: True)
    with pytest.raises(ValueError, match=r"sampler\.sync=adaptor is none of merged, adapter\."):
        Vllm(sync="adaptor")
    whole = SimpleNamespace(is_mergeable=True, lora=None, adapter=None)
    with pytest.raises(
        ValueError, match=r"sampler\.sync=adapter hands over a LoRA adapter, and model\.lora=null trains"
    ):
        vllm_refusals.refuse_sync(whole, "adapter")
    vllm_refusals.refuse_sync(whole, "merged")
    with pytest.raises(
        ValueError,
        match=r"takes plain LoRA on whole weights.*4-bit.*adapter of another kind.*choose sampler=gen",
    ):
        vllm_refusals.refuse_sync(SimpleNamespace(is_mergeable=False, adapter="x"), "merged")
    with pytest.raises(ValueError, match=r"takes ranks up to 512; type sampler\.sync=merged"):
        vllm_refusals.engine_rank(513)


def test_vllm_samples_an_adapter_as_it_is_trained(policy):
    skip_without_vllm()
    sampler, asked = Vllm(**BUILT | {"max_new_tokens": 24}, sync="adapter"), prompts(policy)
    sampled = sampler.sample(policy, asked, SEEDS)
    with policy.states.as_start():
        assert ids(sampler.sample(policy, asked, SEEDS)) != ids(sampled)
    assert ids(sampler.sample(policy, asked, SEEDS)) == ids(sampled)
    sampler.close()
    scored = policy.score([Candidates(Prompt("", ""), tuple(rs), p) for p, rs in zip(asked, sampled, strict=True)])
    for responses, own in zip(sampled, scored, strict=True):
        assert [r.logp for r in responses] == pytest.approx(own, abs=1e-3)


ON_A_RANK = """
import json, os
import torch
import torch.distributed as dist
from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.sampling.settings import SamplingSettings
from choosy.sampling.vllm import Vllm

model, built, calls = json.load(open("asked.json"))
rank = int(os.environ["LOCAL_RANK"])
dist.init_process_group("gloo", rank=rank, world_size=2)
policy = Policy(model, lora=Lora(r=4), dtype="float32")
policy.load(device=torch.device("cpu"), seed=0)
weights = torch.load("adapter.pt")
for name, p in policy.trainable():
    p.data.copy_(weights[name])
engine, sampled = Vllm(**built), []
for prompts, seeds, tokens in calls:
    settings = SamplingSettings(max_new_tokens=tokens)
    answers = engine.sample(policy, prompts[rank::2], seeds[rank::2], settings=settings)
    sampled.append([[list(r.ids) for r in of_prompt] for of_prompt in answers])
engine.close()
answers = engine.sample(policy, prompts[rank:1], seeds[rank:1], settings=settings)  # the other rank has none
assert [[list(r.ids) for r in of_prompt] for of_prompt in answers] == sampled[-1][: 1 - rank]
json.dump(sampled, open(f"sampled{rank}.json", "w"))
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("together", [1, 2], ids=["an engine each", "one engine"])
def test_vllm_samples_on_two_ranks_as_on_one(together, policy, wide_policy_dir, tmp_path):
    skip_without_vllm()
    if policy.device.type == "cuda":
        pytest.skip("the ranks are on the CPU")
    asked = prompts(policy)
    sampler = Vllm(**BUILT)
    alone = ids(sampler.sample(policy, asked, SEEDS, settings=SamplingSettings(max_new_tokens=24)))
    sampler.close()
    many = [[seed_of("chi", rank, n) for n in range(1500)] for rank in range(2)]
    calls = [([asked[1]] * 2, many, 1), (asked, SEEDS, 24)]
    built = BUILT | {"tensor_parallel": together}
    (tmp_path / "asked.json").write_text(json.dumps([str(wide_policy_dir), built, calls]))
    torch.save({name: p.detach() for name, p in policy.trainable()}, tmp_path / "adapter.pt")
    (tmp_path / "on_a_rank.py").write_text(ON_A_RANK)
    done = command(tmp_path / "on_a_rank.py", folder=tmp_path, ranks=2, timeout=900)
    assert done.returncode == 0, done.stderr
    of_ranks = [json.loads((tmp_path / f"sampled{rank}.json").read_text()) for rank in range(2)]
    texts: list[Any] = [None] * len(asked)
    for rank, (_, of_prompts) in enumerate(of_ranks):
        texts[rank::2] = [[tuple(tokens) for tokens in of_prompt] for of_prompt in of_prompts]
    assert texts == alone
    firsts = [token for (first, _) in of_ranks for of_prompt in first for (token,) in of_prompt]
    assert len(firsts) == 3000
    refute(firsts, first_token_probabilities(policy, asked[1]))


IN_A_GROUP_OF_ONE = """
import sys
import torch
import torch.distributed as dist
from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.sampling.vllm import Vllm

policy = Policy(sys.argv[1], lora=Lora(r=4), dtype="float32")
policy.load(device=torch.device("cpu"), seed=0)
engine = Vllm(max_new_tokens=4, max_prompt_tokens=32, batch_size=4, compiled=False)
if sys.argv[2] == "of the run":
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=0, world_size=1)
sampled = [engine.sample(policy, [[5, 6, 7]], [[1]])]
engine.close()
assert dist.is_initialized() == (sys.argv[2] == "of the run")
sampled.append(engine.sample(policy, [[5, 6, 7]], [[1]]))
engine.close()
assert sampled[0] == sampled[1]
assert dist.is_initialized() == (sys.argv[2] == "of the run")
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("group", ["of the run", "of the engine"])
def test_vllm_leaves_a_group_of_one_process_to_the_run_that_made_it(group, wide_policy_dir, tmp_path):
    skip_without_vllm()
    (script := tmp_path / "alone.py").write_text(IN_A_GROUP_OF_ONE)
    done = command(script, wide_policy_dir, group, tmp_path / "group", folder=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr


def test_an_engine_that_samples_another_model_is_found_out(policy):
    prompt = prompts(policy)[0]
    ((honest,),) = Generate(max_new_tokens=8).sample(policy, [prompt], [[0]])
    check_engine("generate", policy, prompt, honest)
    with (
        policy.states.as_start(),
        pytest.raises(ValueError, match=r"sampler=generate gave .* samples another model"),
    ):
        check_engine("generate", policy, prompt, honest)


# -- auto ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "has_vllm", "sharded", "chosen"),
    [
        ("cpu", False, False, "generate"),
        ("cpu", True, False, "vllm"),
        ("cpu", True, True, "generate"),
        ("cuda", False, False, "generate"),
        ("cuda", True, False, "vllm"),
        ("cuda", True, True, "generate"),
        ("mps", True, False, "generate"),
    ],
)
def test_auto_takes_the_fastest_there_is(device, has_vllm, sharded, chosen):
    name, why = fastest(device, has_vllm=has_vllm, sharded=sharded)
    assert name == chosen
    assert why


def test_an_engine_is_built_for_the_longer_of_what_training_and_evaluation_sample(monkeypatch):
    monkeypatch.setattr(vllm, "is_installed", lambda: True)
    engine = Vllm(max_new_tokens=8)
    assert engine._longest == 8
    engine.expect(SamplingSettings(max_new_tokens=32))
    assert engine._longest == 32
    engine.expect(SamplingSettings(max_new_tokens=4))
    assert engine._longest == 8


def test_auto_takes_no_engine_that_could_not_serve_the_policy():
    assert fastest("cuda", has_vllm=True, mergeable=False)[0] == "generate"


def test_on_a_gpu_deterministic_sums_are_refused_before_anything_is_sampled():
    with deterministic(warn_only=True):
        refuse_deterministic(torch.device("cuda"))
    with deterministic(warn_only=False):
        refuse_deterministic(torch.device("cpu"))
        with pytest.raises(ValueError, match=r"type \+trainer\.deterministic=warn"):
            refuse_deterministic(torch.device("cuda"))


@contextmanager
def deterministic(*, warn_only: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_engine_of_one_process_is_not_started_on_another_gpu_than_the_policys():
    for device, ranks in (("cpu", 1), ("cuda:0", 1), ("cuda:1", 2)):
        vllm_refusals.refuse_place(torch.device(device), ranks)
    with pytest.raises(ValueError, match="set CUDA_VISIBLE_DEVICES=1 and type"):
        vllm_refusals.refuse_place(torch.device("cuda:1"), 1)


def test_auto_samples_as_what_it_chose_and_says_so_once(policy, caplog):
    if vllm.is_installed():
        pytest.skip("auto takes vLLM here, which has tests of its own")
    auto = Auto(**DEFAULTS)
    with caplog.at_level(logging.INFO):
        sampled = [auto.sample(policy, prompts(policy), SEEDS) for _ in range(2)]
    assert ids(sampled[0]) == ids(sampled[1]) == ids(Generate(**DEFAULTS).sample(policy, prompts(policy), SEEDS))
    assert caplog.text.count("sampler=auto samples with generate: vLLM, which is faster, is not installed") == 1


# -- whole runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [*ENGINES, "auto"])
def test_a_run_with_each_file_of_the_menu(sampler, play, wide_policy_dir, request):
    if sampler.startswith("vllm"):
        skip_without_vllm()
    if sampler == "auto" and vllm.is_installed():
        pytest.skip("auto takes vLLM here, which has its own line")
    own = {"vllm": lambda: ["sampler.compiled=false"], "vllm_server": lambda: [served(request)]}
    run = play(f"sampler={sampler}", f"model.name={wide_policy_dir}", *own.get(sampler, list)())
    fresh = [
        (ends, text)
        for n in range(2)
        for row in run.round(n).itertuples()
        if row.sampled_in == n  # the table also holds what is left of earlier rounds
        for ends, text in zip(row.finished, row.responses, strict=True)
    ]
    assert run.summary["responses"] == {
        "cut": sum(not ends for ends, _ in fresh),
        "empty": sum(not text for _, text in fresh),
    }
    assert run.summary["responses"]["cut"] > 0
    assert (run.summary["sync_seconds"] > 0) == sampler.startswith("vllm")


def served(request: pytest.FixtureRequest) -> str:
    return f"sampler.servers=[{','.join(request.getfixturevalue('vllm_servers'))}]"
