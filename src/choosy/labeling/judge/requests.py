"""Sends requests about many items at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

from anyio.from_thread import start_blocking_portal

from choosy.labeling.judge.endpoint import ChatMessage, Endpoint, Refused, Reply, Session, SessionStopped, Unanswered
from choosy.labeling.protocols import Answer, ItemFailed

Item = TypeVar("Item")
AnswerOne = Callable[[int, Item, Session], Awaitable[Answer]]


def answers(endpoint: Endpoint, items: Sequence[Item], answer: AnswerOne[Item]) -> Iterator[Answer]:
    """Yield each answer as soon as it is there; if the caller leaves, requests in flight are cancelled."""
    arrived: SimpleQueue[Answer | None] = SimpleQueue()
    # An item gives up its place only when the caller asks for the next answer, so once it is in the ledger:
    # however slow the disk, no more paid answers wait in memory than there are places.
    places = asyncio.Semaphore(endpoint.settings.concurrency)
    with start_blocking_portal() as portal:  # a thread with an event loop, where the requests are sent
        asking = portal.start_task_soon(_ask_all, endpoint, items, answer, places, arrived.put)
        asking.add_done_callback(lambda _: arrived.put(None))
        while found := arrived.get():
            yield found
            portal.call(places.release)
        asking.result()


async def _ask_all(
    endpoint: Endpoint,
    items: Sequence[Item],
    answer: AnswerOne[Item],
    places: asyncio.Semaphore,
    arrived: Callable[[Answer], None],
) -> None:
    """Ask about each item in turn; after a failure, let requests in flight end before raising it."""
    answered = 0
    failures: list[Exception] = []
    async with endpoint.session() as session, asyncio.TaskGroup() as requests:

        async def ask(at: int) -> None:
            nonlocal answered
            try:
                found = await answer(at, items[at], session)
            except Exception as error:  # raised later, so that the other answers arrive first
                failures.append(ItemFailed(str(error), at) if isinstance(error, Unanswered) else error)
                session.stopping.set()
                places.release()
            else:
                answered += 1
                arrived(found)

        for at in range(len(items)):
            await places.acquire()
            if session.stopping.is_set():
                break
            requests.create_task(ask(at))
    for error in failures:
        if isinstance(error, ItemFailed):
            counts = f"{answered} of the {len(items)} questions were answered, and a resume continues there"
            raise ItemFailed(f"{error}. {counts}", error.at) from None
        if not isinstance(error, SessionStopped):
            raise error


async def completed(endpoint: Endpoint, session: Session, messages: Sequence[ChatMessage]) -> Reply:
    """Return the model's reply; an empty one that says why, where the endpoint refuses this request alone.

    Raises:
        Unanswered: The endpoint refuses every request, or gives no chat completions.
    """
    try:
        reply = await session.ask(messages)
    except Refused as refusal:
        if not await session.takes_another():
            raise
        return Reply("", why=str(refusal))
    if reply.text is None:
        if not await session.speaks():
            raise Unanswered(
                f"{endpoint.address} answers, but with no chat completion ({reply.why}); "
                "check base_url, which usually ends with /v1"
            )
        return reply._replace(text="")
    return reply
