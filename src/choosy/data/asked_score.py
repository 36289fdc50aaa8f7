"""Prompts that ask for a response of a certain score."""

from __future__ import annotations

from dataclasses import dataclass, replace

from choosy.models.instructions import Place, instructed
from choosy.models.tokens import TemplateRefusal, Tokens
from choosy.types import Candidates, Prompt


@dataclass(frozen=True)
class AskedScore:
    """Makes prompts ask for the score that a response should have: reward-augmented DPO (arXiv 2410.08067).

    Args:
        text: The instruction; {score} stands for the score.
        lowest: The lowest score of the data's scale.
        highest: The highest, which held-out prompts ask for.
        place: Where the instruction is put (see `instructed`).
    """

    text: str
    lowest: float = 1.0
    highest: float = 10.0
    place: Place = "system"

    def __post_init__(self) -> None:
        if "{score}" not in self.text:
            raise ValueError("data.reader.asked_score.text must say {score} where the score is put.")

    def instruction(self, score: float) -> str:
        """The instruction that asks for a score.

        Example:
            >>> AskedScore("Score: {score}.").instruction(8.0), AskedScore("Score: {score}.").instruction(7.5)
            ('Score: 8.', 'Score: 7.5.')
        """
        return self.text.replace("{score}", f"{score:g}")

    def asking(self, prompt: Prompt, score: float) -> Prompt:
        """The prompt as it asks the policy for a score; labelers of held-out answers read the plain one."""
        return replace(instructed(prompt, self.instruction(score), place=self.place), plain=prompt)

    def asking_highest(self, prompt: Prompt) -> Prompt:
        """The prompt as it is evaluated."""
        return self.asking(prompt, self.highest)

    def augmented(self, c: Candidates) -> list[Candidates]:
        """The prompt once for each score of its responses, which are the better the nearer they are to it.

        A pair becomes two: asked for the higher score, its better response is chosen; asked for the lower, the other.

        Raises:
            ValueError: A score is not on the scale.

        Example:
            >>> from choosy.types import Response
            >>> pair = Candidates(Prompt("p", "2+2?"), (Response("4", gold=9.0), Response("5", gold=2.0)))
            >>> for c in AskedScore("Score: {score}.").augmented(pair):
            ...     print(c.prompt.id, [(r.text, r.gold) for r in c.responses])
            p for 9 [('4', 0.0), ('5', -7.0)]
            p for 2 [('4', -7.0), ('5', 0.0)]
        """
        scores = [r.gold for r in c.responses if r.gold is not None]
        if beyond := [score for score in scores if not self.lowest <= score <= self.highest]:
            raise ValueError(
                f"a response has the score {beyond[0]:g}, which is not on the scale from "
                f"data.reader.asked_score.lowest={self.lowest:g} to data.reader.asked_score.highest={self.highest:g}; "
                "type those of the data, whose responses need scores: a chosen one without counts 1, a rejected one 0."
            )
        return [
            replace(
                c,
                prompt=replace(self.asking(c.prompt, goal), id=f"{c.prompt.id} for {goal:g}"),
                responses=tuple(replace(r, gold=0.0 - abs(goal - (r.gold or 0.0))) for r in c.responses),
            )
            for goal in dict.fromkeys(scores)
        ]

    def check(self, prompt: Prompt, tokens: Tokens) -> None:
        """Refuse a place for the instruction that the chat template does not have, or whose words it leaves out."""
        if not prompt.messages or tokens.chat is None:
            return
        asked = self.asking_highest(prompt)
        try:
            lost = self.instruction(self.highest).strip() not in tokens.chat.text(asked)
        except TemplateRefusal:
            tokens.chat.text(prompt)  # another reason is another message
            lost = True
        if lost:
            other = "user" if self.place == "system" else "system"
            raise ValueError(
                f"The chat template of {tokens.source.name} has no place for an instruction in a {self.place} turn; "
                f"type data.reader.asked_score.place={other}."
            )
