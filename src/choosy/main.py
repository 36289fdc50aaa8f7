"""Trains as Hydra composes it. Besides the sweeper the only file that imports Hydra."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import choosy.start as start
import choosy.sweeper as sweeper
from choosy.current_folder import see_current_folder
from choosy.early import refuse_early
from choosy.errors import Stopped, full_disk, in_a_line, is_ours, name_typed_keys, raised_at
from choosy.options.check import options
from choosy.options.fit_words import PLAY_SEVERAL, START, time_name
from choosy.options.menu import help_text, menu
from choosy.options.typed import (
    NO_GROUP,
    at_home,
    flags_first,
    in_the_shell,
    not_composed,
    own_menu,
    program,
    quoted,
    refuse_dashes,
    unreadable,
)
from choosy.parallel.launch import join_tasks, refuse_relaunching_sweep
from choosy.redaction import refuse_secret_words
from choosy.resume.failed_starts import is_first_process, leaving_no_failed_start
from choosy.resume.run_lock import holding
from choosy.resume.slurm import QueuedAgain, end_with_slurm
from choosy.sealed import write_yaml
from choosy.terminal import exit_with, program_version, say, show_any_letter

# Torch, Lightning and transformers take seconds to import: functions import them once nothing is left to refuse.
if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from choosy.reporting.index import Index


def started(pattern: str) -> str:
    """Name a run by the time at which it started; torchrun's processes agree on it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return time_name(pattern)
    from choosy.parallel.ranks import first_writer

    return first_writer(pattern, time_name(pattern))


def arm(words: list[str]) -> str:
    """Return the name of the folder of a sweep's arm."""
    from choosy.reporting.sweeps import arm_folder

    return arm_folder(words)


OmegaConf.register_new_resolver("started", started, use_cache=True, replace=True)
OmegaConf.register_new_resolver("arm", arm, replace=True)

SWEEPS: dict[str, Index] = {}  # whose jobs this process has played, by their folders
COMMAND = [at_home(word) for word in sys.argv]  # as typed, `choosy train ...` or `python train.py ...`
STACKS = "HYDRA_FULL_ERROR"
PATHS = (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)  # of a path that was typed
BY_SIGNALS = [128 + number for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]  # callbacks/preemption.py
SHOWS_STACKS = os.environ.get(STACKS) == "1"  # of mistakes that a sentence explains


@contextmanager
def in_sentences(again: Callable[[], str], put: Callable[[str], str] = str) -> Iterator[None]:
    """End the process with a sentence where a mistake can be corrected, or with code 75 where the run waits for labels.

    Args:
        again: Returns what to type once the labels are there, or after Ctrl-C or a signal.
        put: Puts the options that a sentence names as the command takes them.
    """
    try:
        yield
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        cause = innermost(error)
        if SHOWS_STACKS or not (sentence := sentence_on(error, put)):
            raise
        resume = f"; type\n  {command}" if isinstance(cause, Stopped) and (command := again()) else ""
        exit_with(f"\n{sentence}{resume}")
    except (KeyboardInterrupt, SystemExit) as stop:
        by_hand = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
        status = stop.code if isinstance(stop, SystemExit) else None
        by_signal = status in BY_SIGNALS and not isinstance(stop, QueuedAgain) and is_first_process()
        if isinstance(status, str) or not ((by_hand or by_signal) and (command := again())):
            raise
        say(f"\nStopped; what was sampled, labeled and trained is kept. To continue type\n  {command}", file=sys.stderr)
        sys.exit(130 if by_hand else status)  # as a shell says of a program that Ctrl-C has ended
    except PATHS as error:
        another = f"{error.filename}: {str(error.strerror).lower()}; type another path." if error.filename else ""
        if SHOWS_STACKS or not (sentence := sentence_on(error, put) or another):
            raise
        exit_with(f"\n{sentence}")
    except Exception as error:  # of a run that has imported its libraries
        from choosy.labeling.protocols import Postponed
        from choosy.parallel.ranks import LOST, is_peer_failure

        if isinstance(error, Postponed):
            say(f"\n{put(str(error))}\n  {again()}", file=sys.stderr)
            sys.exit(Postponed.exit_code)
        if is_peer_failure(error):
            exit_with(f"\n{put(LOST)}")
        if not SHOWS_STACKS and (sentence := full_disk(error, again)):
            exit_with(f"\n{sentence}")
        if SHOWS_STACKS or not (sentence := sentence_on(error, put)):
            raise
        exit_with(f"\n{sentence}")


def main() -> None:
    """Train as the command line says.

    A mistake that the user can correct ends the process with a sentence; HYDRA_FULL_ERROR=1 shows the stack.
    """
    end_with_slurm()
    words = sys.argv[1:] = [at_home(word) for word in sys.argv[1:]]
    see_current_folder()
    show_any_letter()
    with in_sentences(lambda: ""):
        refuse_secret_words(words)
        flags = {flag for action in get_args_parser()._actions for flag in action.option_strings}
        refuse_dashes(words, flags, default_options)
        if "--version" in words:  # which Hydra's parser would answer
            say(program_version())
            return
        words = sys.argv[1:] = flags_first(words, get_args_parser())
        if {"-h", "--help"} & {*words}:
            say(train_help([word for word in words if not word.startswith("-")]))
            return
        clear = any(word.startswith(("-", "name=", "run_dir=", "ckpt_path=")) for word in words)  # -m, or a run's name
        if several := not clear and {*PLAY_SEVERAL} & {*words}:
            raise ValueError(f"{(one := several.pop())} plays many runs: type -m, as in choosy train -m {one} ...")
        sweeper.register()
        os.environ[STACKS] = "1"  # Hydra raises its errors instead of printing them
        try:
            _main()
        finally:
            restore_stacks()
        report_refusal(get_args_parser().parse_args(words))
    for index in SWEEPS.values():
        index.print()


def report_refusal(typed: Namespace) -> None:
    """Say what a run refuses of the configuration that --cfg has printed."""
    if typed.cfg != "job" or typed.multirun:
        return
    folders = [own_menu(typed.config_dir)] if typed.config_dir else []
    GlobalHydra.instance().clear()
    try:
        check(cfg := compose(words := [*folders, *typed.overrides]), words)
        refuse_early(plain(cfg))
    except (ValueError, OmegaConfBaseException) as error:
        say(f"\nA run refuses this configuration: {explained(error)}", file=sys.stderr)


def restore_stacks() -> None:
    """Let Hydra show stacks as the user wants them."""
    if not SHOWS_STACKS:
        os.environ.pop(STACKS, None)


@hydra.main(version_base="1.3", config_path="pkg://choosy.conf", config_name="train")
def _main(cfg: DictConfig) -> float | None:
    """Train as composed and return the objective, for sweepers."""
    from choosy.reporting.summary import read_run

    restore_stacks()
    sys.argv[:] = COMMAND  # Lightning repeats it to start the other processes of a run
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    with in_sentences(lambda: same_again(cfg)):
        without_nulls(cfg)
        if not join_tasks(cfg.get("trainer", {}).get("devices")):
            return None
        if multirun:
            refuse_relaunching_sweep(cfg.trainer)
            if "console" in cfg.callbacks.get("report", {}):
                cfg.callbacks.report.console = False
            if is_first_process():
                say(f"{of_sweep()} in {run_dir}", file=sys.stderr)
        if finished := cfg.ckpt_path == "auto" and start.is_finished(plain(cfg), run_dir):
            if is_first_process():
                say(f"{run_dir} is finished: {read_run(run_dir).headline}")
        elif not train(cfg, run_dir).is_global_zero:
            return None
    if not multirun:  # nothing asks for the objective
        return None
    from choosy.reporting.index import read_index, write_index
    from choosy.rounds.evaluate import objective

    run = read_run(run_dir)
    write_index(index := read_index(HydraConfig.get().sweep.dir))
    SWEEPS[str(index.folder)] = index
    if not finished:
        say(f"{run_dir}: {run.headline}, {run.costs}")
    return objective(cfg, run)


def of_sweep() -> str:
    """Return which job of how many this is, with what differs between them; a launcher or sweeper may not know."""
    hydra_config = HydraConfig.get()
    number, words = f"Run {hydra_config.job.num + 1}", hydra_config.overrides.task
    if not all("hydra._internal" in str(part._target_) for part in (hydra_config.launcher, hydra_config.sweeper)):
        return f"{number}: {' '.join(words)}"
    typed = [word for word in COMMAND if not word.startswith("-") and ("=" in word or word.startswith("~"))]
    given = [f"{name}={values}" for name, values in (hydra_config.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*given, *typed]), None)
    differ = [word for word in jobs[hydra_config.job.num] if not all(word in job for job in jobs)]
    return f"{number} of {len(jobs)}: {' '.join(differ) or ' '.join(words)}"


def train(cfg: DictConfig, run_dir: Path, *, callbacks: Sequence[Callback] = (), typed: Sequence[str] = ()) -> Trainer:
    """Play all rounds of a run, and return the trainer with the tuned module and the data.

    Further callbacks are called before those of the configuration; `typed` is as in `check`.
    """
    with holding(run_dir), leaving_no_failed_start(run_dir):
        return play(cfg, run_dir, callbacks, typed)


def play(cfg: DictConfig, run_dir: Path, callbacks: Sequence[Callback], typed: Sequence[str]) -> Trainer:
    """Build what the configuration names, and play the run."""
    cfg.run_dir = os.path.relpath(run_dir) if run_dir.is_relative_to(Path.cwd()) else str(run_dir)
    words = typed_words() if HydraConfig.initialized() else typed
    check(cfg, words)
    begin = start.prepare(plain(cfg), run_dir, typed=[word.lstrip("+").partition("=")[0] for word in words])
    from lightning.pytorch import seed_everything

    seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data, _convert_="all")
    module = instantiate(cfg.module, _convert_="all")
    trainer: Trainer = instantiate(cfg.trainer, _convert_="all")
    data.run.resuming = begin.resuming
    trainer.callbacks[:0] = callbacks  # type: ignore[attr-defined]  # Lightning sets it elsewhere
    if trainer.is_global_zero:
        start.describe(plain(cfg), trainer, run_dir)
        if HydraConfig.initialized():
            write_yaml(run_dir / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(typed_words(START)))
    trainer.fit(module, datamodule=data, ckpt_path=begin.ckpt_path, weights_only=True)
    return trainer


def built(config: Any) -> Any:
    """Return the object that a part of a run's config.yaml names."""
    return instantiate(config, _convert_="all")


def check(cfg: DictConfig, typed: Sequence[str] = ()) -> None:
    """Refuse what no run can be built from, without a library of training; `typed` = the words, if Hydra has none."""
    without_nulls(cfg, typed)
    start.check(unresolved(cfg), lambda: plain(cfg), menu())


def without_nulls(cfg: DictConfig, typed: Sequence[str] = ()) -> None:
    """Take away the callbacks and loggers that were set to null, and what a class that was typed does not take."""
    with open_dict(cfg):
        start.without_nulls(cfg)
        start.without_replaced(cfg, typed_words() if HydraConfig.initialized() else typed)


def plain(cfg: DictConfig) -> Any:
    """Return the resolved configuration as dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as dicts and lists, with interpolations as they are written."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))


def same_again(cfg: DictConfig) -> str:
    """Return the command that resumes this run."""
    command = [program("choosy"), "train"] if COMMAND[1:2] == ["train"] else [program("python"), COMMAND[0]]
    typed = in_the_shell(typed_words(("name", "run_dir", *START)))
    return shlex.join([*command, *typed, f"run_dir={quoted(cfg.run_dir)}", "ckpt_path=last"])


def typed_words(without: Collection[str] = ()) -> list[str]:
    """Return what was typed for this run, without some options; --config-dir as an option."""
    hydra_config = HydraConfig.get()
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    kept = [word for word in hydra_config.overrides.task if word.lstrip("+").split("=")[0] not in without]
    return [*map(own_menu, folders), *kept]


def innermost(error: BaseException) -> BaseException:
    """Return the error that Hydra wrapped when it built an object; it names the key that was typed."""
    place = re.search("^full_key: (.+)$", str(error), re.MULTILINE)
    while isinstance(error, InstantiationException | ImportError) and error.__cause__ is not None:
        error = error.__cause__
    if place is not None and isinstance(error, ValueError):
        name_typed_keys(error, place[1])
    return error


def sentence_on(error: BaseException, put: Callable[[str], str] = str) -> str:
    """Return a sentence on a mistake that the user can correct, with the line of the user's code that made it, if any.

    Args:
        error: What was raised.
        put: Puts the options that a sentence names as the command takes them.

    Returns:
        The sentence; "" on another error.
    """
    cause = innermost(error)
    if not is_ours(cause) and (place := raised_at(cause)):
        return f"{not_built(error) or in_a_line(cause)}{place}"
    return put(explained(cause) or not_built(error))


def not_built(error: BaseException) -> str:
    """Return a sentence on an object that Hydra could not build; "" for another error."""
    place = re.search("full_key: (.+)", str(error)) if isinstance(error, InstantiationException) else None
    cause = innermost(error)
    return f"{place[1]} cannot be built: {in_a_line(cause)}. {STACKS}=1 shows the stack." if place else ""


# -- what is typed ---------------------------------------------------------------------------------------------


conf = partial(hydra.initialize_config_module, "choosy.conf", version_base="1.3")  # read within a `with` block


def compose(overrides: list[str]) -> Any:
    """Return the configuration that these overrides give, for tools and tests; a ValueError if they cannot be read."""
    with conf():
        try:
            return hydra.compose("train", overrides=[*map(at_home, overrides)])
        except (HydraException, ValueError) as error:
            raise ValueError(explained(error, overrides)) from None


def train_help(overrides: list[str]) -> str:
    """Return the help on `choosy train`, with the options of what these overrides choose."""
    with conf():
        loader = GlobalHydra.instance().config_loader()
        groups = {group: loader.get_group_options(group) for group in loader.list_groups("")}
        cfg = hydra.compose("train", overrides=overrides, return_hydra_config=True)
    config = unresolved(cfg)
    hidden = config.pop("hydra")
    ours = {name: names for name, names in groups.items() if name != "hydra" and names}
    return f"{hidden['help']['header']}\n{help_text(config, hidden['runtime']['choices'], ours)}"


def default_options(words: Sequence[str] = ()) -> list[str]:
    """Return the names of all options, with those of the groups that are chosen."""
    with suppress(HydraException, ValueError):
        GlobalHydra.instance().clear()
        with conf():
            loader = GlobalHydra.instance().config_loader()
            chosen = [word for word in words if word.split("=")[0].split("@")[0] in loader.list_groups("")]
            return [*options(unresolved(hydra.compose("train", overrides=chosen))), *loader.list_groups("")]
    return default_options() if words else []


def explained(error: BaseException, words: Sequence[str] = ()) -> str:
    """Return a sentence on a mistake that the user can correct; "" for another error."""
    words = words or [word for word in sys.argv[1:] if not word.startswith("-")]
    if isinstance(error, OverrideParseException):
        return unreadable(error.override, default_options)
    if isinstance(error, HydraException) or str(error).startswith(NO_GROUP):
        return not_composed(str(error), lambda: default_options(words), words)
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {str(error).splitlines()[0]}." if error.full_key else str(error).splitlines()[0]
    is_lightnings = type(error).__name__ == "MisconfigurationException"  # by its name, without an import of Lightning
    return str(error) if isinstance(error, ValueError | ModuleNotFoundError) or is_lightnings else ""


if __name__ == "__main__":
    main()
