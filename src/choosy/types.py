"""The words of Choosy as plain frozen data: Message, Prompt, Response, Pair, Candidates."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock
from typing import Any, Literal

Verdict = Literal["first", "second", "tie", "invalid"]

NUMBERS: list[int] = []  # from 0, each at its own place (see `token_ids`)
GROWING = Lock()

MIRRORED: dict[Verdict, Verdict] = {"first": "second", "second": "first", "tie": "tie", "invalid": "invalid"}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        more: JSON of what else a chat template reads of the turn, such as `tool_calls`; empty if there is nothing.

    Example:
        >>> Message("tool", "rain", '{"name": "weather"}').fields
        {'role': 'tool', 'content': 'rain', 'name': 'weather'}
    """

    role: str
    content: str
    more: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The turn as a chat template takes it."""
        return {"role": self.role, "content": self.content, **json.loads(self.more or "{}")}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy responds to.

    Attributes:
        id: Stable name of the prompt: from the data, else `content_id` of the text or the turns.
        text: What a person or a labeler reads. Of a conversation, the turns as text.
        messages: The conversation, if the prompt is one; empty for a plain prompt that is continued as plain text.
        keywords: JSON of what else the chat template is given for this prompt, such as `tools`; empty if nothing.
        columns: The columns of its row beside `prompt`, which a reward function may read.
        blank: The columns whose cell is empty in its row.
        conversation: Whether its row holds it as a list of messages.
        plain: What labelers of held-out answers read, where the policy is also asked for a score; None = the prompt.
        source: Which source of a mixture it is of; empty if it is of none.
    """

    id: str
    text: str
    messages: tuple[Message, ...] = ()
    keywords: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    conversation: bool = field(default=False, compare=False, repr=False)
    blank: Collection[str] = field(default=(), compare=False, repr=False)
    plain: Prompt | None = field(default=None, compare=False, repr=False)
    source: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to a prompt.

    Attributes:
        text: The answer as text, special tokens removed.
        ids: Its token ids; the end-of-sequence token is the last of them exactly when `finished`.
        finished: Whether the policy ended it (False: cut at the length limit).
        logp: Summed log-probability under the policy that sampled it; nan if not known.
        logp_ref: The same under the reference; nan if not known.
        token_logps_ref: Log-probability of each token that the assistant says under the reference; empty unless the
            loss needs them.
        reward: The labeler's score, once bought; larger is better.
        gold: The score that came with the data; only the `dataset` labeler may read it.
        turns: The turns of a given answer that has several, or that calls a tool; empty for a plain text.
        mask: Which of the tokens the assistant says, where it does not say all; the others are not trained on.
        parts: The parts of the labeler's score, by name, where it is a sum; without weights and penalties.
    """

    text: str
    ids: tuple[int, ...] = ()
    finished: bool = True
    logp: float = math.nan
    logp_ref: float = math.nan
    reward: float | None = None
    gold: float | None = None
    token_logps_ref: tuple[float, ...] = ()
    turns: tuple[Message, ...] = ()
    mask: tuple[bool, ...] = ()
    parts: tuple[tuple[str, float], ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """What crosses to another process: the ids as 4 bytes each."""
        text, _, *others = (getattr(self, name) for name in self.__slots__)
        return _response, (text, array("i", self.ids).tobytes(), *others)

    @property
    def length(self) -> int:
        """How many tokens the assistant says."""
        return sum(self.mask) if self.mask else len(self.ids)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The answer as the turns that follow its prompt."""
        return self.turns or (Message("assistant", self.text),)


def _response(text: str, ids: bytes, *others: Any) -> Response:
    return Response(text, token_ids(array("i", ids)), *others)


def token_ids(ids: Iterable[int]) -> tuple[int, ...]:
    """Token ids of which each number is one object, however often it occurs: 8 bytes a token instead of 36.

    Example:
        >>> [one] = {id(number) for number in token_ids([40_000, int("40000")])}
    """
    ids = tuple(ids)
    assert min(ids, default=0) >= 0, f"token id {min(ids)} is negative"
    most = max(ids, default=-1)
    if most >= len(NUMBERS):
        with GROWING:  # two threads would add the same numbers twice
            NUMBERS.extend(range(len(NUMBERS), most + 1))
    return tuple(map(NUMBERS.__getitem__, ids))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses of one prompt with a bought preference between them, by position in `Candidates.responses`.

    Attributes:
        chosen: Position of the preferred response.
        rejected: Position of the other one.
        weight: Factor on this pair's loss.
        utility: How much the selector expected this label to teach (larger = bought first); nan without a selector.
        source: Who said so: the labeler's name.
        round: The round in which the pair was made.
        predicted_gap: The predicted reward of the chosen less that of the rejected, which takes the place of bought
            rewards; nan if these count.
    """

    chosen: int
    rejected: int
    weight: float = 1.0
    utility: float = math.nan
    source: str = ""
    round: int = 0
    predicted_gap: float = math.nan


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared differences from the mean of some numbers.

    Example:
        >>> Moments.of([1.0, 3.0]) + Moments.of([5.0])
        Moments(count=3, mean=3.0, m2=8.0)
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Moments:
        """The moments of these numbers."""
        mean = sum(numbers) / max(len(numbers), 1)
        return cls(len(numbers), mean, sum((x - mean) ** 2 for x in numbers))

    def __add__(self, other: Moments) -> Moments:
        """The moments of both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / max(count, 1)
        return Moments(count, self.mean + share * apart, self.m2 + other.m2 + apart**2 * self.count * share)


@dataclass(frozen=True, slots=True)
class Candidates:
    """One prompt with its N responses, and the pairs that were made of them.

    Attributes:
        prompt_ids: The prompt's token ids, chat template applied.
        round: The round in which the responses were sampled (0 for given data), or a lone one was scored.
        utility: How much the prompt selector expected fresh responses to teach; nan without a selector.
        weight: The weight that came with the data's row, if any; of a lone response the factor on its loss.
        undecided: Pairs i < j whose verdict was a tie or invalid.
        earlier: Moments of the rewards that the prompt's responses had in earlier rounds.
        own: Samples of the present policy beside given responses, for a loss that needs them; they are never labeled.
        threshold: The reward above which a lone response is good, and below which it is bad.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    prompt_ids: tuple[int, ...] = ()
    round: int = 0
    utility: float = math.nan
    pairs: tuple[Pair, ...] = ()
    weight: float | None = None
    undecided: tuple[tuple[int, int], ...] = ()
    earlier: Moments = field(default_factory=Moments)
    own: tuple[Response, ...] = ()
    threshold: float = 0.0

    @property
    def labeled(self) -> bool:
        """Whether there is a label to train on: a pair, or a lone response whose reward is not at the threshold."""
        return bool(self.pairs) or (len(self.responses) == 1 and self.responses[0].reward not in (None, self.threshold))


def content_id(*parts: str) -> str:
    """A short stable name for contents: the same parts give the same id on every machine.

    Example:
        >>> content_id("user", "hello") == content_id("user", "hello") != content_id("userhello")
        True
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def seed_of(*parts: str | int) -> int:
    """A 63-bit seed that is a function of its parts alone, so that it depends on no rank, order or history.

    Example:
        >>> seed_of(0, "round", 3) == seed_of(0, "round", 3)
        True
    """
    return int(content_id(*map(str, parts)), 16) >> 1
