"""Ask a chat model which of two responses is better."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from choosy.labeling.judge.endpoint import Endpoint, Session
from choosy.labeling.judge.requests import answers, completed
from choosy.labeling.judge.settings import EndpointSettings, RequestSettings
from choosy.labeling.judge.templates import estimated_cost, filled, read_template, terms_by
from choosy.labeling.protocols import Answer, ResponsePair
from choosy.types import MIRRORED, Prompt, Verdict

TEMPLATE = Path(__file__).with_name("template.txt")
ENDING = "the last line of the judge's reply must be 'Verdict $code: first', second or tie"
BLANKS = {"prompt", "first", "second", "fence", "code"}
MARKUP = " \t\r\xa0.#>~\"'"  # what models write around a line


class Judge:
    """Compares two responses with a chat model, at any endpoint that speaks OpenAI's chat completions.

    Every request draws two random words, which the responses cannot imitate: a fence that marks them, and a code for
    the last line of the reply. A reply without that last line is an invalid verdict.

    A request is sent again while the endpoint is busy, broken or slow. If it gives no chat completion after all
    retries, or refuses the request, the pair is invalid if other requests succeed; an endpoint that is down, or refuses
    every request, stops the run.

    Args:
        model: Its name at the endpoint.
        base_url: The endpoint's address, up to and without /chat/completions.
        key_env: Name of the environment variable that holds the key; None if the endpoint asks for none.
        template: File with the judge's instructions; None takes the one that comes with Choosy.
        both_orders: Ask about each pair in both orders: a contradiction is a tie, and one invalid verdict makes the
            whole invalid. Both requests are labels of the budget.
        request: What each request asks of the model.
        endpoint: How requests are sent.
        price: The most that one pair may cost, if known, which a budget of money reserves before it buys.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        key_env: str | None = None,
        template: str | None = None,
        both_orders: bool = True,
        request: RequestSettings | None = None,
        endpoint: EndpointSettings | None = None,
        price: float | None = None,
    ) -> None:
        self.name = f"judge:{model}"
        self.model = model
        self.template = read_template(template, TEMPLATE, ENDING, BLANKS)
        self.both_orders = both_orders
        self.endpoint = Endpoint(model, base_url, key_env, request, endpoint)
        settings, labels = str(both_orders), 2 if both_orders else 1
        self.terms = terms_by(self.template, self.endpoint, price, of="pair", settings=settings, labels=labels)

    def estimate(self, prompt: Prompt, response_tokens: int) -> float:
        """Return about what a pair costs, at four characters a token and replies as long as they may be."""
        each = estimated_cost(self.template, self.endpoint, prompt, 2 * response_tokens)
        return each * self.terms.labels_per_answer

    def compare(self, items: Sequence[ResponsePair]) -> Iterable[Verdict | Answer]:
        """Yield each verdict as soon as it is there; if the caller leaves, requests in flight are cancelled."""
        return answers(self.endpoint, items, self._verdict)

    async def _verdict(self, at: int, item: ResponsePair, session: Session) -> Answer:
        """Return the judge's verdict on an item, from one order or from both."""
        prompt, first, second = item
        one = await self._ask(at, (prompt, first, second), session)
        if not self.both_orders:
            return one
        return combine_orders(one, await self._ask(at, (prompt, second, first), session))

    async def _ask(self, at: int, item: ResponsePair, session: Session) -> Answer:
        prompt, first, second = item
        code, messages = filled(self.template, prompt=prompt.text, first=first.text, second=second.text)
        reply = await completed(self.endpoint, session, messages)
        verdict = parse_verdict(reply.text or "", code) if reply.complete else "invalid"
        return Answer(at, verdict, reply.said, reply.cost, self.model)


def combine_orders(one: Answer, turned: Answer) -> Answer:
    """Combine the verdicts on a pair in both orders: a contradiction is a tie, and one invalid makes the whole invalid.

    Example:
        >>> combine_orders(Answer(0, "first"), Answer(0, "second")).value
        'first'
        >>> combine_orders(Answer(0, "first"), Answer(0, "first")).value
        'tie'
    """
    verdicts = {one.value, MIRRORED[turned.value]}  # type: ignore[index]  # a verdict
    value = "invalid" if "invalid" in verdicts else one.value if len(verdicts) == 1 else "tie"
    raw = json.dumps([one.raw or one.value, turned.raw or turned.value], ensure_ascii=False)
    return one._replace(value=value, raw=raw, cost=one.cost + turned.cost)


def parse_verdict(reply: str, code: str) -> Verdict:
    """Return the verdict in the last line of a reply, whatever the markup around it; any other line is invalid.

    Example:
        >>> parse_verdict("The first is rude.\\n**Verdict 1f00: Second.**\\n", "1f00")
        'second'
        >>> parse_verdict("Verdict 1f00: second, I think", "1f00")
        'invalid'
    """
    return cast(Verdict, parse_word(reply, code, ("first", "second", "tie")) or "invalid")


def parse_word(reply: str, code: str, words: Sequence[str]) -> str:
    """Return the word in the last line of a reply, which carries the code; "" where the line is another one.

    Example:
        >>> parse_word("It is rude.\\nVerdict 1f00: Bad.", "1f00", ("good", "bad"))
        'bad'
    """
    lines = (re.sub(r"[*_`]", "", line).strip(MARKUP) for line in reply.split("\n"))
    last = ([line for line in lines if line] or [""])[-1]
    space = "[ \t\xa0]*"
    form = f"Verdict{space}{re.escape(code)}{space}:{space}[\"']?({'|'.join(words)})(?: response)?"
    found = re.fullmatch(form, last, re.IGNORECASE | re.ASCII)
    return found[1].lower() if found else ""
