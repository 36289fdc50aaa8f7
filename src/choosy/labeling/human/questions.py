"""What people are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, cast

from choosy.types import MIRRORED, Prompt, Response, Verdict, content_id, seed_of

Word = Verdict | Literal["good", "bad"]


class Click(NamedTuple):
    """One annotator's verdict on one question: about a pair's first and second answer wherever they stood."""

    question: str
    annotator: str
    verdict: Word


class Question(Protocol):
    """Something to be judged by people.

    Attributes:
        form: Which of its two forms the page takes.
        noun: What is judged, in the plural.
        actions: What may be clicked.
        id: Hash of its contents.
    """

    form: ClassVar[Literal["pair", "response"]]
    noun: ClassVar[str]
    actions: ClassVar[Mapping[str, Word]]

    @property
    def id(self) -> str: ...

    def shown(self, annotator: str) -> dict[str, str]:
        """Return the texts on an annotator's screen by their places on the page."""
        ...

    def meaning(self, action: str, annotator: str) -> Word:
        """Return the verdict that an annotator gives by clicking."""
        ...

    def detail(self, click: Click) -> dict[str, str]:
        """Return what the ledger keeps of a click."""
        ...

    def label(self, clicks: Iterable[Click]) -> Verdict | float:
        """Return the label that the clicks of all annotators make."""
        ...


@dataclass(frozen=True)
class PairQuestion:
    """The texts of a pair of answers, of which people say which is better."""

    form: ClassVar[Literal["pair", "response"]] = "pair"
    noun: ClassVar[str] = "pairs"
    actions: ClassVar[Mapping[str, Word]] = {"left": "first", "right": "second", "tie": "tie", "skip": "invalid"}

    id: str  # hash of its contents
    prompt: str
    first: str
    second: str

    @classmethod
    def of(cls, prompt: Prompt, first: Response, second: Response) -> PairQuestion:
        """Build the question from a prompt and two responses."""
        return cls(question_id(prompt, first, second), prompt.text, first.text, second.text)

    def shown(self, annotator: str) -> dict[str, str]:
        left_first = first_on_the_left(self.id, annotator)
        left, right = (self.first, self.second) if left_first else (self.second, self.first)
        return {"prompt": self.prompt, "left": left, "right": right}

    def meaning(self, action: str, annotator: str) -> Word:
        return swap_sides(cast(Verdict, self.actions[action]), self.id, annotator)

    def detail(self, click: Click) -> dict[str, str]:
        seen = swap_sides(cast(Verdict, click.verdict), self.id, click.annotator)
        left = "first" if first_on_the_left(self.id, click.annotator) else "second"
        return {"annotator": click.annotator, "clicked": action_of(self, seen), "left": left}

    def label(self, clicks: Iterable[Click]) -> Verdict:
        return cast(Verdict, majority(clicks))


@dataclass(frozen=True)
class ResponseQuestion:
    """The texts of a prompt and one answer, of which people say whether it is good: 1 if it is, -1 if it is bad.

    A tie of the votes is 0, and so is an answer that everybody skipped: it is neither good nor bad, and trains nothing.

    Example:
        >>> votes = [Click("q", "ann", "good"), Click("q", "bob", "invalid")]
        >>> ResponseQuestion("q", "How was it?", "Good fun.").label(votes)
        1.0
    """

    form: ClassVar[Literal["pair", "response"]] = "response"
    noun: ClassVar[str] = "responses"
    actions: ClassVar[Mapping[str, Word]] = {"good": "good", "bad": "bad", "skip": "invalid"}

    id: str  # hash of its contents
    prompt: str
    response: str

    @classmethod
    def of(cls, prompt: Prompt, response: Response) -> ResponseQuestion:
        """Build the question from a prompt and a response."""
        return cls(question_id(prompt, response), prompt.text, response.text)

    def shown(self, annotator: str) -> dict[str, str]:
        return {"prompt": self.prompt, "response": self.response}

    def meaning(self, action: str, annotator: str) -> Word:
        return self.actions[action]

    def detail(self, click: Click) -> dict[str, str]:
        return {"annotator": click.annotator, "clicked": action_of(self, click.verdict)}

    def label(self, clicks: Iterable[Click]) -> float:
        return {"good": 1.0, "bad": -1.0}.get(majority(clicks), 0.0)


def question_id(prompt: Prompt, *responses: Response) -> str:
    """Name a question by its contents."""
    turns = [part for message in prompt.messages for part in (message.role, message.content)]
    return content_id(prompt.text, *turns, "", *(response.text for response in responses))


def action_of(question: Question, word: Word) -> str:
    """Return what is clicked to say a word."""
    return next(action for action, said in question.actions.items() if said == word)


def first_on_the_left(question: str, annotator: str) -> bool:
    """Draw the side of the first answer: random over questions and annotators, the same at every call."""
    return seed_of("side", question, annotator) % 2 == 0


def swap_sides(verdict: Verdict, question: str, annotator: str) -> Verdict:
    """Translate a verdict between first/second and left/right, `first` standing for left; it is its own inverse."""
    return verdict if first_on_the_left(question, annotator) else MIRRORED[verdict]


def majority(clicks: Iterable[Click]) -> Word:
    """Return the verdict with the most votes: a tie if two lead equally, invalid if everybody skipped.

    Example:
        >>> majority([Click("q", "ann", "first"), Click("q", "bob", "second")])
        'tie'
    """
    votes = Counter(click.verdict for click in clicks if click.verdict != "invalid").most_common(2)
    if not votes:
        return "invalid"
    return "tie" if len(votes) == 2 and votes[0][1] == votes[1][1] else votes[0][0]
