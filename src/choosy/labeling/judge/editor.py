"""Ask a chat model to edit a rejected response towards the chosen one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from choosy.labeling.judge.endpoint import Endpoint, Session
from choosy.labeling.judge.judge import BLANKS
from choosy.labeling.judge.requests import answers, completed
from choosy.labeling.judge.settings import EndpointSettings, RequestSettings
from choosy.labeling.judge.templates import filled, read_template, terms_by
from choosy.labeling.protocols import Answer, ResponsePair
from choosy.types import Prompt, Response, Verdict, content_id

TEMPLATE = Path(__file__).with_name("edit.txt")
ENDING = "the judge's reply must hold the edited second response between two lines of $code"


class Editor:
    """Edits the rejected response of a pair as little as it takes to be as good as the chosen one (BMC, 2408.07471).

    Edits are bought and kept like verdicts on a pair, of which the chosen response is the first: the verdict is `first`
    and `raw` is the edited text, or `invalid` where the reply holds none. They take no label of a budget.

    Args:
        model: Its name at the endpoint.
        base_url: The endpoint's address, up to and without /chat/completions.
        key_env: Name of the environment variable that holds the key; None if the endpoint asks for none.
        template: File with the editor's instructions; None takes the one that comes with Choosy.
        request: What each request asks of the model.
        endpoint: How requests are sent.
        price: The most that one edit may cost, if known, which a budget of money reserves before it buys.
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
        self.name = f"editor:{model}"
        self.model = model
        self.template = read_template(template, TEMPLATE, ENDING, BLANKS)
        self.endpoint = Endpoint(model, base_url, key_env, request or RequestSettings(max_tokens=2048), endpoint)
        self.terms = terms_by(self.template, self.endpoint, price, of="edit")

    def stamp(self, prompt: Prompt, responses: Sequence[Response]) -> str:
        """The response that the other one is edited towards, since the order counts."""
        return content_id(responses[0].text)

    def compare(self, items: Sequence[ResponsePair]) -> Iterable[Verdict | Answer]:
        """Yield the edit of each item's second response towards its first, as soon as it is there."""
        return answers(self.endpoint, items, self._edit)

    async def _edit(self, at: int, item: ResponsePair, session: Session) -> Answer:
        prompt, chosen, rejected = item
        code, messages = filled(self.template, prompt=prompt.text, first=chosen.text, second=rejected.text)
        reply = await completed(self.endpoint, session, messages)
        edit = parse_edit(reply.text or "", code) if reply.complete else None
        said = edit or reply.said
        cost = reply.cost or self.terms.price or 0.0
        return Answer(at, "first" if edit else "invalid", said, cost, self.model, judgements=0)


def parse_edit(reply: str, code: str) -> str | None:
    """Return the text between two lines of the code; None if there is none.

    Example:
        >>> parse_edit("Here it is:\\n1f00\\nParis, on the Seine.\\n1f00", "1f00")
        'Paris, on the Seine.'
        >>> parse_edit("Paris, on the Seine.", "1f00")
    """
    line = rf"[ \t*`]*{re.escape(code)}[ \t*`]*"
    found = re.search(rf"^{line}\n(.*)\n{line}$", reply, re.DOTALL | re.MULTILINE)
    return (found[1].strip() or None) if found else None
