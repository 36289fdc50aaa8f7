"""Tunes from Python, with objects where the command line takes names."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

from omegaconf import DictConfig, OmegaConf

from choosy.console import hide_progress_bars
from choosy.errors import is_ours, raised_at
from choosy.files import replacing
from choosy.labeling.protocols import Postponed
from choosy.main import SHOWS_STACKS, check, compose, innermost, plain, sentence_on, train
from choosy.models.checksums import write_checksums
from choosy.models.trust import loaded
from choosy.options.menu import menu
from choosy.options.names import OURS
from choosy.options.parts import typed_for
from choosy.options.typed import own_menu, quoted
from choosy.reporting.pages import filled
from choosy.reporting.summary import RunSummary, costs_of, read_run
from choosy.resume.failed_starts import MARK, leaving_no_failed_start
from choosy.resume.run_folder import refuse_used_folder
from choosy.resume.run_lock import holding
from choosy.start import is_finished
from choosy.types import content_id

P = ParamSpec("P")
R = TypeVar("R")
GIVEN = SimpleNamespace()  # the objects of this process that a configuration names
ARGUMENTS = {  # options of the command line that are arguments of `tune`, which takes objects for them
    **{"model.name": "model", "data.train": "prompts", "data.heldout": "heldout", "labeler": "reward"},
    **{"labeler.path": "reward", "labeler=function labeler.path": "reward"},
}


def in_a_sentence(play: Callable[P, R]) -> Callable[P, R]:
    """Raise a mistake that Choosy explains, or one in code of the user's, without the stack of its own functions."""

    @wraps(play)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return play(*args, **kwargs)
        except Exception as error:  # also of the user's own code, which may raise anything
            if SHOWS_STACKS or isinstance(error, Postponed):
                raise
            if isinstance(error, ValueError) and is_ours(error):
                raise error.with_traceback(None) from None
            if not raised_at(error):
                raise
            raise ValueError(sentence_on(error)) from None

    return call


@in_a_sentence
def tune(
    *words: str,
    model: Any = None,
    prompts: Any = None,
    heldout: Any = None,
    reward: Any = None,
    selector: Any = None,
    loss: Any = None,
    weighting: Any = None,
    config_dir: str | Path | None = None,
    **options: Any,
) -> Tuned:
    """Play a run as `choosy train` does, and return what it left.

    Args:
        words: What would be typed: "experiment=optune", "data.responses=4".
        model: A folder or hub id; or a loaded model and its tokenizer, a pair, which is saved into the run's folder; or
            options of the menu's as a dict.
        prompts: A file or another source, as data.train is; or rows: strings, dicts, a `datasets.Dataset`.
        heldout: What to evaluate on, likewise.
        reward: A labeler of the menu; a function, or its name such as "rewards.py:length", or a list of these, which
            labeler={"weights": [1, 0.2]} weighs; or a labeler.
        selector: A selector of the menu, or a callback that chooses prompts or pairs.
        loss: A loss of the menu, a loss, or options of the menu's as a dict, {"beta": 0.2}.
        weighting: A weighting of the menu, a weighting, or options as a dict.
        config_dir: A folder with your own part of the menu, such as selector/mine.yaml.
        options: Any option by its name, of a group as a dict: lr=1e-5, sampler={"max_new_tokens": 64},
            model.chat_template_kwargs as **{"model.chat_template_kwargs": {"enable_thinking": False}}.

    Raises:
        ValueError: Something cannot run; the message says what to give instead.

    Example:
        choosy.tune(prompts=["Tell me about tea."], reward=lambda prompt, response: -len(response), rounds=2)
    """
    refuse_names_of_others(options)
    groups = {name.lstrip("+"): value for name, value in options.items() if isinstance(value, Mapping)}
    parts = {"model": model, "loss": loss, "weighting": weighting}
    groups |= {name: part for name, part in parts.items() if isinstance(part, Mapping)}
    model, loss, weighting = (None if isinstance(part, Mapping) else part for part in parts.values())
    ours = {name: value for name, value in options.items() if name.lstrip("+") not in groups}
    typed = ["callbacks.report.console=false", *words, *as_typed(ours)]
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ValueError(f"config_dir={config_dir}: there is no such folder.")
        typed.append(own_menu(config_dir))
    named = {"model.name": model, "data.train": prompts, "data.heldout": heldout, "loss": loss, "weighting": weighting}
    named["selector"] = selector
    typed += as_typed({name: value for name, value in named.items() if isinstance(value, str)})
    typed += reward_words(reward)
    chooses = None if selector is None or isinstance(selector, str) else selector
    if chooses is not None:
        from lightning.pytorch import Callback

        if not isinstance(chooses, Callback):
            raise ValueError(f"selector={chooses!r:.80}: give a name of the menu, or a callback such as RandomPairs().")
        typed.append("selector=none")
    cfg = compose(typed)
    if chooses is not None:
        put(cfg, "selector", chooses, among="callbacks")
    for name, value in groups.items():  # `check` refuses what is no option
        OmegaConf.update(cfg, name, json.loads(json.dumps(value, default=str)), merge=True, force_add=True)
    run_dir = Path(cfg.run_dir)
    files: dict[Path, str] = {}
    arguments: dict[Path, str] = {}  # whose rows a file holds
    for name, argument, rows in (("train", "prompts", prompts), ("heldout", "heldout", heldout)):
        if rows is not None and not isinstance(rows, str):
            lines = as_lines(rows)
            path = run_dir / "given" / f"{name}-{content_id(lines)[:8]}.jsonl"
            cfg.data[name], files[path], arguments[path] = str(path), lines, argument
    if is_labeler(reward):
        put(cfg, "labeler", reward)
    if loss is not None and not isinstance(loss, str):
        from choosy.methods.loss_inputs import refuse_no_loss

        refuse_no_loss(loss)
        put(cfg, "loss", loss)
    if weighting is not None and not isinstance(weighting, str):
        if lacks := [name for name in ("normalize", "needs", "weigh") if not hasattr(weighting, name)]:
            raise ValueError(
                f"weighting={weighting!r:.80} has no {lacks[0]}, which a weighting has; see CONTRIBUTING.md."
            )
        put(cfg, "weighting", weighting)
    check(cfg, typed)  # before anything is written
    replaced = cfg.overwrite or (run_dir / MARK).exists()
    refuse_used_folder(run_dir, resuming=cfg.ckpt_path is not None or replaced)
    try:
        with holding(run_dir), leaving_no_failed_start(run_dir):
            for path, lines in files.items():
                write(path, lines)
            if model is not None and not isinstance(model, str):
                cfg.model.name = str(save_model(model, run_dir / "given" / "model"))
            if cfg.ckpt_path != "auto" or not is_finished(plain(cfg), run_dir):
                train(cfg, run_dir, typed=typed)
    except Exception as error:
        cause = innermost(error)
        name_arguments(cause, arguments)
        if cause is error:
            raise
        raise cause from None
    return Tuned(run_dir)


@dataclass(frozen=True)
class Tuned:
    """What a run left in its folder, finished or not."""

    folder: Path

    @property
    def run(self) -> RunSummary:
        """What the files of its rounds say."""
        return read_run(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of summary.json."""
        return self.run.numbers()

    def table(self) -> list[dict[str, Any]]:
        """A row for the start and for each round: its held-out evaluation, and what had been spent by then."""
        run = self.run
        first = [{"round": 0, **run.start, "labels": 0, "tokens": 0, "seconds": 0.0}] if run.start else []
        spent = (dict(zip(("labels", "tokens", "seconds"), costs_of(played), strict=True)) for played in run.rounds)
        rows = zip(run.rounds, spent, strict=True)
        return [*first, *({"round": p["round"] + 1, **(p["evaluation"] or {}), **costs} for p, costs in rows)]

    @property
    def curves(self) -> Path:
        """The picture of reward and win rate against labels, tokens and seconds."""
        return self.folder / "curves.png"

    @cached_property
    def policy(self) -> tuple[Any, Any]:
        """The tuned model and its tokenizer, loaded from the folder at first use, ready to generate."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from choosy.tuned_model import TunedModel

        run = TunedModel.open(str(self.folder))
        model = loaded(AutoModelForCausalLM.from_pretrained, run.source, trusted=run.trusted, dtype="auto")
        return model, loaded(AutoTokenizer.from_pretrained, run.source, trusted=run.trusted)

    def _repr_html_(self) -> str:
        """The head of the report, as a notebook shows it."""
        return filled("head.html.j2", run=self.run, headings=self.run.headings, curves=self.curves.read_bytes())


def refuse_names_of_others(options: Mapping[str, Any]) -> None:
    """Refuse what is an argument of `tune` by another name, such as TRL's or the command line's, or with a typo."""
    for name, value in flat(options):
        known_as = OURS.get(name, name)
        is_text = value is None or all(isinstance(one, str) for one in (value if isinstance(value, list) else [value]))
        if (here := ARGUMENTS.get(known_as)) and (name != known_as or not is_text):
            raise ValueError(f"{name} is called {here} here: type choosy.tune({here}=...).")
    ours = [name for name, one in inspect.signature(tune).parameters.items() if one.kind is one.KEYWORD_ONLY]
    known = menu()
    for name in options:
        near = get_close_matches(name, ours, n=1, cutoff=0.75)
        if near and name.lstrip("+").partition(".")[0] not in {*known, *known["defaults"]}:
            raise ValueError(f"choosy.tune has no argument {name}. Did you mean {near[0]}?")


def name_arguments(error: BaseException, arguments: Mapping[Path, str]) -> None:
    """Put the arguments that were given into the message of an error about the files that hold their rows.

    Example:
        >>> error = ValueError("runs/one/given/train-1.jsonl has no rows.")
        >>> name_arguments(error, {Path("runs/one/given/train-1.jsonl"): "prompts"})
        >>> error
        ValueError('prompts has no rows.')
    """
    if isinstance(error, ValueError) and len(error.args) == 1:
        text = str(error)
        for path, argument in arguments.items():
            text = re.sub(rf"(data\.\w+=)?{re.escape(str(path))}", argument, text)
        error.args = (text,)


def flat(options: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its dotted name.

    Example:
        >>> list(flat({"lr": 1e-4, "sampler": {"top_p": 0.9}}))
        [('lr', 0.0001), ('sampler.top_p', 0.9)]
    """
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def as_typed(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield options as they are typed.

    Example:
        >>> list(as_typed({"lr": 1e-4, "model.adapter": "my folder", "labels.budget": None}))
        ['lr=0.0001', "model.adapter='my folder'", 'labels.budget=null']
    """
    return (f"{name}={value_as_typed(value)}" for name, value in options.items())


def value_as_typed(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(value_as_typed, value))}]"
    return quoted(str(value))


def is_labeler(reward: Any) -> bool:
    """Whether this is a labeler, which scores or compares, and no function or name."""
    return hasattr(reward, "score") or hasattr(reward, "compare")


def reward_words(reward: Any) -> list[str]:
    """Return what is typed for a reward; a function goes by its name."""
    if reward is None or is_labeler(reward):
        return []
    if isinstance(reward, str) and not re.search("[:.]", reward):
        return [f"labeler={reward}"]
    several = reward if isinstance(reward, list | tuple) else [reward]
    if not several or not all(isinstance(one, str) or callable(one) for one in several):
        raise ValueError(f"reward={reward!r:.80}: give a function, a list of functions, a labeler, or the name of one.")
    paths, names = [], []
    for place, one in enumerate(several):
        if isinstance(one, str):
            paths.append(one)
            names.append(one)
            continue
        name = re.sub(r"\W", "", getattr(one, "__name__", type(one).__name__)) or "function"
        kept = f"{name}_{place}" if len(several) > 1 else name  # two lambdas have one name
        setattr(GIVEN, kept, one)
        paths.append(f"{__name__}.GIVEN.{kept}")
        names.append(name)
    words = ["labeler=function", f"labeler.path={value_as_typed(paths if len(paths) > 1 else paths[0])}"]
    return words if names == paths else [*words, f"labeler.name={value_as_typed('function:' + '+'.join(names))}"]


def put(cfg: DictConfig, name: str, value: Any, *, among: str = "") -> None:
    """Put an object of this process into a configuration, or among callbacks, by a name that `given` finds again."""
    setattr(GIVEN, name, value)
    shown = typed_for(value).rpartition("=")[2]
    node = {"_target_": f"{__name__}.given", "name": name, "shown": shown}
    OmegaConf.update(cfg, f"{among}.{shown}" if among else name, node, merge=False, force_add=True)


def given(name: str, *, shown: str = "") -> Any:
    """Return an object that was put into a configuration; `shown` is its name there, for readers.

    Raises:
        ValueError: It was put there in another process.
    """
    if not hasattr(GIVEN, name):
        raise ValueError(
            f"The {name} of this run was a Python object; resume the run by choosy.tune with the same one."
        )
    return getattr(GIVEN, name)


def as_lines(rows: Iterable[Any]) -> str:
    """Return prompts, or rows of data, as JSON lines."""
    if isinstance(rows, Mapping) or hasattr(rows, "columns") or not isinstance(rows, Iterable):
        raise ValueError(
            f"Data of Python are a list of prompts or of dicts, found a {type(rows).__name__}; give "
            "frame.to_dict('records') of a table, dataset['train'] of several splits, and a file's path as a str."
        )
    whole = [{"prompt": row} if isinstance(row, str) else row for row in rows]
    if wrong := [row for row in whole if not isinstance(row, Mapping)]:
        raise ValueError(f"A row of the data is {wrong[0]!r:.80}; rows are strings, the prompts, or dicts of columns.")
    try:
        return "".join(f"{json.dumps(dict(row))}\n" for row in whole)
    except TypeError as error:
        raise ValueError(f"A row of the data has a value that JSON has no form for: {error}") from error


def write(path: Path, lines: str) -> None:
    """Write the rows that a run was given into its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, private=True) as unfinished:
        unfinished.write_text(lines, encoding="utf-8")


def save_model(model: Any, folder: Path) -> Path:
    """Save a loaded model and its tokenizer, unless the folder holds those that the run began with."""
    if not (isinstance(model, tuple | list) and len(model) == 2 and all(hasattr(m, "save_pretrained") for m in model)):
        raise ValueError("model wants a folder, a hub id, or a pair: model=(model, tokenizer).")
    if hasattr(model[0], "peft_config"):
        raise ValueError("The given model has an adapter: give model.merge_and_unload(), or a folder as model.adapter.")
    if not folder.exists():
        hide_progress_bars()
        with replacing(folder) as unfinished:
            for part in model:
                part.save_pretrained(unfinished)
            write_checksums(unfinished)
    return folder
