"""Turns given text into tokens, within limits of length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from choosy.data.asked_score import AskedScore
from choosy.data.reading import Promptlike, placed_candidates, placed_prompts
from choosy.data.sources import PACKAGED, Source, named
from choosy.errors import refuse_unknown
from choosy.models.policy import Policy
from choosy.models.tokens import TemplateRefusal
from choosy.terminal import logger
from choosy.types import Candidates, Prompt, Response

log = logger(__name__)

TooLong = Literal["drop", "error"]


class JudgesRows(Protocol):
    """Who judges answers to prompts, and may read other columns of their rows."""

    def reads(self, column: str) -> bool:
        """Whether this column is read."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts to which no answer could be judged."""


@dataclass(frozen=True)
class Reader:
    """Reads the prompts and responses of a source for a policy.

    Attributes:
        max_prompt_tokens: Longest prompt, chat template included.
        max_response_tokens: Longest given response; longer ones are cut.
        too_long: What happens to longer prompts: `drop` or `error`.
        as_chat: Make a plain prompt the user's turn of a chat.
        columns: Columns to rename, such as {title: prompt}, in the sources that have them; None = none.
        asked_score: Ask for the score of each given response, and for the highest where the policy is evaluated.
    """

    max_prompt_tokens: int = 512
    max_response_tokens: int = 512
    too_long: TooLong = "drop"
    as_chat: bool = True
    columns: dict[str, str] | None = None
    asked_score: AskedScore | None = None

    def __post_init__(self) -> None:
        for name, limit in (("prompt", self.max_prompt_tokens), ("response", self.max_response_tokens)):
            if limit < 1:
                raise ValueError(f"data.reader.max_{name}_tokens={limit} leaves no {name}; choose at least 1.")
        refuse_unknown("data.reader.too_long", self.too_long, get_args(TooLong))

    def prompts(
        self,
        source: Source,
        policy: Policy,
        *,
        limit: int | None,
        judge: JudgesRows | None = None,
        instead: str | None = None,
    ) -> list[Prompt]:
        """Read at most `limit` prompts, to which `judge` can judge answers; too long ones are left out.

        Labeled answers in their rows are reported where `instead` says what the run trains on in their place.
        """
        reads = judge.reads if judge is not None else None
        placed = placed_prompts(
            source, as_chat=self.as_chat, limit=limit, columns=self.columns, reads=reads, instead=instead
        )
        if judge is not None:
            refuse_unjudged(placed, judge)
        if self.asked_score is not None:
            self.asked_score.check(next(iter(placed.values())), policy.tokens)
            placed = {where: self.asked_score.asking_highest(prompt) for where, prompt in placed.items()}
        return list(self.within_limit(placed, policy, source).values())

    def candidates(
        self,
        source: Source,
        policy: Policy,
        *,
        limit: int | None,
        judge: JudgesRows | None = None,
        heldout: bool = False,
    ) -> list[Candidates]:
        """Read at most `limit` prompts with given responses, which `judge` can judge; too long prompts are left out."""
        reads = judge.reads if judge is not None else None
        placed = placed_candidates(source, as_chat=self.as_chat, limit=limit, columns=self.columns, reads=reads)
        if judge is not None:
            refuse_unjudged({where: c.prompt for where, c in placed.items()}, judge)
        if self.asked_score is not None:
            self.asked_score.check(next(iter(placed.values())).prompt, policy.tokens)
            placed = asking(placed, self.asked_score, heldout=heldout)
        found = self.within_limit(placed, policy, source)
        return with_tokens(found, policy, max_response_tokens=self.max_response_tokens)

    def as_evaluated(self, prompt: Prompt) -> Prompt:
        """A prompt of the data to train on as a held-out one: it asks for the highest score, if prompts ask for one."""
        return self.asked_score.asking_highest(prompt.plain or prompt) if self.asked_score is not None else prompt

    def within_limit(
        self, placed: Mapping[str, Promptlike], policy: Policy, source: Source
    ) -> Mapping[str, Promptlike]:
        """Return those of the items, by the places they stand at, whose prompt has at most `max_prompt_tokens` tokens.

        Raises:
            ValueError: A prompt is longer and `too_long` is `error`, or all are; the chat template refuses one.
        """
        limit, lengths = self.max_prompt_tokens, []
        for where, item in placed.items():
            try:
                lengths.append(len(policy.tokens.encode_prompt(item if isinstance(item, Prompt) else item.prompt)))
            except TemplateRefusal as error:
                raise ValueError(f"{where}: {error}") from error
        long = sum(length > limit for length in lengths)
        if not long:
            return placed
        what = (
            f"longer than data.reader.max_prompt_tokens={limit}: {long} of the {len(placed)} prompts of {named(source)}"
        )
        longest = f"the longest has {max(lengths)} tokens"
        if self.too_long == "error" or long == len(placed):
            raise ValueError(
                f"{what[0].upper()}{what[1:]}; {longest}. Raise data.reader.max_prompt_tokens, or drop them with "
                "data.reader.too_long=drop."
            )
        log.warning("Left out as %s; %s.", what, longest)
        return {where: item for (where, item), length in zip(placed.items(), lengths, strict=True) if length <= limit}


def asking(placed: Mapping[str, Candidates], scores: AskedScore, *, heldout: bool) -> dict[str, Candidates]:
    """Let the prompts ask for the scores of their responses; held-out ones for the highest, and rank as they do."""
    if heldout:
        return {where: replace(c, prompt=scores.asking_highest(c.prompt)) for where, c in placed.items()}
    augmented: dict[str, Candidates] = {}
    for where, c in placed.items():
        try:
            augmented |= {f"{where}, {one.prompt.id}": one for one in scores.augmented(c)}
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return augmented


def refuse_unjudged(placed: Mapping[str, Prompt], judge: JudgesRows) -> None:
    """Refuse the first prompt to which no answer could be judged, by its place in the data."""
    for where, prompt in placed.items():
        try:
            judge.check_prompts([prompt])
        except ValueError as error:
            own = "; it comes with Choosy: type a file of your own" if where.startswith(PACKAGED) else ""
            raise ValueError(f"{where}: {error}{own}") from error


def with_tokens(placed: Mapping[str, Candidates], policy: Policy, *, max_response_tokens: int) -> list[Candidates]:
    """Return given candidates with token ids; a response beyond the limit is cut and counts as not finished."""
    cut, result, refused = 0, [], []
    for where, c in placed.items():
        try:
            encoded = [_encoded(r, c.prompt, policy) for r in c.responses]
        except TemplateRefusal as error:
            refused.append(f"{where}: {error}")
            continue
        short = [len(r.ids) <= max_response_tokens for r in encoded]
        cut += short.count(False)
        responses = tuple(
            replace(r, ids=r.ids[:max_response_tokens], mask=r.mask[:max_response_tokens], finished=whole)
            for r, whole in zip(encoded, short, strict=True)
        )
        result.append(replace(c, responses=responses, prompt_ids=policy.tokens.encode_prompt(c.prompt)))
    if refused and not result:
        raise ValueError(f"No given answer can be trained on: {refused[0]}; give model.chat_template another one.")
    if refused:
        log.warning(f"{len(refused)} of {len(placed)} prompts with given answers are left out: {refused[0]}.")
    longest = (len(c.prompt_ids) + len(r.ids) for c in result for r in c.responses)
    policy.tokens.refuse_beyond_window(max(longest, default=0), option="data.reader.max_response_tokens")
    if cut:
        log.warning(
            f"{cut} given responses are longer than data.reader.max_response_tokens={max_response_tokens} and were cut."
        )
    return result


def _encoded(response: Response, prompt: Prompt, policy: Policy) -> Response:
    """The response with its token ids, and a mask if the assistant does not say all of them."""
    if not response.turns:
        return replace(response, ids=policy.tokens.encode_response(response.text, prompt))
    ids, mask = policy.tokens.encode_turns(response.turns, prompt)
    return replace(response, ids=ids, mask=() if all(mask) else mask)
