"""Key phrases by RAKE, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choosy.methods.degree_aware import DegreeAwareLoss
from choosy.methods.keywords import WORD, phrases, ranked_phrases, without_keywords
from choosy.methods.losses import SigmoidLoss

TEXT = "Linear systems and linear equations are solved, and minimal sets of solutions are found.\n\nLinear systems!"


def test_scores_are_sums_of_degree_over_frequency() -> None:
    """linear: degree 2 + 2 + 2 + 0 of 3 uses, systems 4 / 2, equations 2 / 1: each phrase with two words scores 4."""
    assert [" ".join(phrase.words) for phrase in phrases(TEXT)] == [
        *("linear systems", "linear equations", "solved", "minimal sets", "solutions", "found", "linear systems")
    ]
    ranked = [" ".join(words) for words in ranked_phrases(phrases(TEXT))]
    assert ranked == ["linear systems", "linear equations", "minimal sets", "solved", "solutions", "found"]


def test_a_phrase_that_is_left_out_is_left_out_everywhere() -> None:
    assert without_keywords(TEXT, 1 / 6) == (
        "and linear equations are solved, and minimal sets of solutions are found.\n\n!"
    )
    assert without_keywords(TEXT, 1) == "and are , and of are .\n\n!"
    assert without_keywords(TEXT, 0) == TEXT


@pytest.mark.parametrize("text", ["", "It is.", "...", "\n"])
def test_a_text_without_key_phrases_stays_as_it_is_at_every_degree(text: str) -> None:
    assert without_keywords(text, 1) == text
    assert len(DegreeAwareLoss(SigmoidLoss()).variants(text)) <= 1


@given(st.text(alphabet="ab 'é.,\nthe", max_size=40), st.integers(2, 6))
def test_the_larger_the_degree_the_fewer_words_are_left(text: str, degrees: int) -> None:
    variants = DegreeAwareLoss(SigmoidLoss(), degrees=degrees).variants(text)
    words = [len(WORD.findall(variants[degree])) for degree in sorted(variants)]
    assert words == sorted(words, reverse=True)
    assert variants.get(0, "") == text
    assert len(set(variants.values())) == len(variants)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.degrees=1 leaves nothing to tell apart"):
        DegreeAwareLoss(SigmoidLoss(), degrees=1)
    with pytest.raises(ValueError, match=r"loss.share=-1 is no share"):
        DegreeAwareLoss(SigmoidLoss(), share=-1)
