"""Sampling with vLLM servers that run elsewhere (`vllm serve`).

Each call writes the policy's adapter into a folder that the servers see, and has each of them load it under a name of
its own. The first answer of each server is scored by the policy: one that serves another base model is refused.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any

import httpx2
import tenacity

from choosy.models.policy import Policy
from choosy.parallel.ranks import current_ranks
from choosy.parallel.sharding import is_sharded
from choosy.redaction import NAMED
from choosy.sampling.protocol import OnComplete, Request, Sampler, as_response, check_engine
from choosy.sampling.settings import SamplingSettings
from choosy.sampling.spread import Failed, Spread
from choosy.types import Response

OLDEST = "0.10.2"  # the first vLLM whose answers have token ids
BUSY = frozenset({408, 425, 429})  # statuses that may pass, like those of 500 and above
CANNOT = frozenset({500})  # but this one, where a server answers so to an adapter that it has no room for
Place = tuple[int, int]  # of a response: its prompt, and its sample
UNKNOWN = 404  # of a server that was started again and has lost the adapter


@dataclass(kw_only=True, eq=False)
class VllmServer(Sampler):
    """Samples with vLLM servers, of which each answers what it has time for.

    Args:
        servers: Their addresses, such as `http://localhost:8000`.
        folder: Where adapters are written for the servers, which read them under the same path.
        key_env: Name of an environment variable with the servers' key; None = they ask for none.
        patience: Seconds that a server which does not answer is waited for, before it is done without.
        timeout: Seconds that one response may take; a server that stops to answer is noticed after them.
    """

    servers: Sequence[str] = ("http://localhost:8000",)
    folder: str = "served"
    key_env: str | None = None
    patience: float = 60.0
    timeout: float = 600.0
    _adapter: str = field(default="", init=False, repr=False)  # the name that the servers know it by
    _checked: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.servers, str) or not self.servers:
            raise ValueError(f"sampler.servers={self.servers} is no list; type sampler.servers=[http://localhost:8000]")
        self.servers = [checked_address(server) for server in self.servers]
        for name in ("patience", "timeout"):
            if not 0 < (seconds := getattr(self, name)) < math.inf:
                raise ValueError(f"sampler.{name}={seconds} is no number of seconds; choose above 0.")
        self._headers()

    def answer(self, request: Request, done: OnComplete) -> list[list[Response]]:
        policy, prompts, seeds, _ = request
        ranks = current_ranks()
        wanted = [(p, n) for p in range(len(prompts)) for n in range(len(seeds[p]))]
        if not any(ranks.gather([bool(wanted)])):
            return request.blank
        self._write(policy)
        responses, left = request.blank, [len(of_prompt) for of_prompt in seeds]
        by_server: Counter[str] = Counter()
        with closing(self._answers(request, wanted)) as answers:
            for server, (p, n), response in answers:
                if server not in self._checked and not is_sharded(policy):  # scoring those takes all ranks
                    check_engine(f"vllm_server ({server})", policy, prompts[p], response)
                self._checked.add(server)
                by_server[server] += 1
                responses[p][n] = response
                left[p] -= 1
                if not left[p]:
                    done({p: responses[p]})
        every = sum(ranks.gather([by_server]), Counter[str]())
        shares = ", ".join(f"{server} {every[server]}" for server in self.servers)
        self.origin = f"sampler=vllm_server (responses: {shares})"
        return responses

    def _answers(self, request: Request, wanted: Sequence[Place]) -> Generator[tuple[str, Place, Response]]:
        """Yield the response at each place with the server that gave it, as they come."""
        policy, prompts, seeds, settings = request
        timeout, limits = httpx2.Timeout(self.timeout, connect=self.patience), httpx2.Limits(max_connections=None)
        with httpx2.Client(headers=self._headers(), timeout=timeout, limits=limits, trust_env=False) as client:

            def ask(server: str, place: Place) -> Response:
                p, n = place
                body = {"model": self._adapter, "prompt": list(prompts[p]), **fields(policy, seeds[p][n], settings)}
                ids, logp = sampled(server, post(client, f"{server}/v1/completions", body))
                return as_response(policy, ids, logp)

            spread = Spread(
                self.servers,
                ask=ask,
                prepare=lambda server: self._prepare(client, server, policy),
                at_once=max(1, min(self.batch_size, len(wanted)) // len(self.servers)),
                patience=self.patience,
            )
            yield from spread.answers(wanted)

    def close(self) -> None:
        if self._adapter and current_ranks().rank == 0:
            self._forget(self._adapter)
            with suppress(OSError):  # others write there, or it is gone
                self._path("").rmdir()
        self._adapter = ""
        self._checked.clear()

    def _headers(self) -> dict[str, str]:
        if self.key_env is None:
            return {}
        NAMED.add(self.key_env)
        if not (key := os.environ.get(self.key_env)):
            raise ValueError(
                "sampler.key_env must be the name of an environment variable that holds the servers' key, and no such "
                "variable is set; export the key and type the variable's name, or null for servers that ask for none."
            )
        return {"Authorization": f"Bearer {key}"}

    def _write(self, policy: Policy) -> None:
        """Write the policy's adapter under a new name; every rank must call this."""
        if policy.lora is None or not policy.is_mergeable:
            what = "all weights" if policy.lora is None else "another kind of adapter"
            raise ValueError(
                f"sampler=vllm_server hands over a plain LoRA adapter, and this run trains {what}; choose sampler=vllm "
                "or sampler=generate."
            )
        began, ranks, old = time.perf_counter(), current_ranks(), self._adapter
        self._adapter = ranks.on_rank_zero(lambda: f"choosy-{token_hex(8)}")
        policy.save(str(self._path(self._adapter)))
        if old and ranks.rank == 0:
            self._forget(old)
        ranks.gather([])  # no rank asks before it is written
        self.sync_seconds += time.perf_counter() - began

    def _path(self, adapter: str) -> Path:
        return Path(self.folder).expanduser().resolve() / adapter

    def _forget(self, adapter: str) -> None:
        """Let the servers that answer forget an adapter, and delete it."""
        with httpx2.Client(headers=self._headers(), timeout=10, trust_env=False) as client:
            for server in self.servers:
                try:
                    client.post(f"{server}/v1/unload_lora_adapter", json={"lora_name": adapter})
                except httpx2.RequestError:
                    continue  # a server that is down has forgotten it
        rmtree(self._path(adapter), ignore_errors=True)

    def _prepare(self, client: httpx2.Client, server: str, policy: Policy) -> None:
        """Have a server load the adapter, unless it has."""
        try:
            models = client.get(f"{server}/v1/models", timeout=min(self.patience, self.timeout))
        except httpx2.RequestError as error:
            raise Failed(str(error) or type(error).__name__) from None
        if self._adapter in {model["id"] for model in checked(models).json()["data"]}:
            return
        body = {"lora_name": self._adapter, "lora_path": str(self._path(self._adapter)), "load_inplace": True}
        try:
            post(client, f"{server}/v1/load_lora_adapter", body, final=CANNOT)
        except ValueError as error:
            assert policy.lora is not None
            raise ValueError(
                f"{error} It must load adapters: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {policy.source.name} "
                f"--enable-lora --max-lora-rank {policy.lora.r}, on a machine where {self.folder} is the same folder."
            ) from None


def sampled(server: str, reply: Any) -> tuple[list[int], float]:
    """Return the token ids of the response in a server's reply, and their log-prob."""
    try:
        (choice,) = reply["choices"]
        ids: list[int] = list(choice["token_ids"])
        return ids, math.fsum(choice["logprobs"]["token_logprobs"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{server} answers without the token ids or the log-probs of its response, which sampler=vllm_server asks "
            f"for; it must be vLLM {OLDEST} or newer (vllm serve)."
        ) from None


def fields(policy: Policy, seed: int, settings: SamplingSettings) -> dict[str, Any]:
    """The settings of one response as a server takes them; what is left out, it takes from the model's own."""
    return {
        "seed": seed,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": sorted(policy.tokens.stop_ids),
        "ignore_eos": True,  # stop_token_ids has it
        "logprobs": 0,  # of the sampled token alone, before temperature and cuts
        "return_token_ids": True,
    }


@tenacity.retry(
    stop=tenacity.stop_after_attempt(3),
    wait=tenacity.wait_random_exponential(max=4),
    retry=tenacity.retry_if_exception_message(match=r"status (408|425|429|503)"),  # a server that lives and is busy
    reraise=True,
)
def post(client: httpx2.Client, address: str, body: dict[str, Any], *, final: Collection[int] = ()) -> Any:
    """Send a request, and return the reply's JSON; None for a reply in words. Statuses in `final` do not pass."""
    try:
        reply = checked(client.post(address, json=body), final=final)
    except httpx2.RequestError as error:
        raise Failed(str(error) or type(error).__name__) from None
    return reply.json() if "json" in reply.headers.get("Content-Type", "") else None


def checked(reply: httpx2.Response, *, final: Collection[int] = ()) -> httpx2.Response:
    """Return a reply that is no error.

    Raises:
        Failed: The server may answer later, or after it has been prepared.
        ValueError: It will never answer this.
    """
    status = reply.status_code
    if 200 <= status < 300:
        return reply
    if status in (401, 403):
        raise ValueError(f"{reply.url} refuses the key (status {status}); check the variable in sampler.key_env.")
    said = f"status {status}: {' '.join(reply.text.split())[:300]}"
    lost = status == UNKNOWN and "does not exist" in reply.text
    if status not in final and (status >= 500 or status in BUSY or lost):
        raise Failed(said)
    raise ValueError(f"{reply.url} answered with {said}.")


def checked_address(server: str) -> str:
    """Return an address of a server without its last slash and /v1; refuse one that would show a secret.

    Example:
        >>> checked_address("http://localhost:8000/v1/")
        'http://localhost:8000'
    """
    try:
        parts = httpx2.URL(server)
    except (httpx2.InvalidURL, TypeError):
        parts = httpx2.URL("")
    if parts.userinfo or parts.query or "@" in str(server):
        raise ValueError(
            "sampler.servers holds a name, a password or a query, and would be written to config.yaml; type it "
            "without, put the key into an environment variable and its name into sampler.key_env."
        )
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"sampler.servers: {server!r} is no address; type for instance http://localhost:8000.")
    return server.rstrip("/").removesuffix("/v1")
