"""The page of a run, from round files written here: its figures, its prompts, other runs beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pools import put
from scipy.stats import spearmanr
from test_report import facts, write_run

from choosy.__main__ import report
from choosy.data.pool import Pool
from choosy.data.pool_rows import to_row
from choosy.reporting.charts import line_chart, ridge_chart, scatter_chart
from choosy.reporting.choices import Choice, choices_of, rank_correlation
from choosy.reporting.pages import script_hash
from choosy.reporting.report import write_report
from choosy.reporting.run_page import clouds, curve_charts, money_table, names_of, spent, tiles
from choosy.reporting.shown_prompts import MARKUP, shown_prompts
from choosy.reporting.summary import read_run
from choosy.types import Candidates, Pair, Prompt, Response

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" ' {{ 7 * 7 }} ${run} \u202e"


def candidates(
    name: str, number: int, rewards: Sequence[float | None], *, utility: float = float("nan"), **more: Any
) -> Candidates:
    """A prompt with a response for each reward, the first of which was preferred to the last."""
    responses = tuple(
        Response(
            f"answer {n} of {name} in {number} {EVIL}", (1, 2), n != 1, logp=-2.0 - n, logp_ref=-3.0, reward=reward
        )
        for n, reward in enumerate(rewards)
    )
    pair = Pair(0, len(rewards) - 1, 0.5, utility, "vader", number)
    return Candidates(Prompt(name, f"Prompt {name} {EVIL}"), responses, round=number, pairs=(pair,), **more)


def play(folder: Path, rounds: Sequence[Sequence[Candidates]], **evaluation: float) -> Path:
    """Write the files of a run's rounds, each with one held-out answer."""
    heldout = Candidates(
        Prompt("h", "Held out?"), (Response("now", reward=1.0, logp=-1.0), Response("then", reward=0.5))
    )
    row = to_row(heldout, origin="heldout", split="heldout", outcome=1.0)
    pool = Pool()
    for number, fresh in enumerate(rounds):
        pool = put(pool, fresh, round=number, keep="all")
        about = facts(
            number, rounds=len(rounds), budget=None, evaluation={"reward": 1.0, "win_rate": 1.0, **evaluation}
        )
        pool.save(folder / "rounds", {**about, "trained": {"train_accuracy": 0.75}}, [row])
    return folder


def page_of(folder: Path, *others: Path) -> str:
    write_report(*map(read_run, (folder, *others)))
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    names = "abcdef"
    rounds = [
        [candidates(p, number, [n + number, None, 0.0], utility=float(n)) for n, p in enumerate(names, 1)]
        for number in range(2)
    ]
    return play(tmp_path / "run", rounds)


def test_what_a_round_chose_is_read_with_what_came_of_it(run_dir: Path) -> None:
    first, second = choices_of(read_run(run_dir))
    assert (second.round, second.prompts, second.pairs, second.undecided) == (1, 6, 6, 0)
    assert sorted(second.rewards.tolist()) == [*[0.0] * 6, 2, 3, 4, 5, 6, 7]
    assert sorted(first.gaps.tolist()) == [1, 2, 3, 4, 5, 6], "rows of other rounds are in the same file"
    assert sorted(second.utilities) == [(float(n), n + 1.0) for n in range(1, 7)]
    assert second.outcome == "reward gap"
    assert second.correlation.value == pytest.approx(1)


def test_without_a_selector_of_pairs_the_utility_is_the_prompt_s_and_the_outcome_its_spread(tmp_path: Path) -> None:
    chosen = [candidates("a", 0, [3.0, 1.0, 2.0]), candidates("b", 0, [None, None])]
    expected = [(1.0, [3.0, 1.0, 2.0]), (2.0, [None, None])]
    fresh = [candidates(c.prompt.id, 0, rewards) for c, (_, rewards) in zip(chosen, expected, strict=True)]
    fresh = [Candidates(c.prompt, c.responses, round=0, utility=u) for c, (u, _) in zip(fresh, expected, strict=True)]
    (choice,) = choices_of(read_run(play(tmp_path, [fresh])))
    assert (choice.utilities, choice.outcome) == ([(1.0, 2.0)], "spread of rewards")


def test_a_labeler_that_compares_has_the_policy_s_own_preference_for_an_outcome(tmp_path: Path) -> None:
    (choice,) = choices_of(read_run(play(tmp_path, [[candidates("a", 0, [None, None, None], utility=0.25)]])))
    assert (choice.utilities, choice.outcome) == ([(0.25, 2.0)], "log-ratio gap")
    assert not len(choice.gaps)


def test_equal_utilities_as_of_a_choice_by_chance_are_not_drawn() -> None:
    def choice(*utilities: float) -> Choice:
        return Choice(0, 2, np.ones(4), np.ones(2), 0, 2, [(one, 0.5) for one in utilities], "gap")

    assert clouds([choice(0, 0), choice()]) == []
    assert len(clouds([choice(0, 0), choice(0, 1)])) == 1


def test_the_rank_correlation_is_spearman_s_with_ties_and_its_interval_holds_it() -> None:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 6, 40).tolist()
    y = [a + b for a, b in zip(x, draw.normal(0, 3, 40).round().tolist(), strict=True)]
    rho, low, high = rank_correlation([*zip(x, y, strict=True)])
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    assert -1 < low < rho < high < 1
    assert np.isnan(rank_correlation([(1, 1)] * 9).value), "equal numbers have no order"
    assert np.isnan(rank_correlation([(1, 2), (2, 3)]).value)


def test_the_page_shows_every_candidate_as_text_and_runs_its_own_script_only(run_dir: Path) -> None:
    page = page_of(run_dir)
    for n, name in enumerate("abcdef", 1):
        for number in range(2):
            start = page.index(f"answer 0 of {name} in {number} &lt;/script&gt;&lt;script&gt;alert(1)")
            row = page[page.rindex("<tr>", 0, start) : start]
            assert [*re.findall(r"<td[^>]*>([^<]*)</td>", row)] == ["1", "chosen", f"{n + number}", "-2.0", "-3.0"]
    assert page.count('<td class="rejected">rejected</td>') == 12
    assert "1 over 3, reward gap 1, utility 1, weight 0.5, by vader" in page
    assert "won against the start" in page
    assert "<img" not in page
    assert "{{ 7 * 7 }}" in page
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == page.count("<script") == 1
    assert f"script-src &#39;{script_hash(scripts[0])}&#39;".replace("&#39;", "'") in page
    assert "onerror=alert" not in re.sub(r"&lt;img src=x onerror=alert\(2\)&gt;", "", page)
    assert not re.search(r"https?:", page)


def test_a_page_says_what_it_leaves_out(run_dir: Path) -> None:
    run = read_run(run_dir)
    every, left_out = shown_prompts(run)
    assert ([p.split for p in every], left_out) == (["train"] * 6 + ["heldout"], "")
    assert [look.round for look in every[0].looks] == [1, 0], "the newest first"
    some, left_out = shown_prompts(run, most=2)
    assert len(some) == 3
    assert left_out.startswith("Left out: 4 of 7 prompts; ")
    letters = len(f"Prompt a {EVIL}") + sum(len(one.text) + MARKUP for one in every[0].looks[0].responses)
    some, left_out = shown_prompts(run, letters=letters)
    assert [len(p.looks) for p in some] == [1]
    assert left_out.startswith("Left out: 6 of 7 prompts and 1 older round of those that are shown; ")


def test_a_page_of_many_short_answers_stays_small(tmp_path: Path) -> None:
    short = Candidates(Prompt("p", "?"), (Response("a", reward=1.0), Response("b", reward=0.0)))
    run_dir = play(tmp_path, [[replace(short, round=number)] for number in range(120)])
    run = read_run(run_dir)
    some, left_out = shown_prompts(run, letters=50 * 4 * MARKUP)
    assert sum(len(prompt.looks) for prompt in some) < 110
    assert "older rounds of those that are shown" in left_out
    charts = curve_charts({"run": run})["seconds"]
    assert {len(chart.dots) for chart in charts} == {100}


def test_a_round_is_read_once_for_its_choices_and_twice_for_its_prompts(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, reads = read_run(run_dir), list[Path]()
    read = pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda path, **what: (reads.append(path), read(path, **what))[1])
    monkeypatch.setattr("choosy.data.table_files.refuse_damaged", lambda path: pytest.fail("read_run has checked it"))
    choices_of(run)
    assert len(reads) == 2
    shown_prompts(run)
    assert len(reads) == 2 + 4
    some, left_out = shown_prompts(run, letters=0)
    assert (len(reads), some) == (2 + 4 + 3, []), "no texts are read when the letters are spent"
    assert left_out.startswith("Left out: 7 of 7 prompts; ")


def test_each_figure_has_an_interval_or_its_number(tmp_path: Path) -> None:
    run = read_run(play(tmp_path, [[]], reward_low=0.5, reward_high=1.5, kl=2.0, kl_error=0.5, ties=0.25, judged=8))
    shown = {tile.label: (tile.value, tile.note) for tile in tiles(run)}
    assert shown["held-out reward"] == ("1.00", "0.50 to 1.50"), "one value is no course"
    assert shown["held-out KL"] == ("2.00", "1.02 to 2.98")
    assert shown["held-out win rate"] == ("100%", "n = 8")
    assert shown["training accuracy"] == ("75%", "n = 6")
    page = page_of(tmp_path)
    for cell in ('25% <span class="range">n = 8</span>', '2.00 <span class="range">1.02 to 2.98</span>'):
        assert f"<td>{cell}</td>" in page


def test_parts_of_a_reward_are_shown_beside_it(tmp_path: Path) -> None:
    one = candidates("a", 0, [1.0, 0.0])
    parts = [(("correct", 2.0), ("<i>length", -0.5)), ()]
    responses = tuple(replace(r, parts=of) for r, of in zip(one.responses, parts, strict=True))
    page = page_of(play(tmp_path, [[replace(one, responses=responses)]], **{"parts/correct": 0.25, "reward_low": 0.0}))
    assert '<td data-name="reward">1 <span class="range">correct 2, &lt;i&gt;length -0.5</span></td>' in page
    assert '<td data-name="reward">0</td>' in page
    assert "<figcaption>held-out parts: correct</figcaption>" in page


def test_the_gain_is_that_of_the_same_prompts(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    shown = {tile.label: tile.note for tile in tiles(run)}
    assert shown["held-out reward"] == "gain +0.50 (+0.50 to +0.50)", "ten equal differences"


def test_money_is_told_round_by_round_and_evaluation_apart(tmp_path: Path) -> None:
    headings, rows = money_table(read_run(write_run(tmp_path, rounds=2)))
    assert headings == ["round", "labels", "reused", "ties", "price", "price of one", "evaluation labels"]
    assert rows[0] == ("1", "12", "1", "1", "0.5", "0.042", "8")
    assert rows[1] == ("2", "12", "1", "1", "0.5", "0.042", "4")
    assert rows[2] == ("all", "24", "2", "2", "1.00", "0.042", "12")
    assert spent(read_run(tmp_path), "tokens_generated") == [1000, 1000]


def config(folder: Path, typed: Mapping[str, Any], judge: str = "vader") -> Path:
    (folder / ".hydra").mkdir(parents=True)
    words = [f"{name}={value}" for name, value in typed.items()]
    (folder / ".hydra" / "overrides.yaml").write_text(str(words).replace("'", '"'))
    (folder / "config.yaml").write_text(
        f"{{lr: {typed.get('lr', 1)}, labeler: {{path: {judge}}}, data: {{heldout: h}}}}"
    )
    return folder


def test_other_runs_are_laid_over_and_what_differs_is_marked(tmp_path: Path) -> None:
    one, two, three = (write_run(tmp_path / name) for name in ("one", "two", "<i>three"))
    config(one, {"lr": 1, "loss.beta": 0.1, "data.limit": 9})
    config(two, {"lr": 2, "loss.beta": 0.2, "data.limit": 9})
    config(three, {"lr": 1, "data.limit": 9}, judge="another.judge")
    alone, page = page_of(one), page_of(one, two, three)
    assert '<tr class="differs"><th>lr</th><td>1</td><td>2</td><td>1</td></tr>' in page
    assert '<tr class="differs"><th>loss.beta</th><td>0.1</td><td>0.2</td><td>–</td></tr>' in page
    assert "data.limit</th>" not in page, "all have typed the same"
    assert "&lt;i&gt;three was measured by another judge" in page
    rewards = page[page.index("<figcaption>held-out reward") :].partition("</figure>")[0]
    assert [rewards.count(f'polyline class="s{n} curve"') for n in range(3)] == [1, 1, 0]
    length = page[page.index("<figcaption>held-out length") :].partition("</figure>")[0]
    assert [length.count(f'polyline class="s{n} curve"') for n in range(3)] == [1, 1, 1]
    assert "two: 0.75 at 24 labels" in rewards
    assert "legend" not in alone.partition("</style>")[2]
    report([str(one), str(two)])
    assert '<th class="text">two</th>' in (one / "report.html").read_text()
    with pytest.raises(ValueError, match="shows 6 runs or fewer beside each other, found 7; type fewer, or"):
        write_report(*[read_run(one)] * 7)


def test_runs_are_called_by_what_tells_them_apart() -> None:
    assert names_of([Path("/r/0"), Path("/r/1")]) == ["r/0", "r/1"]
    assert names_of([Path("/x/one/a"), Path("/y/one/a")]) == ["x/one/a", "y/one/a"]


def test_the_lines_that_load_the_model_are_those_of_its_card(run_dir: Path) -> None:
    assert "How to load" not in page_of(run_dir)
    (run_dir / "adapter").mkdir()
    (run_dir / "adapter" / "README.md").write_text('# Card\n```python\nmodel = load("<here>")\n```\n')
    assert "<pre>model = load(&#34;&lt;here&gt;&#34;)</pre>" in page_of(run_dir)


@pytest.mark.parametrize(
    "numbers", [[], [0.0], [2.0] * 5, [0.3, 0.3 + 5e-17], [1e18] * 2, [-1e-9, 1e9], [float("nan"), 1.0]]
)
def test_any_numbers_can_be_drawn(numbers: list[float]) -> None:
    from choosy.reporting.charts import Point

    known = np.array([x for x in numbers if x == x])
    charts = [
        line_chart("t", "labels", ".0%", {"a": [Point(n, y) for n, y in enumerate(numbers)], "b": []}),
        ridge_chart("t", "reward", {"round 1": known, "round 2": np.zeros(0)}),
        scatter_chart("t", "u", "o", [(x, x) for x in known.tolist()], ""),
    ]
    places = [mark[:2] for chart in charts for mark in (*chart.dots, *chart.bars)]
    assert np.isfinite(np.array(places)).all()
    assert all(0 <= x <= chart.width for chart in charts for x, *_ in (*chart.x_ticks, *chart.dots))
