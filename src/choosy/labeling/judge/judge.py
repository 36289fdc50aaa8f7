"""A chat model as a judge: any OpenAI-compatible endpoint, asked in both orders, its verdict read to the letter."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from string import Template
from threading import Thread
from typing import Any

from choosy.labeling.both_orders import joined
from choosy.labeling.judge.endpoint import Endpoint, Limit, Message, Session, Stopped, Unanswered
from choosy.labeling.protocols import Answer
from choosy.types import Prompt, Response, Verdict, content_id

Item = tuple[Prompt, Response, Response]

TEMPLATE = Path(__file__).with_name("template.txt")
BLANKS = {"prompt", "first", "second", "fence", "code"}
VERDICTS: dict[str, Verdict] = {"first": "first", "second": "second", "tie": "tie"}


class Judge:
    """Asks a chat model which of two responses is better, by any endpoint that speaks OpenAI's chat completions.

    Every request draws a fence, between whose marks the responses stand, and a code, which the last line of the
    judge's reply must carry: a response was written before either was drawn and cannot imitate them. Whatever has
    not exactly that last line is an invalid verdict.

    A question is asked again while the endpoint is busy, broken or slow. One that has brought no chat completion after
    all tries, though others do, is invalid; an endpoint that stays down or refuses a request stops the run.

    Args:
        model: The model's name at the endpoint.
        base_url: The endpoint, up to and without /chat/completions.
        key_env: Name of the environment variable that holds the key; None if the endpoint asks for none.
        template: File with what the judge is told; None takes the one that comes with Choosy.
        both_orders: Ask for each pair twice, turned around the second time: a contradiction is a tie, and one invalid
            verdict makes the whole invalid. Both requests are labels of the budget.
        concurrency: Most requests under way at the same time, and most pairs whose answers are lost by a kill.
        requests_per_minute: Most requests sent in a minute; None sets no limit.
        tokens_per_minute: Most tokens of prompt and completion in a minute; None sets no limit.
        retries: How often a request that failed is sent again.
        first_wait: Seconds before the second try; each further wait is twice as long, with chance in it.
        longest_wait: The longest wait; an endpoint that asks for a longer one (Retry-After) stops the run.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for the next bytes.
        total_timeout: Seconds for one try from the first byte sent to the last one received.
        limit: What the endpoint calls the most tokens of a reply; OpenAI's reasoning models call it
            max_completion_tokens.
        max_tokens: Most tokens of a reply; one that is cut there is invalid.
        temperature: Of the judge's sampling; None leaves it to the endpoint.
        seed: Of the judge's sampling; None sends none.
        options: What else is sent with each request, such as {"reasoning_effort": "low"}.
        prompt_price: Money per million tokens of a prompt.
        completion_price: Money per million tokens of a completion.
        price: The most that one pair may cost, if known: what a money budget reckons with before it buys.
        proxy: A proxy through which the endpoint is reached; those of the environment are not used.

    Attributes:
        fingerprint: Changes with the template, the model and how it is asked: such labels are bought anew.
        judgements: Labels of the budget that one verdict takes.
    """

    elsewhere = True
    at_once = None  # all of them: answers are yielded as they come, and what is under way is bounded by concurrency

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        key_env: str | None = None,
        template: str | None = None,
        both_orders: bool = True,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        retries: int = 6,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        total_timeout: float = 120.0,
        limit: Limit = "max_tokens",
        max_tokens: int = 512,
        temperature: float | None = 0.0,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        price: float | None = None,
        proxy: str | None = None,
    ) -> None:
        self.template = read_template(template)
        self.both_orders = both_orders
        self.endpoint = Endpoint(
            model,
            base_url=base_url,
            key_env=key_env,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            retries=retries,
            first_wait=first_wait,
            longest_wait=longest_wait,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            total_timeout=total_timeout,
            limit=limit,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            options=options or {},
            prompt_price=prompt_price,
            completion_price=completion_price,
            proxy=proxy,
        )
        self.name = f"judge:{model}"
        self.judgements = 2 if both_orders else 1
        if price is not None and not price > 0:
            raise ValueError(f"labeler.price={price}: type the most that one pair may cost, or null")
        self.price = price
        settings = json.dumps(self.endpoint.settings, sort_keys=True)
        self.fingerprint = content_id(*self.template.values(), settings, str(both_orders))

    def compare(self, items: Sequence[Item]) -> Iterable[Verdict | Answer]:
        """A verdict on each item as soon as it is there; what is still under way when the caller leaves is dropped.

        Raises:
            Unanswered: The endpoint is down or refuses a request; `at` says which item it was asked about.
        """
        arrived: SimpleQueue[Answer | None] = SimpleQueue()
        # An item holds its place until its answer is taken and the next is asked for, that is, until it is in the
        # ledger: however slow the disk, no more paid answers wait in memory than there are places.
        places = asyncio.Semaphore(self.endpoint.concurrency)
        with background() as loop:
            asking = asyncio.run_coroutine_threadsafe(self._ask_all(items, places, arrived.put), loop)
            asking.add_done_callback(lambda _: arrived.put(None))
            while answer := arrived.get():
                yield answer
                loop.call_soon_threadsafe(places.release)
            asking.result()

    async def _ask_all(
        self, items: Sequence[Item], places: asyncio.Semaphore, arrived: Callable[[Answer], None]
    ) -> None:
        """Ask about each item in turn; after the first failure let end what is under way, then tell of it."""
        answered = 0
        failures: list[Exception] = []
        async with self.endpoint.session() as session:

            async def ask(at: int) -> None:
                nonlocal answered
                try:
                    answer = await self._verdict(at, items[at], session)
                except Exception as error:  # kept, so that the other answers arrive first
                    failures.append(error)
                    session.stop()
                    places.release()
                else:
                    answered += 1
                    arrived(answer)

            under_way = []
            for at in range(len(items)):
                await places.acquire()
                if session.stopping:
                    break
                under_way.append(asyncio.create_task(ask(at)))
            await asyncio.gather(*under_way)
        for error in failures:
            if isinstance(error, Unanswered):
                told = f"{error}. {answered} of the {len(items)} pairs asked about were answered, and a resume goes on"
                raise Unanswered(told, error.at) from None
            if not isinstance(error, Stopped):
                raise error

    async def _verdict(self, at: int, item: Item, session: Session) -> Answer:
        """What the judge says about an item, asked as told: in one order, or in both."""
        prompt, first, second = item
        try:
            one = await self._ask(2 * at, (prompt, first, second), session)
            if not self.both_orders:
                return one._replace(at=at)
            return joined(one, await self._ask(2 * at + 1, (prompt, second, first), session))
        except Unanswered as error:
            error.at = at
            raise

    async def _ask(self, at: int, item: Item, session: Session) -> Answer:
        code, messages = self._messages(*item)
        reply = await session.ask(messages)
        if reply.text is None:
            if not await session.speaks():
                raise Unanswered(
                    f"{self.endpoint.address} answers, but with no chat completion ({reply.why}); "
                    "check base_url, which mostly ends with /v1"
                )
            return Answer(at, "invalid", reply.why, reply.cost, self.endpoint.model)
        verdict = verdict_of(reply.text, code) if reply.whole else "invalid"
        return Answer(at, verdict, reply.text or "(an empty reply)", reply.cost, self.endpoint.model)

    def _messages(self, prompt: Prompt, first: Response, second: Response) -> tuple[str, list[Message]]:
        """A code drawn for this request, and what the judge is told."""
        texts = {"prompt": prompt.text, "first": first.text, "second": second.text}
        code = drawn(*texts.values())
        fence = drawn(*texts.values(), code)
        turns = self.template.items()
        return code, [
            {"role": role, "content": Template(text).substitute(texts, code=code, fence=fence)} for role, text in turns
        ]


def drawn(*texts: str) -> str:
    """A short random word that occurs in none of the texts."""
    word = secrets.token_hex(4)
    while any(word in text for text in texts):
        word = secrets.token_hex(4)
    return word


def verdict_of(reply: str, code: str) -> Verdict:
    """The verdict in the last line of a judge's reply, to the letter; anything else is invalid.

    Example:
        >>> verdict_of("The first is rude.\\nVerdict 1f00: second\\n", "1f00")
        'second'
        >>> verdict_of("Verdict 1f00: second, I think", "1f00")
        'invalid'
    """
    last = reply.rstrip(" \t\r\n").rpartition("\n")[2]
    found = re.fullmatch(f"Verdict {re.escape(code)}: (first|second|tie)", last)
    return VERDICTS[found[1]] if found else "invalid"


def read_template(path: str | None) -> dict[str, str]:
    """What the judge is told, by role: the part below a line [system], if there is one, and the part below [user].

    Raises:
        ValueError: It cannot be read, or its blanks are not those that are filled in.
    """
    place = Path(path).expanduser() if path else TEMPLATE
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"labeler.template={path!r} cannot be read ({error}); type a text file, "
            "or null for the template that comes with Choosy"
        ) from error
    if not re.search(r"^\[(system|user)\]$", text, re.MULTILINE):
        text = f"[user]\n{text}"
    before, *parts = re.split(r"^\[(system|user)\]\n", text, flags=re.MULTILINE)
    template = {role: part.strip("\n") for role, part in zip(parts[::2], parts[1::2], strict=True)}
    whole = Template("\n".join(template.values()))
    if before.strip() or parts[::2] not in (["user"], ["system", "user"]):
        raise ValueError(f"{place}: wanted a line [user], before it perhaps a line [system] with its text, and no more")
    if not whole.is_valid():
        raise ValueError(f"{place}: a dollar that begins no blank is written twice, as in $$5")
    if (found := set(whole.get_identifiers())) != BLANKS:
        wrong = [f"lacks ${name}" for name in sorted(BLANKS - found)] + [f"has ${name}" for name in found - BLANKS]
        raise ValueError(
            f"{place} {' and '.join(wrong)}; its blanks are ${', $'.join(sorted(BLANKS))}: the last line of the "
            "judge's reply must be 'Verdict $code: first', second or tie, and marks with $fence enclose the texts"
        )
    return template


@contextmanager
def background() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own; what still runs on it when the block is left is cancelled."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="judge", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_the_rest(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
