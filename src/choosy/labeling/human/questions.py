"""What people are asked."""

from __future__ import annotations

from dataclasses import dataclass

from choosy.types import MIRRORED, Prompt, Response, Verdict, content_id, seed_of


@dataclass(frozen=True)
class PairQuestion:
    """The texts of a pair of answers to be judged by people."""

    id: str  # hash of its contents
    prompt: str
    first: str
    second: str

    @classmethod
    def of(cls, prompt: Prompt, first: Response, second: Response) -> PairQuestion:
        """Build the question from a prompt and two responses."""
        turns = [part for message in prompt.messages for part in (message.role, message.content)]
        return cls(content_id(prompt.text, *turns, "", first.text, second.text), prompt.text, first.text, second.text)


def first_on_the_left(question: str, annotator: str) -> bool:
    """Draw the side of the first answer: random over questions and annotators, the same at every call."""
    return seed_of("side", question, annotator) % 2 == 0


def swap_sides(verdict: Verdict, question: str, annotator: str) -> Verdict:
    """Translate a verdict between first/second and left/right, `first` standing for left; it is its own inverse."""
    return verdict if first_on_the_left(question, annotator) else MIRRORED[verdict]
