"""Ask a chat model whether a response is good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from choosy.labeling.judge.endpoint import Endpoint, Session
from choosy.labeling.judge.judge import parse_word
from choosy.labeling.judge.requests import answers, completed
from choosy.labeling.judge.settings import EndpointSettings, RequestSettings
from choosy.labeling.judge.templates import estimated_cost, filled, read_template, terms_by
from choosy.labeling.protocols import Answer
from choosy.types import Prompt, Response

TEMPLATE = Path(__file__).with_name("thumbs.txt")
BLANKS = {"prompt", "response", "fence", "code"}
ENDING = "the last line of the judge's reply must be 'Verdict $code: good' or bad"
SCORE_OF = {"good": 1.0, "bad": -1.0}


class ThumbsJudge:
    """Scores a response 1 where a chat model calls it good and -1 where it calls it bad (see `Judge`).

    A reply that says neither scores 0, which makes a response neither good nor bad, so that it trains nothing.

    Args:
        model: Its name at the endpoint.
        base_url: The endpoint's address, up to and without /chat/completions.
        key_env: Name of the environment variable that holds the key; None if the endpoint asks for none.
        template: File with the judge's instructions; None takes the one that comes with Choosy.
        request: What each request asks of the model.
        endpoint: How requests are sent.
        price: The most that one response may cost, if known, which a budget of money reserves before it buys.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        key_env: str | None = None,
        template: str | None = None,
        request: RequestSettings | None = None,
        endpoint: EndpointSettings | None = None,
        price: float | None = None,
    ) -> None:
        self.name = f"thumbs:{model}"
        self.model = model
        self.template = read_template(template, TEMPLATE, ENDING, BLANKS)
        self.endpoint = Endpoint(model, base_url, key_env, request, endpoint)
        self.terms = terms_by(self.template, self.endpoint, price, of="response", neutral=0.0)

    def estimate(self, prompt: Prompt, response_tokens: int) -> float:
        """Return about what a response costs, at four characters a token and replies as long as they may be."""
        return estimated_cost(self.template, self.endpoint, prompt, response_tokens)

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterable[float | Answer]:
        """Yield each score as soon as it is there; if the caller leaves, requests in flight are cancelled."""
        return answers(self.endpoint, items, self._thumb)

    async def _thumb(self, at: int, item: tuple[Prompt, Response], session: Session) -> Answer:
        prompt, response = item
        code, messages = filled(self.template, prompt=prompt.text, response=response.text)
        reply = await completed(self.endpoint, session, messages)
        word = parse_word(reply.text or "", code, tuple(SCORE_OF)) if reply.complete else ""
        return Answer(at, SCORE_OF.get(word, 0.0), reply.said, reply.cost, self.model)
