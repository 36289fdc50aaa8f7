"""How a run looks: curves as a PNG, and one HTML page that is safe whatever a model wrote."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from choosy.reporting.phases import PHASES, duration

REWARD, WIN_RATE = "#2563eb", "#d97706"
COLORS = dict(zip(PHASES, ("#2563eb", "#0891b2", "#7c3aed", "#db2777", "#d97706", "#65a30d"), strict=True))
GRID, FRAME, INK = "#e5e7eb", "#9ca3af", "#4b5563"

Side = tuple[str, str, str]  # an answer's reward as text, the answer, and "up", "down" or ""

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --dim: #6b7280; --line: #e5e7eb; --page: #fff;
  --good: #15803d; --bad: #b91c1c; --link: #2563eb }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --dim: #9ca3af; --line: #374151;
  --page: #111827; --good: #4ade80; --bad: #f87171; --link: #60a5fa } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 70rem;
  margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.6rem; margin: 0 }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
p { color: var(--dim); margin: .3rem 0 }
a { color: var(--link) }
img { width: 100%; box-sizing: border-box; background: #fff; padding: .8rem; margin-top: 1.2rem;
  border: 1px solid var(--line); border-radius: 10px }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .45rem .6rem; border-bottom: 1px solid var(--line) }
th { color: var(--dim); font-weight: 600 }
th:first-child, td:first-child { text-align: left }
.bar { display: flex; height: .7rem; border-radius: 6px; overflow: hidden; margin-bottom: .5rem }
.key span { margin-right: 1.2rem; white-space: nowrap }
.key i { font-style: normal }
.answers { table-layout: fixed }
.answers th, .answers td { text-align: left; vertical-align: top }
.answers th:first-child { width: 26% }
.answers td { white-space: pre-wrap; overflow-wrap: anywhere }
.answers b { display: block; color: var(--dim) }
.answers b.up { color: var(--good) }
.answers b.down { color: var(--bad) }
"""


def page(
    *,
    title: str,
    headline: str,
    facts: str,
    links: Iterable[str],
    png: bytes,
    table: Sequence[Sequence[str]],
    seconds: Mapping[str, float],
    answers: Iterable[tuple[str, Side, Side]],
) -> str:
    """One HTML page that needs no other file and no network; every text in it is escaped.

    Args:
        title: Names the run.
        headline: Its outcome in one line.
        facts: What else belongs in the head.
        links: Files beside the page.
        png: The curves.
        table: The rounds, headings first.
        seconds: Per phase.
        answers: Prompt, the answer before, the answer after.
    """
    head, *rounds = table
    # The policy is a second lock behind the escaping: nothing is loaded and no script runs.
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{escape(headline)}</p>
<p>{escape(facts)}</p>
<p>{" · ".join(f'<a href="{escape(link)}">{escape(link)}</a>' for link in links)}</p>
<img alt="{escape(headline)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">
<h2>Rounds</h2>
<table>{_row("th", map(escape, head))}{"".join(_row("td", map(escape, row)) for row in rounds)}</table>
<p>Reward, win rate, KL and length: held-out prompts. Labels, tokens and seconds: since the start.</p>
<h2>Where {duration(math.fsum(seconds.values()))} went</h2>
{_bar(seconds)}
<h2>Before and after</h2>
<table class="answers">
{_row("th", ("prompt", "before", "after"))}{"".join(map(_answer, answers))}</table>
<p>The first held-out prompts, not picked. In bold: the reward.</p>
</body></html>
"""


def _row(cell: str, contents: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{content}</{cell}>" for content in contents) + "</tr>\n"


def _answer(answer: tuple[str, Side, Side]) -> str:
    prompt, *sides = answer
    shown = (f'<b class="{escape(trend)}">{escape(reward)}</b>{escape(text)}' for reward, text, trend in sides)
    return _row("td", (escape(prompt), *shown))


def _bar(seconds: Mapping[str, float]) -> str:
    parts, key = [], []
    for phase, spent in seconds.items():
        color = COLORS[phase]
        parts.append(f'<div style="flex:{spent:.3f};background:{color}"></div>')
        key.append(f'<span><i style="color:{color}">●</i> {phase} {duration(spent)}</span>')
    return f'<div class="bar">{"".join(parts)}</div>\n<p class="key">{"".join(key)}</p>'


def curves(
    title: str, costs: Mapping[str, Sequence[float]], rewards: Sequence[float], win_rates: Sequence[float]
) -> bytes:
    """Rewards and win rates against each cost as a PNG; the first point of each is the start policy."""
    from matplotlib.figure import Figure  # half a second that only a drawing should cost
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11, 5.6), layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.06))
    figure.suptitle(title, fontsize=13, fontweight="bold")
    axes = figure.subplots(2, 3, sharex="col", sharey="row")
    for column, (cost, spent) in enumerate(costs.items()):
        _curve(axes[0, column], spent, rewards, REWARD)
        _curve(axes[1, column], spent, win_rates, WIN_RATE)
        axes[1, column].set_xlabel(cost)
        axes[1, column].axhline(0.5, color=FRAME, linewidth=1, linestyle="--", zorder=0)
    axes[0, 0].set_ylabel("held-out reward")
    axes[1, 0].set_ylabel("win rate against the start")
    axes[1, 0].set_ylim(-0.05, 1.15)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    return drawn.getvalue()


def _curve(axes: Any, costs: Sequence[float], values: Sequence[float], color: str) -> None:
    """One curve from the start (a ring) over the rounds (dots), first and last value written beside it."""
    from matplotlib.ticker import EngFormatter

    axes.plot(costs, values, color=color, linewidth=2.2, solid_capstyle="round")
    fill = ["white", *[color] * (len(costs) - 1)]
    axes.scatter(costs, values, s=38, color=fill, edgecolors=color, linewidths=1.6, zorder=3)
    rises = len(values) > 1 and values[1] > values[0]  # then the curve runs above its first point
    for position, lift in {0: -17 if rises else 8, len(values) - 1: 8}.items():
        if not math.isnan(values[position]):
            point = (costs[position], values[position])
            text = f"{values[position]:.2f}"
            axes.annotate(text, point, (0, lift), textcoords="offset points", color=color, ha="center")
    axes.margins(x=0.1, y=0.2)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.tick_params(colors=INK, length=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if not any(costs):
        axes.set_xticks([0], ["none"])
