"""What a run leaves behind: the summary, the curves, the page and the last words, all told by its rounds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choosy.files import replacing
from choosy.labeling.statistics import shares
from choosy.reporting.page import COLORS, REWARD, WIN_RATE, Side, curves, page
from choosy.reporting.phases import PHASES, duration

HEADINGS = ("round", "reward", "win rate", "ties", "KL", "length", "labels", "tokens", "seconds")
LEFT_BEHIND = {
    "report.html": "this run on one page",
    "curves.png": "reward and win rate against labels, tokens and seconds",
    "summary.json": "the numbers, for tools",
    "rounds": "prompts, responses, rewards, pairs: a Parquet table a round",
    "metrics.csv": "the training metrics, step by step",
    "config.yaml": "everything this run was told",
    "adapter": "the tuned adapter in Hugging Face format",
    "model": "the tuned model in Hugging Face format",
    "checkpoints": "to resume from",
}


@dataclass(frozen=True, slots=True)
class Round:
    """Where a run stood after one round: labels, tokens, pairs and seconds count from its start."""

    number: int
    labels: Mapping[str, int]
    tokens_generated: int
    responses_cut: int
    responses_empty: int
    sync_milliseconds: int
    pairs_trained: int
    seconds: Mapping[str, float]
    evaluation: Mapping[str, float] | None
    judged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    money: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def total_seconds(self) -> float:
        """Seconds of all phases together."""
        return math.fsum(self.seconds.values())


@dataclass(frozen=True, slots=True)
class Answer:
    """A held-out prompt as the start policy and the tuned one answer it; outcome 1: the tuned one won."""

    prompt: str
    before: str
    after: str
    reward_before: float | None
    reward_after: float | None
    outcome: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """What the round files of a run tell; `rounds` are those played so far of the `planned` ones."""

    folder: Path
    planned: int
    seed: int
    budget: int | None
    start: Mapping[str, float]
    rounds: tuple[Round, ...]
    answers: tuple[Answer, ...]

    @property
    def evaluated(self) -> tuple[Round, ...]:
        """The rounds that were evaluated."""
        return tuple(played for played in self.rounds if played.evaluation)

    @property
    def finished(self) -> bool:
        """Whether every planned round was played, and the last one evaluated if the start was."""
        if len(self.rounds) < self.planned:
            return False
        return not self.start or self.evaluated[-1:] == self.rounds[-1:]

    @property
    def last(self) -> Mapping[str, float]:
        """The latest evaluation; empty if there is none."""
        return (self.evaluated[-1].evaluation or {}) if self.evaluated else {}


def read_run(run_dir: str | Path) -> Run:
    """Read a run's folder, finished or not.

    Raises:
        ValueError: The folder holds no round files.
    """
    folder = Path(run_dir)
    played = sorted(folder.glob("rounds/round_*.parquet"))
    start = folder / "rounds" / "start.parquet"
    if not played and not start.exists():
        raise ValueError(f"Wanted the folder of a run, with rounds/round_000.parquet; found none in {folder}.")
    told = [_told(path) for path in played]
    first = _told(start) if start.exists() else {}
    evaluated = [path for path, facts in zip(played, told, strict=True) if facts["evaluation"]]
    latest = told[-1] if told else first
    return Run(
        folder=folder,
        planned=latest["rounds"],
        seed=latest["seed"],
        budget=latest["budget"],
        start=first.get("evaluation") or {},
        rounds=tuple(_round(facts) for facts in told),
        answers=tuple(_answers(evaluated[-1])) if evaluated else (),
    )


def _told(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"choosy"])
    return facts


def _round(facts: Mapping[str, Any]) -> Round:
    kept = ("labels", "tokens_generated", "pairs_trained", "seconds", "evaluation")
    since = {name: facts[name] for name in ("judged", "money") if name in facts}  # files of an earlier version
    counts = ("responses_cut", "responses_empty", "sync_milliseconds")  # which an earlier version did not count
    told = {name: facts[name] for name in kept} | {name: facts.get(name, 0) for name in counts}
    return Round(number=facts["round"], **told, **since)


def _answers(path: Path) -> Iterator[Answer]:
    columns = ["prompt", "responses", "rewards", "outcome"]
    for row in pq.read_table(path, columns=columns, filters=[("split", "=", "heldout")]).to_pylist():
        (after, before), (reward_after, reward_before) = row["responses"], row["rewards"]
        yield Answer(row["prompt"], before, after, reward_before, reward_after, row["outcome"])


def summary(run: Run) -> dict[str, Any]:
    """The numbers of a run as `summary.json` holds them; null for what was not measured."""
    final = run.rounds[-1] if run.rounds else None
    spent = dict(final.labels) if final else {"spent": 0, "reused": 0, "evaluation": 0}
    seconds = {phase: final.seconds.get(phase, 0.0) if final else 0.0 for phase in PHASES}
    return {
        "rounds": len(run.rounds),
        "seed": run.seed,
        "reward": {"initial": _known(run.start, "reward"), "final": _known(run.last, "reward")},
        "win_rate": _known(run.last, "win_rate"),
        "ties": _known(run.last, "ties"),
        "labels": spent | {"budget": run.budget},
        "judgements": shares(final.judged.get("run", {}) if final else {}),
        "money": dict(final.money) if final else {},
        "tokens_generated": final.tokens_generated if final else 0,
        "responses": {
            "cut": final.responses_cut if final else 0,
            "empty": final.responses_empty if final else 0,
        },
        "sync_seconds": final.sync_milliseconds / 1000 if final else 0.0,
        "pairs_trained": final.pairs_trained if final else 0,
        "seconds": seconds | {"total": math.fsum(seconds.values())},
    }


def _known(measured: Mapping[str, float], name: str) -> float | None:
    value = measured.get(name)
    return None if value is None or math.isnan(value) else value


def write_summary(run: Run, path: str | Path) -> None:
    """Write `summary.json`."""
    _replace(path, json.dumps(summary(run), indent=2, allow_nan=False) + "\n")


def _replace(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old one or the new one whole, never half of it."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def rounds_table(run: Run) -> list[tuple[str, ...]]:
    """The table of rounds as text, one tuple in the order of `HEADINGS` for the start and for each round."""

    forms = {"reward": ".2f", "win_rate": ".0%", "ties": ".0%", "kl": ".2f", "length": ".1f"}
    counts: tuple[float, ...] = (0, 0, 0)
    stages = [("start", run.start, counts)] if run.start else []
    for played in run.rounds:
        counts = (played.labels["spent"], played.tokens_generated, played.total_seconds)
        stages.append((str(played.number + 1), played.evaluation or {}, counts))
    table = []
    for name, measured, counts in stages:
        shown = [_show(measured.get(key), form) for key, form in forms.items()]
        table.append((name, *shown, *(f"{count:,.0f}" for count in counts)))
    return table


def _show(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)


def _headline(run: Run) -> str:
    rounds = f"{len(run.rounds)} of {run.planned} rounds"
    if not run.evaluated:
        return f"{rounds}, not evaluated"
    reward = " → ".join(_show(measured.get("reward"), ".2f") for measured in (run.start, run.last))
    win_rate = _show(run.last.get("win_rate"), ".0%")
    return f"Held-out reward {reward}, win rate {win_rate} against the start, {rounds}"


def plot(run: Run, path: str | Path) -> None:
    """Draw held-out reward and win rate against labels bought, tokens generated and seconds, as a PNG."""
    _replace(path, _curves(run))


def _curves(run: Run) -> bytes:
    costs: dict[str, list[float]] = {"labels bought": [0], "tokens generated": [0], "seconds": [0]}
    rewards, win_rates = [_drawn(run.start, "reward")], [0.5]  # the start ties with itself
    for played in run.evaluated:
        spent = (played.labels["spent"], played.tokens_generated, played.total_seconds)
        for cost, amount in zip(costs.values(), spent, strict=True):
            cost.append(amount)
        measured = played.evaluation or {}
        rewards.append(_drawn(measured, "reward"))
        win_rates.append(_drawn(measured, "win_rate"))
    return curves(_headline(run), costs, rewards, win_rates)


def _drawn(measured: Mapping[str, float], name: str) -> float:
    value = _known(measured, name)
    return math.nan if value is None else value  # a gap in the curve


def html(run: Run, path: str | Path) -> None:
    """Write the report: one page that needs no other file and no network, whatever the model wrote."""
    content = page(
        title=f"Choosy run {run.folder.resolve().name}",
        headline=_headline(run),
        facts=f"seed {run.seed} · {_labels(run)}",
        links=_left_behind(run),
        png=_curves(run),
        table=[HEADINGS, *rounds_table(run)],
        seconds=_seconds(run),
        answers=[(answer.prompt, *_sides(answer)) for answer in run.answers[:8]],
    )
    _replace(path, content)


def _labels(run: Run) -> str:
    labels = summary(run)["labels"]
    budget = "" if run.budget is None else f" of {run.budget:,}"
    words = [f"{labels['spent']:,}{budget} labels bought", f"{labels['reused']:,} reused"]
    judged = summary(run)["judgements"]
    words += [f"{judged[kind]:,} {kind}" for kind in ("ties", "invalid") if judged[kind]]
    if money := summary(run)["money"].get("spent"):
        words.append(f"{money:,.2f} spent")
    return ", ".join(words)


def _seconds(run: Run) -> dict[str, float]:
    """The seconds of the phases that took any."""
    spent = summary(run)["seconds"]
    return {phase: spent[phase] for phase in PHASES if spent[phase] > 0}


def _sides(answer: Answer) -> tuple[Side, Side]:
    before, after = answer.reward_before, answer.reward_after
    trend = ""
    if before is not None and after is not None and before != after:
        trend = "up" if after > before else "down"
    verdict = {None: "", 0.0: " lost", 0.5: " tied", 1.0: " won"}[answer.outcome]
    return (_show(before, "+.2f"), answer.before, ""), (_show(after, "+.2f") + verdict, answer.after, trend)


def console(run: Run, out: Console | None = None) -> None:
    """Print what a person wants to see when a run ends: answers, rounds, time, and where everything is."""
    out = out or Console(highlight=False)
    width = min(out.width, 132)
    if run.answers:
        out.print(_answers_table(run, width))
    out.print(_rounds_table(run))
    seconds = _seconds(run)
    total = math.fsum(seconds.values())
    out.print(Text.assemble((f"{duration(total)}  ", "bold"), _labels(run)))
    out.print(
        Text.assemble(
            *(("━" * round(s / total * (width - len(seconds))), COLORS[phase]) for phase, s in seconds.items())
        )
    )
    parts = [Text.assemble(("●", COLORS[phase]), f" {phase} {duration(s)}") for phase, s in seconds.items()]
    out.print(Columns(parts, padding=(0, 2)), "")
    out.print(Text.assemble("Left behind in ", (str(run.folder), "bold")), soft_wrap=True)
    for name, what in _left_behind(run).items():
        link = (run.folder / name).resolve().as_uri()  # a click away where the terminal knows links
        out.print(Text.assemble("  ", (f"{name:14}", f"link {link}"), (what, "dim")))


def _left_behind(run: Run) -> dict[str, str]:
    return {name: what for name, what in LEFT_BEHIND.items() if (run.folder / name).exists()}


def _answers_table(run: Run, width: int) -> Table:
    table = Table(title="The same prompts, before and after", box=box.SIMPLE_HEAD, width=width)
    for name, ratio in (("prompt", 3), ("before", 4), ("after", 4)):
        table.add_column(name, ratio=ratio)
    colors = {"up": "green", "down": "red", "": "dim"}
    for answer in run.answers[:5]:
        cells = [
            Text.assemble((reward, colors[trend]), "\n", crop(text, 200)) for reward, text, trend in _sides(answer)
        ]
        table.add_row(Text(crop(answer.prompt, 120), "dim"), *cells, end_section=True)
    return table


def _rounds_table(run: Run) -> Table:
    table = Table(title=_headline(run), box=box.SIMPLE_HEAD, pad_edge=False)
    styles = {"reward": REWARD, "win rate": WIN_RATE}
    for name in HEADINGS:
        table.add_column(name, justify="left" if name == "round" else "right", style=styles.get(name))
    for row in rounds_table(run):
        table.add_row(*row)
    return table


def crop(text: str, length: int) -> str:
    """The beginning of a text on one line, cut between words, free of what could steer a terminal.

    Example:
        >>> crop("The film\\x1b[31m was\\n\\nvery good indeed", 24)
        'The film [31m was very …'
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if len(line) <= length:
        return line
    words, space, _ = line[: length - 1].rpartition(" ")
    return (words if space else line[: length - 2]) + " …"


def index(sweep_dir: str | Path) -> Path:
    """Write `index.csv` for a sweep: a line for each finished run below the folder; returns its path."""
    folder = Path(sweep_dir)
    if not folder.is_dir():
        raise ValueError(f"Wanted the folder of a sweep; there is no folder {folder}.")
    buffer = io.StringIO()
    columns = (
        "job",
        "overrides",
        "reward_initial",
        "reward_final",
        "win_rate",
        "labels",
        "tokens",
        "seconds",
    )
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for path in sorted(folder.rglob("summary.json"), key=lambda found: _by_number(found.parent.name)):
        numbers = json.loads(path.read_text())
        told = path.parent / ".hydra" / "overrides.yaml"
        overrides = " ".join(yaml.safe_load(told.read_text()) or ()) if told.exists() else ""
        cost = (numbers["labels"]["spent"], numbers["tokens_generated"], numbers["seconds"]["total"])
        gain = (*numbers["reward"].values(), numbers["win_rate"])
        writer.writerow((path.parent.relative_to(folder).as_posix(), overrides, *gain, *cost))
    _replace(folder / "index.csv", buffer.getvalue())
    return folder / "index.csv"


def _by_number(name: str) -> tuple[float, str]:
    return (int(name) if name.isdigit() else math.inf, name)
