"""Servers that sample, beside what every engine promises: what they refuse, and what happens when one dies."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping

import httpx2
import pytest
import torch

from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.sampling.spread import Failed
from choosy.sampling.vllm_server import VllmServer, post, sampled
from choosy.types import Prompt, Response, seed_of

TEXTS = ("Tea?", "Tell me about rain.", "x" * 60)
SEEDS = [[seed_of(text, n) for n in range(40)] for text in TEXTS]


def prompts(policy: Policy) -> list[tuple[int, ...]]:
    return [policy.tokens.encode_prompt(Prompt(text, text)) for text in TEXTS]


def ids(sampled: list[list[Response]]) -> list[list[tuple[int, ...]]]:
    return [[r.ids for r in of_prompt] for of_prompt in sampled]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"servers": []}, r"sampler\.servers=\[\] is no list; type sampler\.servers=\[http://localhost:8000\]"),
        ({"servers": "http://localhost:8000"}, r"is no list; type sampler\.servers=\["),
        ({"servers": ["localhost:8000"]}, r"'localhost:8000' is no address; type for instance http://localhost:8000"),
        ({"servers": ["http://me:secret@gpu:8000"]}, r"holds a name, a password or a query.*sampler\.key_env"),
        ({"key_env": "NO_SUCH_VARIABLE"}, r"sampler\.key_env must be the name of an environment variable"),
        ({"patience": 0}, r"sampler\.patience=0 is no number of seconds; choose above 0"),
    ],
)
def test_settings_of_servers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VllmServer(**settings)


def test_servers_take_no_whole_weights(wide_policy_dir, tmp_path):
    policy = Policy(str(wide_policy_dir), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    with pytest.raises(ValueError, match=r"hands over a plain LoRA adapter, and this run trains all weights; choose"):
        VllmServer(folder=str(tmp_path)).sample(policy, prompts(policy), SEEDS)


def test_a_sampler_that_is_closed_leaves_no_folder(wide_policy_dir, tmp_path):
    policy = Policy(str(wide_policy_dir), lora=Lora(r=2), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    sampler = VllmServer(servers=["http://127.0.0.1:9"], folder=str(tmp_path / "served"), patience=0.2)
    with pytest.raises(ValueError, match=r"None is left of the servers http://127\.0\.0\.1:9"):
        sampler.sample(policy, prompts(policy), SEEDS)
    assert len([*(tmp_path / "served").iterdir()]) == 1
    sampler.close()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a", "logprobs": {"token_logprobs": [-1.0]}},
        {"text": "a", "token_ids": None, "logprobs": {"token_logprobs": [-1.0]}},
        {"text": "a", "token_ids": [1], "logprobs": None},
    ],
)
def test_a_server_that_sends_no_token_ids_is_named_with_the_version_that_is_needed(choice):
    with pytest.raises(ValueError, match=r"http://one:8000 answers without the token ids .* must be vLLM 0\.10\.2 or"):
        sampled("http://one:8000", {"choices": [choice]})


@pytest.mark.parametrize(("status", "times"), [(404, 1), (503, 3)])
def test_only_a_server_that_is_busy_is_asked_again(status, times, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    asked = []

    def reply(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(status, text="The model `choosy-1` does not exist.")

    with (
        httpx2.Client(transport=httpx2.MockTransport(reply)) as client,
        pytest.raises(Failed, match=f"status {status}"),
    ):
        post(client, "http://one:8000/v1/completions", {})
    assert len(asked) == times


def test_vllm_servers_without_room_for_the_adapter_say_what_to_type(vllm_servers, wide_policy_dir, tmp_path):
    policy = Policy(str(wide_policy_dir), lora=Lora(r=32), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    sampler = VllmServer(servers=list(vllm_servers), folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"LoRA rank 32 is greater .* vllm serve .* --enable-lora --max-lora-rank 32"):
        sampler.sample(policy, prompts(policy), SEEDS)


def test_vllm_servers_lose_no_response_when_one_is_killed(vllm_servers, load_policy, wide_policy_dir, tmp_path, caplog):
    """The last test of the servers: one of the two is gone afterwards."""
    policy = load_policy(wide_policy_dir)
    asked = prompts(policy)
    sampler = VllmServer(
        servers=list(vllm_servers), folder=str(tmp_path), max_new_tokens=48, batch_size=16, patience=2.0
    )
    whole = ids(sampler.sample(policy, asked, SEEDS))
    second = list(vllm_servers)[1]
    ended: list[int] = []

    def kill(some: Mapping[int, list[Response]]) -> None:
        os.killpg(vllm_servers[second].pid, signal.SIGKILL)
        ended.extend(some)

    assert ids(sampler.sample(policy, asked, SEEDS, done=kill)) == whole
    assert sorted(ended) == [0, 1, 2], "each prompt is reported once"
    assert re.search(f"{second} fails .*goes to the other servers", caplog.text)
    assert ids(sampler.sample(policy, asked, SEEDS)) == whole, "the next round does without it"
    assert f"{second} did not answer for 2 s" in caplog.text
    assert f"{second} 0" in sampler.origin
    sampler.close()
    sampler.servers = [second]
    with pytest.raises(ValueError, match=r"None is left of the servers .*before they gave 120 responses\. Start one"):
        sampler.sample(policy, asked, SEEDS)
