"""Reads what a run has shown from the files of its rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choosy.data.table_files import files_of_rounds, read_about, read_table
from choosy.labeling.statistics import as_money, shares
from choosy.reporting.folders import refuse_sweep
from choosy.sealed import read_json, write_json

MEASURES = {  # of an evaluation: its heading and form
    "reward": ("reward", ".2f"),
    "win_rate": ("win rate", ".0%"),
    "ties": ("ties", ".0%"),
    "kl": ("KL", "z.2f"),  # no -0.00
    "log_ratio": ("log ratio", ".2f"),  # in place of KL, of answers that were not sampled from the policy itself
    "length": ("length", ".1f"),
    "accuracy": ("accuracy", ".0%"),  # of held-out pairs, as the next two
    "loss": ("loss", ".3f"),
    "margin": ("margin", ".3g"),
    "train_loss": ("training loss", ".3f"),  # of the round, shown where nothing was held out
    "train_accuracy": ("training accuracy", ".0%"),  # of items, before the step that trains on them
}
TRAINING = ("train_loss", "train_accuracy")
OF_PAIRS = ("accuracy", "loss", "margin")
OF_JUDGE = (  # what an evaluation measures by the judge's labels
    *("reward", "win_rate", "win_rate_lc", "ties", "invalid", "judged"),
    *(f"{name}_{end}" for name in ("reward", "win_rate", "win_rate_lc") for end in ("low", "high")),
)
COSTS = ("labels", "tokens", "seconds")
LEARNED = ("round", "labels learned from", "new pairs predicted right", "correlation with new scores")
CONTENTS = {  # what a run's folder may hold, as patterns of names
    "report.html": "this run on one page",
    "curves.png": "what was measured against labels, tokens and seconds",
    "summary.json": "the numbers, for tools",
    "rounds": "prompts, responses, rewards, pairs: a Parquet table a round",
    "metrics.csv": "the training metrics, step by step",
    "config.yaml": "the run's whole configuration",
    "adapter": "the tuned adapter in Hugging Face format",
    "model": "the tuned model in Hugging Face format",
    "merged": "the whole model in Hugging Face format, the adapter merged in",
    "gguf": "the whole model as a file for llama.cpp",
    "checkpoints": "to resume from",
    "ledger.sqlite": "every label that was bought; choosy labels reads it",
    "ledger.copy.sqlite": "a copy of it after the last round, in case it is damaged",
    "tensorboard": "the training metrics as curves, for tensorboard --logdir",
    "*.log": "what was logged",
    "replaced.*": "the labels of a run that this one has replaced",
}
FEW = 50  # held-out answers or pairs, below which a figure is said to be rough


@dataclass(frozen=True, slots=True)
class HeldoutAnswer:
    """A held-out prompt as the start policy and the tuned one answer it; outcome 1: the tuned one won."""

    prompt: str
    before: str
    after: str
    reward_before: float | None
    reward_after: float | None
    outcome: float | None

    @property
    def trend(self) -> str:
        """Whether the reward went `up` or `down`; empty if it did neither."""
        before, after = self.reward_before, self.reward_after
        if before is None or after is None or before == after:
            return ""
        return "up" if after > before else "down"

    @property
    def marks(self) -> tuple[str, str]:
        """The reward of each answer, with the judge's verdict on the tuned policy's; empty where there is none."""
        verdict = "" if self.outcome is None else {0.0: "lost", 0.5: "tied", 1.0: "won"}[self.outcome]
        before, after = ("" if x is None else f"{x:+.2f}" for x in (self.reward_before, self.reward_after))
        return before, f"{after} {verdict}".strip()


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What the round files of a run say; their counts, seconds and money are those since the start."""

    folder: Path
    start: Mapping[str, float | None]  # the start policy's evaluation; empty if there was none
    rounds: tuple[Mapping[str, Any], ...]  # what each round's file says of the run
    latest: Mapping[str, Any]  # the last of these; before the first round, what the start's file says
    answers: tuple[HeldoutAnswer, ...]  # of the latest evaluation
    judged_otherwise: tuple[int, ...] = ()  # rounds, by a judge that was changed since

    @property
    def evaluated(self) -> tuple[Mapping[str, Any], ...]:
        """The rounds that were evaluated."""
        return tuple(played for played in self.rounds if played["evaluation"])

    @property
    def finished(self) -> bool:
        """Whether all planned rounds were played, or it stopped early, and the last was evaluated if the start was."""
        if len(self.rounds) < self.latest["rounds"] and not self.stopped_early:
            return False
        return not self.start or bool(self.latest["evaluation"])

    @property
    def stopped_early(self) -> bool:
        """Whether the run ended before its last round, as no round was better, and has played none since."""
        try:
            numbers = read_json(self.folder / "summary.json")
        except (FileNotFoundError, ValueError):  # the run has not ended; a damaged file is written again
            return False
        return numbers.get("stopped_early") is True and numbers.get("rounds") == len(self.rounds)

    @property
    def last(self) -> Mapping[str, float | None]:
        """The latest evaluation; empty if there is none."""
        return self.evaluated[-1]["evaluation"] if self.evaluated else {}

    @property
    def contents(self) -> dict[str, str]:
        """Files and folders of the run, with what they hold: those that are there, and the summary, written last."""
        last = {"summary.json"} if self.finished else set()
        found = {name: {file.name for file in self.folder.glob(name)} | ({name} & last) for name in CONTENTS}
        return {file: what for name, what in CONTENTS.items() for file in sorted(found[name])}

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        rounds = f"{len(self.rounds)} of {self.latest['rounds']} rounds"
        if not self.evaluated:
            found = [f"{MEASURES[name][0]} {course}" for name in TRAINING if (course := self.course(name))]
            return ", ".join([*found, f"{rounds}, not evaluated"]).capitalize()
        of_pairs = {"accuracy": self.of_pairs}
        found = [
            f"{name} {course}{of_pairs.get(name, '')}"
            for name in ("reward", "accuracy")
            if (course := self.course(name))
        ]
        if found:
            found[0] = f"Held-out {found[0]}"
        if (win_rate := self.last.get("win_rate")) is not None:
            found.insert(1, f"win rate {win_rate:.0%} against the start")
        if not found:
            return f"{rounds}, held-out answers not judged"
        return ", ".join([*found, rounds])

    @property
    def measures(self) -> tuple[str, ...]:
        """What some evaluation has measured, in the order of `MEASURES`."""
        looks = self.looks
        return tuple(name for name in MEASURES if any(look.get(name) is not None for look in looks))

    @property
    def looks(self) -> list[Mapping[str, float | None]]:
        """What was measured at the start, if it was, and in each round; the training where nothing was held out."""
        kind = "evaluation" if self.evaluated or self.start else "trained"
        return [*([self.start] if self.start else []), *(played.get(kind) or {} for played in self.rounds)]

    @property
    def stages(self) -> list[tuple[str, Mapping[str, float | None], tuple[int, int, float]]]:
        """The name of each of these, what was measured, and what was spent by then."""
        names = [*(["start"] if self.start else []), *(str(played["round"] + 1) for played in self.rounds)]
        costs = [*([(0, 0, 0.0)] if self.start else []), *map(costs_of, self.rounds)]
        return [*zip(names, self.looks, costs, strict=True)]

    def course(self, name: str) -> str:
        """Return a measure at its first and its latest stage as text; empty if there is none."""
        values = [measured[name] for measured in self.looks if measured.get(name) is not None]
        if not values:
            return ""
        values = [*values[:-1][:1], values[-1]]
        return " → ".join(as_text(value, MEASURES[name][1]) for value in values)

    @property
    def notes(self) -> str:
        """What a reader of the final figures should know, in sentences; empty if there is nothing to say."""
        last, found = self.last, []
        if not self.evaluated and not self.start:
            found.append("Nothing was evaluated: data.heldout=FILE holds prompts out, data.heldout_pairs=FILE pairs.")
        win_rate, pairs = last.get("win_rate"), last.get("pairs")
        if win_rate is not None:
            found.append("In the win rate a tie counts as half a win.")
        if win_rate is not None and (judged := last.get("judged") or FEW) < FEW:
            low, high = (as_text(last.get(f"win_rate_{end}"), ".0%") for end in ("low", "high"))
            found.append(f"It is of {judged:.0f} held-out answers only: its 95 % interval is {low} to {high}.")
        if pairs and pairs < FEW:
            found.append(f"The accuracy is of {pairs:.0f} held-out pairs only, and so a rough one.")
        if any(round(played["evaluation"].get("kl") or 0, 2) < 0 for played in self.evaluated):
            found.append("The KL is estimated from sampled answers: where it is near 0, the estimate may be negative.")
        if (error := last.get("kl_error")) and len(self.answers) < FEW:
            found.append(f"The last KL has a standard error of {error:.2f}.")
        if self.judged_otherwise:
            rounds = ", ".join(str(number + 1) for number in self.judged_otherwise)
            found.append(
                f"The judge of held-out answers was changed after round {self.judged_otherwise[-1] + 1}: the rewards "
                f"and win rates before (round {rounds}) are left out, and the start's answers are judged anew."
            )
        return " ".join(found)

    @property
    def of_pairs(self) -> str:
        """How many held-out pairs the accuracy is of; empty if that is not known."""
        return f" of {self.last['pairs']:,.0f} pairs" if self.last.get("pairs") else ""

    @property
    def bought(self) -> str:
        """What the run did with its labels: those that came with the data are read, all others bought."""
        return "read from the data" if self.latest.get("labels_given") else "bought"

    @property
    def costs(self) -> str:
        """Labels and money spent, in one line."""
        numbers = self.numbers()
        labels, judged = numbers["labels"], numbers["judgements"]
        bought = f"{labels['spent']:,}" + ("" if labels["budget"] is None else f" of {labels['budget']:,}")
        parts = [f"{bought} label{'s' * (bought != '1')} {self.bought}", f"{labels['reused']:,} reused"]
        parts += [f"{n:,} tie{'s' * (n != 1)}" for n in (judged["ties"],) if n]
        parts += [f"{n:,} invalid" for n in (judged["invalid"],) if n]
        money = numbers["money"]
        to_train, to_evaluate = (money.get(purpose) or 0.0 for purpose in ("spent", "evaluation"))
        if to_train or to_evaluate:
            evaluation = f" and {as_money(to_evaluate)} to evaluate" if to_evaluate else ""
            parts.append(f"{as_money(to_train)} spent{evaluation}")
        return ", ".join(parts)

    @property
    def full_costs(self) -> str:
        """What sampling every prompt and labeling all of it would have cost, in one line; empty if this run did so."""
        about, labels = self.latest, self.latest["labels"]
        sampled, full = about.get("responses_sampled"), about.get("full_responses")
        bought = labels["spent"] + labels_reused(about)
        if not sampled or not full or (sampled >= full and bought >= about["full_labels"]):
            return ""
        tokens = about["tokens_generated"] * full / sampled
        return (
            f"All responses to all prompts would have taken {about['full_labels']:,} labels and about {tokens:,.0f} "
            f"tokens; this run took {bought / about['full_labels']:.0%} and {sampled / full:.0%} of them."
        )

    @property
    def spent_on(self) -> tuple[str, ...]:
        """The costs that the run had."""
        spent = zip(COSTS, costs_of(self.latest), strict=True)
        return tuple(cost for cost, amount in spent if amount or cost == "seconds")

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings of the table, without what was never measured or spent."""
        return ("round", *(MEASURES[name][0] for name in self.measures), *self.spent_on)

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of the run as `summary.json` holds them; None for what was not measured."""
        about = self.latest
        return {
            "rounds": len(self.rounds),
            "seed": about["seed"],
            "reward": {"initial": self.start.get("reward"), "final": self.last.get("reward")},
            "win_rate": self.last.get("win_rate"),
            "ties": self.last.get("ties"),
            "heldout_pairs": {
                name: {"initial": self.start.get(name), "final": self.last.get(name)} for name in OF_PAIRS
            },
            "training": about.get("trained") or {},  # means over the last round
            "labels": {**about["labels"], "budget": about["budget"]},
            "judgements": shares(about["judged"]["run"]),
            "money": about["money"],
            "tokens_generated": about["tokens_generated"],
            "responses": {"cut": about["responses_cut"], "empty": about["responses_empty"]},
            "sync_seconds": about["sync_milliseconds"] / 1000,
            "pairs_trained": about["pairs_trained"],
            "seconds": {**about["seconds"], "total": math.fsum(about["seconds"].values())},
        }

    def table(self) -> list[tuple[str, ...]]:
        """Return the table of rounds as text, a row in the order of `headings` for the start and for each round."""
        return [
            (
                name,
                *(as_text(measured.get(key), MEASURES[key][1]) for key in self.measures),
                *(f"{cost:,.0f}" for name, cost in zip(COSTS, costs, strict=True) if name in self.spent_on),
            )
            for name, measured, costs in self.stages
        ]

    def learned_table(self) -> list[tuple[str, ...]]:
        """Return as text what the learned reward knew: a row in the order of `LEARNED` for each round that had one.

        A round's file holds the number of labels that its head was fitted to; how well it predicted the labels bought
        in that round is known, and written, one round later.
        """
        known: list[Mapping[str, float]] = [played.get("learned_reward") or {} for played in self.rounds]
        rows = zip(self.rounds, known, [*known, {}][1:], strict=True)
        return [
            (
                str(played["round"] + 1),
                as_text(now["labels"], ",.0f"),
                as_text(later.get("accuracy"), ".0%"),
                as_text(later.get("correlation"), ".2f"),
            )
            for played, now, later in rows
            if "labels" in now
        ]

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of the phases that took any."""
        return {phase: spent for phase, spent in self.latest["seconds"].items() if spent > 0}


def costs_of(played: Mapping[str, Any], *, without: Sequence[str] = ()) -> tuple[int, int, float]:
    """Return the labels, tokens and seconds that a run had spent after a round, without the seconds of some phases."""
    seconds = math.fsum(spent for phase, spent in played["seconds"].items() if phase not in without)
    return played["labels"]["spent"], played["tokens_generated"], seconds


def labels_reused(played: Mapping[str, Any]) -> int:
    """The labels that others had bought for a run; one of an earlier version has only the number of answers."""
    answers: int = played["labels"]["reused"] * played.get("labels_per_answer", 1)
    return int(played.get("labels_reused", answers))


def read_run(run_dir: str | Path) -> RunSummary:
    """Read a run's folder, finished or not.

    Raises:
        ValueError: The folder holds no round files.
    """
    folder = Path(run_dir)
    files = files_of_rounds(folder / "rounds", "parquet")
    start = folder / "rounds" / "start.parquet"
    if not files and not start.exists():
        if (folder / "rounds").is_dir():
            raise ValueError(f"{folder} is a run that has finished no round yet, so that there is nothing to show.")
        refuse_sweep(folder)
        raise ValueError(f"Wanted the folder of a run, with rounds/round_000.parquet; found none in {folder}.")
    facts = [read_about(path) for path in files]
    first = read_about(start) if start.exists() else {}
    of_pairs = facts[-1].get("start_pairs") or {} if facts else {}
    evaluated = [path for path, about in zip(files, facts, strict=True) if about["evaluation"]]
    answers = tuple(_answers(evaluated[-1])) if evaluated else ()
    judge = next((about["judge"] for about in reversed(facts) if about["evaluation"] and about.get("judge")), "")
    others = [about for about in facts if about["evaluation"] and about.get("judge", judge) != judge]
    for about in others:
        about["evaluation"] = _unjudged(about["evaluation"])
    begun = first.get("evaluation") or {}
    if begun and first.get("judge", judge) != judge:
        again = [answer.reward_before for answer in answers if answer.reward_before is not None]
        begun = {**_unjudged(begun), "reward": statistics.fmean(again) if again else None}
    return RunSummary(
        folder=folder,
        start={**begun, **of_pairs},
        rounds=tuple(facts),
        latest=facts[-1] if facts else first,
        answers=answers,
        judged_otherwise=tuple(about["round"] for about in others),
    )


def _unjudged(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an evaluation has measured without a judge."""
    return {name: value for name, value in evaluation.items() if name not in OF_JUDGE}


def _answers(path: Path) -> Iterator[HeldoutAnswer]:
    columns = ["prompt", "responses", "rewards", "outcome"]
    for row in read_table(path, columns=columns, filters=[("split", "=", "heldout")]).to_pylist():
        (after, before), (reward_after, reward_before) = row["responses"], row["rewards"]
        yield HeldoutAnswer(row["prompt"], before, after, reward_before, reward_after, row["outcome"])


def write_summary(run: RunSummary, path: str | Path, *, stopped_early: bool = False) -> None:
    """Write `summary.json`; it says so where the run was stopped before its last round, as no round was better."""
    write_json(Path(path), run.numbers() | ({"stopped_early": True} if stopped_early or run.stopped_early else {}))


def as_text(value: float | None, form: str) -> str:
    """Return a number as text, and a dash for what was not measured.

    Example:
        >>> as_text(0.25, ".0%"), as_text(None, ".2f")
        ('25%', '–')
    """
    return "–" if value is None else format(value, form)


def as_spread(values: Sequence[float], form: str) -> str:
    """Return the mean of some runs and their standard deviation as text; one run has only its value.

    Example:
        >>> as_spread([0.25, 0.75], ".2f"), as_spread([0.5], ".0%"), as_spread([], ".2f")
        ('0.50 ± 0.35', '50%', '–')
    """
    mean = as_text(statistics.fmean(values) if values else None, form)
    return f"{mean} ± {as_text(statistics.stdev(values), form)}" if len(values) > 1 else mean
