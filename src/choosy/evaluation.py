"""Evaluates a tuned model without training: its answers to prompts, and how it ranks pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from choosy.capabilities import Results, Tasks, capabilities, refuse_without_harness
from choosy.capabilities import sentences as of_tasks
from choosy.data.heldout import AUTO, heldout_source
from choosy.data.sources import Source, named, refuse_missing_file
from choosy.files import name_of_paths, replacing
from choosy.labeling.protocols import judges_with_policy
from choosy.main import built
from choosy.options.typed import quoted
from choosy.options.words import Words
from choosy.terminal import say
from choosy.tuned_model import TunedModel
from choosy.types import Candidates, Prompt, Response, seed_of

if TYPE_CHECKING:  # functions import torch and transformers once the words of the command are read
    from choosy.labeling.buyer import LabelBuyer
    from choosy.methods.loss_inputs import Loss
    from choosy.models.policy import Policy


class Data(NamedTuple):
    """What to evaluate on, and the most of each; None = not on this, and no limit."""

    prompts: Source | None
    pairs: Source | None
    limit: int | None = None
    tasks: Tasks | None = None


class Seen(NamedTuple):
    """What a policy does with the data: its answers, how likely it finds pairs and another's answers, its results."""

    answers: list[Candidates]
    pairs: list[Candidates]
    pair_logps: list[list[float]]
    other_logps: list[list[float]]
    capabilities: Results


def evaluate_model(words: list[str]) -> None:
    """Evaluate a tuned model on other data, by its own labeler or another."""
    parser = Words(
        "choosy evaluate",
        description="Compare a tuned model with its start, or with another model, on data of yours. What else may be "
        "typed is as for choosy train: data.heldout_pairs=FILE, labeler=judge labeler.model=..., loss=..., seed=1",
    )
    parser.add_argument("model", metavar="MODEL", help="the folder of a run, an adapter or a model, or a hub id")
    parser.add_argument("words", nargs="*", metavar="data=FILE", help="prompts to answer, a file or another source")
    parser.add_argument("--against", metavar="OTHER", help="what to compare with in place of the start: as MODEL")
    parser.add_argument("--limit", type=int, help="the most prompts and the most pairs")
    parser.add_argument("--tasks", metavar="A,B", help="tasks of lm-evaluation-harness, to see what else has changed")
    parser.add_argument("--task-folder", metavar="DIR", help="the tasks' YAML files, if they do not come with it")
    typed = parser.parse_intermixed_args(words)
    if typed.tasks:
        refuse_without_harness()
    options = [*map(as_option, typed.words)]
    options += [] if typed.limit is None else [f"data.heldout_limit={typed.limit}"]
    model = TunedModel.open(typed.model, options)
    of_both = [f"model.dtype={model.tuned['dtype']}", *(word for word in options if word.startswith("model."))]
    other = TunedModel.open(typed.against, of_both) if typed.against else None
    tasks = Tasks(tuple(typed.tasks.split(",")), typed.task_folder, typed.limit) if typed.tasks else None
    data = data_of(model, options, tasks)
    judge = judge_of(model) if data.prompts else None
    from choosy.reporting.display import quiet

    quiet()
    found, rows = Comparison(model, other, data, judge).measure()
    name = stem(data, other)
    if rows:
        write(out := model.folder / f"{name}.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))
    write(summary := model.folder / f"{name}.json", [json.dumps(found, indent=2)])
    for line in sentences(found):
        say(line)
    say(out if rows else summary)


def stem(data: Data, other: TunedModel | None) -> str:
    """Return the name of the files that are written: of the data and the tasks, and of the other model.

    Example:
        >>> stem(Data("prompts/easy.jsonl", None), None), stem(Data(None, ["owner/pairs", "mine.csv"]), None)
        ('prompts-easy', 'owner-pairs+mine.csv')
    """
    given = [source for source in (data.prompts, data.pairs) if source]
    sources = [one for source in given for one in ([source] if isinstance(source, str) else source)]
    tasks = data.tasks.names if data.tasks else ()
    name = name_of_paths(*(one.removesuffix(".jsonl") for one in (*sources, *tasks)))
    return f"{name}-against-{name_of_paths(other.name)}" if other else name


def as_option(word: str) -> str:
    """Return a word of the command as an option of the menu.

    Example:
        >>> as_option("data=my prompts.jsonl"), as_option("prompts.jsonl"), as_option("seed=1")
        ("data.heldout='my prompts.jsonl'", 'data.heldout=prompts.jsonl', 'seed=1')
    """
    name, equals, value = word.partition("=")
    if equals and name != "data":
        return word
    source = value if equals else word
    return f"data.heldout={source if source.startswith('[') else quoted(source)}"


def data_of(model: TunedModel, options: Sequence[str], tasks: Tasks | None) -> Data:
    """Return what to evaluate on: the prompts and pairs that are typed, or else, without tasks, the run's own."""
    own, typed = model.config["data"], [word.partition("=")[0] for word in options]
    names = [name for name in ("heldout", "heldout_pairs") if f"data.{name}" in typed]
    if not names and model.run and not tasks:
        names = ["heldout", "heldout_pairs"]
    prompts, pairs = (own.get(name) if name in names else None for name in ("heldout", "heldout_pairs"))
    if prompts == AUTO:
        prompts = heldout_source(own["train"], AUTO)
    if not (prompts or pairs or tasks):
        raise ValueError(
            f"What {model.name} is evaluated on is to be typed: data=FILE of prompts, data.heldout_pairs=FILE of "
            "labeled pairs, --tasks of lm-evaluation-harness, or several of them."
        )
    for source in filter(None, (prompts, pairs)):
        refuse_missing_file(source)
    is_limited = "data.heldout_limit" in typed or not any(f"data.{name}" in typed for name in names)
    return Data(prompts, pairs, own["heldout_limit"] if is_limited else None, tasks)


def judge_of(model: TunedModel) -> LabelBuyer | None:
    """Return who judges answers, if anybody can; the labels are kept in the run's ledger, or beside what is written."""
    from choosy.resume.run_folder import run_id

    labels: LabelBuyer = built(model.config["labels"])
    labels.check_budget()
    labels.open(f"{run_id(model.run) if model.run else model.folder.name}#eval")
    judge = labels.evaluator
    if judge is None or judge.terms.given_only:
        return None
    if judges_with_policy(judge.labeler):
        raise ValueError(
            f"labeler {judge.labeler.name} judges with the policy while it is trained; type another, such as "
            "labeler=vader, or labels.evaluation=none."
        )
    return judge


class Comparison:
    """Compares a model with another, or with its start: each sees the data, one in memory at a time.

    All answer with the settings and the seeds of the model, and the implicit rewards are those of its loss.
    """

    def __init__(self, model: TunedModel, other: TunedModel | None, data: Data, judge: LabelBuyer | None) -> None:
        self.model, self.other, self.data, self.judge = model, other, data, judge
        self.loss: Loss = built(model.config["module"]["loss"])
        self.prompts: list[Prompt] = []
        is_alone = other is None and model.start is None
        if data.prompts and is_alone and judge is not None and not judge.scores:
            raise ValueError(
                f"labeler {judge.labeler.name} compares, and {model.name} does not say what it was tuned from; type "
                "--against MODEL, or a labeler that scores."
            )
        for one in filter(None, (model, other)):
            if data.pairs and self.needs_start and one.start is None:
                raise ValueError(
                    f"The implicit reward of this loss needs the model that {one.name} was tuned from, and nothing "
                    "names it; type the folder of its run or adapter, or a loss without a reference, as loss=simpo."
                )

    @property
    def needs_start(self) -> bool:
        """Whether the implicit reward is a ratio to the start."""
        return "reference" in self.loss.needs

    def measure(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what was measured, and a row for each prompt."""
        model, other = self.model, self.other
        now = self.see(model.tuned)
        start = self.see_start(model, now) if other is None or self.data.pairs else None
        beside, ranked = start, {"pairs": self.ranking(now, start)}
        if other is not None:
            beside = self.see(other.tuned)
            its_start = self.see_start(other, beside) if self.data.pairs else None
            ranked["pairs_of_other"] = self.ranking(beside, its_start)
        against = other.name if other else "start" if start else None
        about: dict[str, Any] = {
            "model": model.name,
            "against": against,
            "judge": self.judge and self.judge.labeler.name,
        }
        found = about | {name: metrics for name, metrics in ranked.items() if metrics}
        if self.data.tasks:
            theirs = {"other" if other else "start": beside.capabilities} if beside else {}
            found["capabilities"] = theirs | {"tuned": now.capabilities}
        if not self.data.prompts:
            return found, []
        metrics, rows = self.judged(now, beside)
        return found | {"prompts": len(rows), **metrics}, rows

    def see(self, settings: Mapping[str, Any], *, prompts: bool = True, others: Sequence[Candidates] = ()) -> Seen:
        """Load a policy, and let it see the data; without `prompts` only the pairs."""
        policy, config, data = self.model.load(settings), self.model.config, self.data
        reader = built(config["data"]["reader"])
        if data.prompts and not self.prompts:
            self.prompts = reader.prompts(data.prompts, policy, limit=data.limit, judge=self.judge)
            policy.tokens.refuse_long_answers(
                self.prompts,
                config["evaluation"]["sampler"]["max_new_tokens"],
                option="evaluation.sampler.max_new_tokens",
            )
        pairs = self.read_pairs(policy) if data.pairs else []
        answered = answers(self.model, policy, self.prompts) if prompts else []
        can = capabilities(policy, data.tasks, seed=config["seed"]) if prompts and data.tasks else {}
        return Seen(answered, pairs, policy.score(pairs), policy.score(others), can)

    def see_start(self, model: TunedModel, now: Seen) -> Seen | None:
        """See the data with the policy that a model was tuned from; None where nothing names it or needs it."""
        is_beside = self.other is None
        if model.start is None or not (is_beside or self.needs_start):
            return None
        return self.see(model.start, prompts=is_beside, others=now.answers if is_beside else ())

    def read_pairs(self, policy: Policy) -> list[Candidates]:
        """Read the labeled pairs, in tokens of the policy."""
        from choosy.rounds.evaluate import as_pairs

        assert self.data.pairs is not None
        reader = built(self.model.config["data"]["reader"])
        given = reader.candidates(self.data.pairs, policy, limit=self.data.limit, heldout=True)
        return as_pairs(given, named(self.data.pairs))

    def ranking(self, now: Seen, start: Seen | None) -> dict[str, float | None]:
        """Return loss, accuracy and margin on the pairs; empty without pairs."""
        from choosy.parallel.ranks import current_ranks
        from choosy.rounds.evaluate import pair_metrics

        pairs = with_logps(now.pairs, "logp_ref", start.pair_logps) if self.needs_start and start else now.pairs
        return pair_metrics(self.loss, pairs, now.pair_logps, current_ranks()) if pairs else {}

    def judged(self, now: Seen, beside: Seen | None) -> tuple[Mapping[str, float | None], list[dict[str, Any]]]:
        """Judge the answers, each against the other's to the same prompt, if there is another."""
        from choosy.rounds.evaluate import OUTCOME, answer_metrics, evaluate, scored

        names = {1.0: "won", OUTCOME["tie"]: "tied", OUTCOME["second"]: "lost"}
        mine = now.answers
        if beside is None:
            judged = scored(mine, self.judge) if self.judge else mine
            rows = [
                {"prompt": c.prompt.text, "tuned": c.responses[0].text, "reward": c.responses[0].reward} for c in judged
            ]
            return answer_metrics(judged), rows
        if self.other is None:
            mine = with_logps(mine, "logp_ref", beside.other_logps)
        is_policy = self.model.sampler.is_policy
        found = evaluate(mine, {c.prompt.id: c for c in beside.answers}, self.judge, samples_policy=is_policy)
        rows = [
            {
                "prompt": row["prompt"],
                "tuned": row["responses"][0],
                "other" if self.other else "start": row["responses"][1],
            }
            | {"rewards": row["rewards"], "outcome": names.get(row["outcome"])}
            for row in found.rows
        ]
        known = {name: value for name, value in found.metrics.items() if value is not None and not math.isnan(value)}
        return known, rows


def answers(model: TunedModel, policy: Policy, prompts: Sequence[Prompt]) -> list[Candidates]:
    """Sample one answer to each prompt, with the seeds of the model, and score it at temperature 1."""
    ids = [policy.tokens.encode_prompt(prompt) for prompt in prompts]
    seeds = [[seed_of(model.config["seed"], "eval", prompt.id)] for prompt in prompts]
    sampled = model.sampler.sample(policy, ids, seeds)
    found = [Candidates(p, tuple(of_prompt), i) for p, of_prompt, i in zip(prompts, sampled, ids, strict=True)]
    return with_logps(found, "logp", policy.score(found))


def with_logps(
    candidates: Sequence[Candidates], name: Literal["logp", "logp_ref"], logps: Sequence[Sequence[float]]
) -> list[Candidates]:
    """Return the candidates with log-probs of their responses."""

    def of(response: Response, logp: float) -> Response:
        return replace(response, logp=logp) if name == "logp" else replace(response, logp_ref=logp)

    return [replace(c, responses=tuple(map(of, c.responses, of_c))) for c, of_c in zip(candidates, logps, strict=True)]


# -- what is said ----------------------------------------------------------------------------------------------


def sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """Say what was measured: a line on the answers, one for the pairs of each model, and one for each task."""
    beside = "the start" if found["against"] == "start" else found["against"]
    if "prompts" in found:
        parts = [f"{found['prompts']} prompts answered"]
        if found.get("win_rate") is not None:
            parts.append(f"win rate {rate(found, 'win_rate')} against {beside}")
            if found.get("win_rate_lc") is not None:
                parts.append(f"at equal lengths {rate(found, 'win_rate_lc')}")
        if found.get("reward") is not None:
            parts.append(f"mean reward {found['reward']:.3g}")
        if found["judge"] is None:
            parts.append("not judged, as no labeler of sampled answers is known: type one, such as labeler=vader")
        yield ", ".join(parts)
    for key, whose in (("pairs", ""), ("pairs_of_other", f" of {beside}")):
        if metrics := found.get(key):
            loss = "" if metrics["loss"] is None else f"loss {metrics['loss']:.3g}, "
            accuracy, margin = f"accuracy {metrics['accuracy']:.0%}", f"margin {metrics['margin']:.3g}"
            yield f"{metrics['pairs']} pairs{whose}: {loss}{accuracy}, {margin}"

    if can := found.get("capabilities"):
        yield from of_tasks(can, [name for name in can if name != "tuned"])


def rate(found: Mapping[str, float], name: str) -> str:
    """Return a share with its 95 % interval.

    Example:
        >>> rate({"win_rate": 0.75, "win_rate_low": 0.632, "win_rate_high": 0.84}, "win_rate")
        '75% (63% to 84%)'
    """
    return f"{found[name]:.0%} ({found[f'{name}_low']:.0%} to {found[f'{name}_high']:.0%})"


def write(path: Path, lines: Iterable[str]) -> None:
    """Write a file for its owner alone."""
    with replacing(path, private=True) as unfinished:
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
