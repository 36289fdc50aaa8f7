"""Labels of a round: which pairs are bought, and what takes the place of a tie."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_ranks import FakeRanks
from pools import put

from choosy.data.batches import PoolItems
from choosy.data.pool import Pool
from choosy.errors import Stopped
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.protocols import Terms
from choosy.methods.selection import ChosenPair, PairChoice
from choosy.parallel.ranks import OneRank, Ranks, shard
from choosy.reporting.display import Phases
from choosy.rounds.context import Round
from choosy.rounds.label import label, to_label, with_thresholds
from choosy.types import Candidates, Prompt, Response, Verdict


class FirstLetter:
    """Prefers the response whose text starts with the later letter; a response without a letter is invalid."""

    name = "first letter"

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
        return [verdict(one.text, other.text) for _, one, other in items]


class Score:
    """Gives the place of the first letter."""

    name = "score"

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        return [float(ord(response.text[0])) for _, response in items]


def verdict(one: str, other: str) -> Verdict:
    if not (one[0] + other[0]).isalpha():
        return "invalid"
    return "tie" if one[0] == other[0] else "first" if one[0] > other[0] else "second"


def candidates(*texts: str) -> list[Candidates]:
    """One prompt for each word: its responses start with the word's letters."""
    return [
        Candidates(Prompt(f"p{n:02d}", f"{n}?"), tuple(Response(f"{letter} of {i}") for i, letter in enumerate(word)))
        for n, word in enumerate(texts)
    ]


@pytest.fixture
def buy(tmp_path: Path) -> Callable[..., tuple[list[Candidates], LabelBuyer]]:
    """Label candidates with a choice of pairs: buy(FirstLetter(), candidates, choice, budget=3)."""

    def bought(
        labeler: Any,
        fresh: list[Candidates],
        choice: PairChoice,
        pairing: Any = "best_worst",
        threshold: float = 0.0,
        **budgets: Any,
    ) -> Any:
        buyer = LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"), max_invalid=None, **budgets)
        buyer.open("run")
        parts: Any = (None, None, Pool(), OneRank(), Phases(), None, None)
        at = Round(0, 0, *parts, pairing=pairing, threshold=threshold)
        return label(at, fresh, choice, buyer), buyer

    return bought


def every_pair(fresh: Sequence[Candidates], wanted: int, **how: Any) -> PairChoice:
    pairs = [ChosenPair(p, i, j, 0.0) for p, c in enumerate(fresh) for j in range(len(c.responses)) for i in range(j)]
    lone = [ChosenPair(p, 0, 0, 0.0) for p, c in enumerate(fresh) if len(c.responses) == 1]
    return PairChoice(pairs + lone, wanted, **how)


def test_what_is_labeled_is_counted_as_what_it_is() -> None:
    fresh = candidates("ab", "cde")
    assert to_label([2, 3], every_pair(fresh, 3)) == (3, "pairs")
    assert to_label([2, 3], every_pair(fresh, 9)) == (4, "pairs"), "no more than there are"
    assert to_label([2, 3], every_pair(fresh, 1, score_all=True)) == (1, "prompts")
    assert to_label([2, 3], None) == (2, "prompts")


TOP_UP = {"top_up": True, "per_prompt": 1}
ALL = {**TOP_UP, "score_all": True}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("labeler", "words", "wanted", "how", "budget"),
    [
        (FirstLetter, "ab bb ca dc e1 af gb", 5, {}, None),
        (Score, "ab bb ca dc ee af gb", 5, {}, None),
        (FirstLetter, "aab bb cca dd e1 af gb", 4, TOP_UP, None),
        (FirstLetter, "aab bb cca dd e1 af gb", 7, {"top_up": True}, None),
        (Score, "aab bb cca dd ee af gb", 4, TOP_UP, None),
        (Score, "aaa bbb abc dd ee af gbb", 3, ALL, None),
        (FirstLetter, "aab bb cca dd e1 af gb", 4, TOP_UP, 4),
        (Score, "abc bbb abd dd ef af gbb", 6, ALL, 9),
        (Score, "c a c e b d c", 4, ALL, None),
        (Score, "c a c e b d c", 4, {"score_all": True}, 3),
    ],
)
def test_rank_zero_buys_for_all_ranks(
    labeler: Any, words: str, wanted: int, how: dict[str, Any], budget: int | None, size: int, tmp_path: Path
) -> None:
    """The pairs, rewards, ties and thresholds are those of one process; only rank 0 asks, and asks no more."""
    fresh = candidates(*words.split())
    choice = every_pair(fresh, wanted, **how)
    random.Random(0).shuffle(choice.ranked)

    def played(ranks: Ranks) -> tuple[list[Candidates], int]:
        ledger = str(tmp_path / f"{ranks.rank}of{ranks.size}")
        buyer = LabelBuyer(labeler(), ledger=ledger, max_invalid=None, budget=budget)
        buyer.open("run")
        parts: Any = (None, None, Pool(), ranks, Phases(), None, None)
        return label(Round(0, 0, *parts, threshold="mean"), shard(fresh, ranks), choice, buyer), buyer.spent

    alone, spent = played(OneRank())
    assert any(c.labeled for c in alone)
    assert FakeRanks.play(size, played) == [(alone[n::size], 0 if n else spent) for n in range(size)]


@pytest.mark.parametrize("labeler", [FirstLetter, Score])
def test_ties_are_replaced_until_as_many_pairs_as_wanted_have_a_winner(labeler: Any, buy: Any) -> None:
    fresh = candidates("aa", "ab", "cc", "dd", "ef", "ba", "gh")
    labeled, _ = buy(labeler(), fresh, every_pair(fresh, 3, per_prompt=1, top_up=True))
    assert [len(c.pairs) for c in labeled] == [0, 1, 0, 0, 1, 1, 0]
    assert [c.undecided for c in labeled] == [((0, 1),), (), ((0, 1),), ((0, 1),), (), (), ()]
    assert [(c.pairs[0].chosen, c.pairs[0].rejected) for c in labeled if c.pairs] == [(1, 0), (1, 0), (0, 1)]


def test_prompts_whose_scores_all_tie_are_undecided_and_replaced(buy: Any) -> None:
    fresh = candidates("aaa", "bab", "ccc", "abc")
    labeled, _ = buy(Score(), fresh, every_pair(fresh, 2, per_prompt=1, top_up=True, score_all=True))
    assert [c.undecided for c in labeled] == [((0, 1), (0, 2), (1, 2)), (), ((0, 1), (0, 2), (1, 2)), ()]
    assert [[(p.chosen, p.rejected) for p in c.pairs] for c in labeled] == [[], [(0, 1)], [], [(2, 0)]]


def test_invalid_verdicts_are_replaced_too(buy: Any) -> None:
    fresh = candidates("?a", "a?", "ab", "bc")
    labeled, buyer = buy(FirstLetter(), fresh, every_pair(fresh, 1, per_prompt=1, top_up=True))
    assert [len(c.pairs) for c in labeled] == [0, 0, 1, 0]
    assert buyer.spent == 3


def test_another_pair_of_the_prompt_may_take_the_place_of_a_tie(buy: Any) -> None:
    fresh = candidates("aab")
    labeled, _ = buy(FirstLetter(), fresh, every_pair(fresh, 2, per_prompt=1, top_up=True))
    assert (len(labeled[0].pairs), labeled[0].undecided) == (1, ((0, 1),)), "the cap counts labeled pairs"


def test_with_all_pairs_a_prompt_with_a_winner_counts_once(buy: Any) -> None:
    """The second prompt ties and is replaced; two of three responses of the third tie."""
    fresh = candidates("abc", "ddd", "eef", "gh", "ij")
    labeled, _ = buy(Score(), fresh, every_pair(fresh, 3, per_prompt=1, top_up=True, score_all=True), pairing="all")
    made = [[(pair.chosen, pair.rejected) for pair in c.pairs] for c in labeled]
    assert made == [[(1, 0), (2, 0), (2, 1)], [], [(2, 0), (2, 1)], [(1, 0)], []]


def test_single_responses_at_the_threshold_are_replaced_too(buy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Phases, "say", lambda _, text: said.append(text))
    fresh = candidates("m", "a", "m", "z", "b")
    asked = [ChosenPair(p, 0, 0, 0.0) for p in range(5)]
    how: Any = {"per_prompt": 1, "top_up": True, "score_all": True}
    labeled, buyer = buy(Score(), fresh, PairChoice(asked, 2, **how), threshold=float(ord("m")))
    assert [c.labeled for c in labeled] == [False, True, False, True, False]
    assert buyer.spent == 4, "two are at the threshold, and the last is not asked about"
    buy(Score(), fresh, PairChoice(asked, 4, **how), threshold=float(ord("m")))
    assert "3 responses are good or bad, 4 were wanted, and no other is left to label." in said


@pytest.mark.parametrize(("score_all", "what"), [(True, "prompts"), (False, "pairs")])
def test_too_few_prompts_for_the_wanted_labels_are_said_in_the_words_of_the_selector(
    score_all: bool, what: str, buy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Phases, "say", lambda _, text: said.append(text))
    fresh = candidates("ab", "bc")
    buy(Score(), fresh, every_pair(fresh, 4, per_prompt=1, top_up=True, score_all=score_all))
    assert said[:1] == [f"2 {what} have a winner, 4 were wanted, and no other is left to label."]


def test_without_top_up_a_tie_is_one_of_those_wanted(buy: Any) -> None:
    fresh = candidates("aa", "ab", "cd", "ef")
    labeled, buyer = buy(FirstLetter(), fresh, every_pair(fresh, 2, per_prompt=1))
    assert [len(c.pairs) for c in labeled] == [0, 1, 0, 0]
    assert buyer.spent == 2


def test_the_budget_ends_the_search(buy: Any) -> None:
    fresh = candidates("aa", "bb", "cc", "dd", "ef")
    labeled, buyer = buy(FirstLetter(), fresh, every_pair(fresh, 2, per_prompt=1, top_up=True), budget=3)
    assert (buyer.spent, sum(len(c.pairs) for c in labeled)) == (3, 0)


def test_a_cut_response_is_less_worth_in_training_but_not_in_the_ledger(tmp_path: Path) -> None:
    buyer = LabelBuyer(Score(), ledger=str(tmp_path / "ledger.sqlite"), missing_eos_penalty=1.5)
    buyer.open("run")
    (c,) = candidates("ab")
    cut = replace(c, responses=(c.responses[0], replace(c.responses[1], finished=False)))
    (trained,), (evaluated,) = buyer.score([cut]), buyer.score([cut], purpose="evaluate")
    assert [r.reward for r in trained.responses] == [97.0, 96.5]
    assert [r.reward for r in evaluated.responses] == [97.0, 98.0]
    assert sorted(row["score"] for row in buyer.ledger.rows("labels")) == [97.0, 98.0]


def test_a_score_that_says_nothing_says_no_more_where_the_response_was_cut(tmp_path: Path) -> None:
    class Silent(Score):
        terms = Terms(fingerprint="silent", neutral=98.0)

    buyer = LabelBuyer(Silent(), ledger=str(tmp_path / "ledger.sqlite"), missing_eos_penalty=1.5)
    buyer.open("run")
    (c,) = candidates("ab")
    (trained,) = buyer.score([replace(c, responses=tuple(replace(r, finished=False) for r in c.responses))])
    assert [r.reward for r in trained.responses] == [95.5, 98.0]


def test_a_penalty_needs_rewards(tmp_path: Path) -> None:
    for labeler, penalty in ((FirstLetter(), 1.0), (Score(), -1.0)):
        with pytest.raises(
            ValueError, match=r"missing_eos_penalty=.* must be positive, and labeler .* must give rewards"
        ):
            LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"), missing_eos_penalty=penalty)


def test_the_order_in_which_a_pair_is_shown_changes_no_verdict(buy: Any) -> None:
    """Half of the pairs are shown the other way around."""
    fresh = candidates(*["ab"] * 20, *["ba"] * 20)
    labeled, _ = buy(FirstLetter(), fresh, every_pair(fresh, 40))
    assert [c.pairs[0].chosen for c in labeled] == [1] * 20 + [0] * 20


@pytest.mark.parametrize(
    ("threshold", "value", "good"),
    [
        ("mean", 100.0, [False, False, False, True]),
        ("median", 98.5, [False, False, True, True]),
        (98, 98.0, [False, True, True]),
    ],
)
def test_single_responses_are_good_above_the_threshold_of_the_round(tmp_path, threshold, value, good):
    """Scores 97, 98, 99, 106; one that equals the threshold is neither good nor bad."""
    labels = LabelBuyer(Score(), ledger=str(tmp_path / "ledger.sqlite"))
    labels.open("run")
    at = Round(0, 0, None, None, Pool(), OneRank(), Phases(), None, None, threshold=threshold)  # type: ignore[arg-type]
    pool = put(Pool(), label(at, candidates("a", "b", "c", "j"), None, labels), round=0)
    assert {c.threshold for c in pool.candidates()} == {value}
    items = PoolItems(pool, {"single"}, round=0)
    assert [items[n].good for n in range(len(items))] == good
    assert [c.responses[0].reward for c in pool.candidates()] == [97, 98, 99, 106]


class Thumbs(Score):
    """Calls a response good (1), bad (-1), or says nothing (0): g, b, and any other letter."""

    name = "thumbs"
    terms = Terms(neutral=0.0)

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        return [{"g": 1.0, "b": -1.0}.get(response.text[0], 0.0) for _, response in items]


@pytest.mark.parametrize("chosen", [True, False], ids=["chosen pairs", "all scored"])
def test_a_score_that_says_nothing_makes_no_pair(buy, chosen) -> None:
    words = ["gb", "g?", "?b", "??"]
    pairs = [ChosenPair(p, 0, 1, 1.0) for p in range(4)]
    choice = PairChoice(pairs, 4, per_prompt=1, top_up=False, score_all=not chosen)
    labeled, _ = buy(Thumbs(), candidates(*words), choice)
    assert [[(p.chosen, p.rejected) for p in c.pairs] for c in labeled] == [[(0, 1)], [], [], []]


def test_pairs_are_made_of_the_responses_about_which_something_is_said(buy) -> None:
    """The best is `g`; of the rest one says nothing, and the other is the worst."""
    choice = PairChoice([ChosenPair(0, 0, 1, 1.0)], 1, per_prompt=1, top_up=False, score_all=True)
    labeled, _ = buy(Thumbs(), candidates("?gb"), choice)
    assert [(p.chosen, p.rejected) for p in labeled[0].pairs] == [(1, 2)]
    (item,) = PoolItems(put(Pool(), labeled, round=0), {"list"}, round=0, neutral=0.0)
    assert item.rewards == [1.0, -1.0], "a list leaves it out"


def test_a_cut_response_keeps_saying_something_where_the_penalty_makes_it_neutral(tmp_path: Path) -> None:
    buyer = LabelBuyer(Thumbs(), ledger=str(tmp_path / "ledger.sqlite"), missing_eos_penalty=1.0)
    buyer.open("run")
    (c,) = candidates("gg")
    cut = replace(c, responses=(c.responses[0], replace(c.responses[1], text="g cut", finished=False)))
    (scored,) = buyer.score([cut])
    ended, less = (r.reward for r in scored.responses)
    assert ended == 1.0
    assert less != 0.0
    assert less == pytest.approx(0.0)


def test_thresholds_of_earlier_rounds_stay(tmp_path: Path) -> None:
    at = Round(1, 0, None, None, Pool(), OneRank(), Phases(), None, None, threshold="mean")  # type: ignore[arg-type]
    old, new = (
        Candidates(Prompt(name, "?"), (Response("r", reward=reward),), round=round, threshold=0.5)
        for name, reward, round in (("old", 1.0, 0), ("new", 5.0, 1))
    )
    assert [c.threshold for c in with_thresholds(at, [old, new], None)] == [0.5, 5.0]


@pytest.mark.parametrize("threshold", [0.0, "mean", -0.5])
def test_a_lone_response_about_which_nothing_is_said_is_neither_good_nor_bad(buy, threshold) -> None:
    choice = PairChoice([ChosenPair(p, 0, 0, 1.0) for p in range(4)], 4, per_prompt=1, top_up=False, score_all=True)
    labeled, _ = buy(Thumbs(), candidates("g", "b", "b", "?"), choice, threshold=threshold)
    assert [c.labeled for c in labeled] == [True, True, True, False]
    assert labeled[0].threshold == {"mean": pytest.approx(-1 / 3)}.get(threshold, threshold), (
        "of those that say something"
    )


def test_a_machine_that_often_says_nothing_is_stopped(tmp_path) -> None:
    buyer = LabelBuyer(Thumbs(), ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("run")
    with pytest.raises(Stopped, match=r"verdicts of labeler thumbs are invalid"):
        buyer.score(candidates(*"ggg???" * 5))
