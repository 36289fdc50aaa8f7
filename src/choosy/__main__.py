"""The command `choosy`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name

from choosy.current_folder import see_current_folder
from choosy.early import refuse_early
from choosy.labeling.judge.reachable import refuse_silent_endpoints
from choosy.main import in_sentences
from choosy.main import main as train
from choosy.options.fit_words import HELP, again, read_words, resolved, with_dashes
from choosy.options.names import COMMANDS_OF_OTHERS
from choosy.options.typed import at_home
from choosy.options.words import Words
from choosy.reporting.compare import UnitPrices, compare, print_comparison, write_comparison
from choosy.reporting.curves import write_curves
from choosy.reporting.index import read_index, write_index
from choosy.reporting.report import print_report, write_report
from choosy.reporting.summary import read_run
from choosy.resume.failed_starts import is_first_process, leaving_no_failed_start
from choosy.resume.run_lock import holding
from choosy.resume.slurm import end_with_slurm
from choosy.start import check, is_finished, prepare, without_nulls
from choosy.terminal import exit_with, program_version, say, show_any_letter

USAGE = """choosy train selector=certainty   play a run, with -m several; its --help lists the options
choosy fit --config run.yaml      play what `choosy train ... --cfg job > run.yaml` composed
choosy report RUN_DIR [OTHERS]    write and print the report of a run, finished or not, with the curves of others
choosy index SWEEP_DIR            list the runs of a sweep, with means over seeds and the best: index.csv, index.html
choosy compare SWEEP_DIR          write compare.html, .png and .csv: which arm pays: labels, seconds, tokens, money, KL
choosy evaluate RUN data=FILE     compare the answers of a run, adapter or model with the start's; choosy eval for short
choosy chat RUN                   talk to the tuned model and its start, or to one that choosy merge wrote
choosy merge RUN DIR              write the tuned model as one model, its adapter merged in; --gguf for llama.cpp
choosy push RUN OWNER/NAME        upload the tuned model with its card to the Hugging Face hub
choosy labels stats RUN           labels, ties and money of each labeler and run; also: export, import, check

Each has a --help of its own, such as choosy evaluate --help."""


def main() -> None:
    """Run the command; a mistake that the user can correct ends it with a sentence."""
    see_current_folder()
    show_any_letter()
    words = [at_home(word) for word in sys.argv[1:]]
    if words in (["--help"], ["-h"]):
        say(USAGE)
    elif words == ["--version"]:
        say(program_version())
    elif words[:1] == ["train"]:
        sys.argv = [sys.argv[0], *sys.argv[2:]]  # Hydra reads the words after `train`
        train()
    elif words and words[0] in COMMANDS:
        with in_sentences(lambda: "", with_dashes if words[0] == "fit" else str):
            COMMANDS[words[0]](words[1:])
    elif not words:
        exit_with(USAGE)
    else:
        exit_with(unknown(words))


def unknown(words: list[str]) -> str:
    """Return a sentence on a command that there is not.

    Example:
        >>> print(unknown(["trian", "seed=1"]))
        There is no choosy trian. Did you mean choosy train?
        >>> print(unknown(["export", "runs/demo"]))
        There is no choosy export. Type choosy merge RUN DIR
        >>> print(unknown(["seed=1"]))
        seed=1: first comes a command. Type choosy train seed=1
    """
    name, *_ = words
    if "=" in name and not name.startswith("--"):
        return f"{name}: first comes a command. Type {shlex.join(['choosy', 'train', *words])}"
    if name.startswith("-"):
        return f"{name}: first comes a command, such as choosy train or choosy fit; choosy --help lists them."
    if name in COMMANDS_OF_OTHERS:
        return f"There is no choosy {name}. Type {COMMANDS_OF_OTHERS[name]}"
    near = get_close_matches(name, ["train", *COMMANDS], n=1)
    hint = f"Did you mean choosy {near[0]}?" if near else f"There are choosy train, {', '.join(COMMANDS)}."
    return f"There is no choosy {name}. {hint}"


def fit(words: list[str]) -> None:
    """Train as LightningCLI composes it."""
    if {"-h", "--help"} & {*words}:
        say(HELP)
        return
    end_with_slurm()
    typed = read_words(words)
    if typed.is_composed:
        without_nulls(typed.config)
    config = check(typed.config, lambda: resolved(typed.config), typed.menu)
    run_dir = Path(config["data"]["run"]["folder"])
    if typed.is_composed and config["ckpt_path"] == "auto" and is_finished(config, run_dir):
        if is_first_process():
            say(f"{run_dir} is finished: {read_run(run_dir).headline}")
        return
    in_words = in_sentences(lambda: again(words, str(run_dir)), with_dashes)
    with in_words, holding(run_dir), leaving_no_failed_start(run_dir):
        start = None
        if not any(word.startswith("--print_config") for word in words):
            if typed.is_composed:
                start = prepare(config, run_dir, typed=typed.options)
            else:
                refuse_early(config, typed=typed.options)
                refuse_silent_endpoints(config)
        from choosy.cli import fit

        fit(typed.words, config, start)


def labels(words: list[str]) -> None:
    """Show, export or import labels."""
    from choosy.labeling.exchange.command import labels_command

    labels_command(words)


def use_tuned(command: str) -> Callable[[list[str]], None]:
    """Return a command that uses the tuned model of a run, whose libraries are imported when it is called."""

    return lambda words: resolve_name(USING_TUNED[command])(words)


def report(words: list[str]) -> None:
    """Write and print the report of a run, with the curves of others beside its own."""
    parser = Words(
        "choosy report",
        description="Write and print the report of a run, finished or not. Its page shows the curves and settings of "
        "further runs beside its own.",
    )
    parser.add_argument(
        "run_dirs", metavar="RUN_DIR", nargs="+", help="the folder of a run, with rounds/ in it: the first is reported"
    )
    run, *others = map(read_run, parser.parse_args(words).run_dirs)
    write_curves(run)
    write_report(run, *others)
    print_report(run)


def index(words: list[str]) -> None:
    """Write the index of a sweep."""
    parser = Words(
        "choosy index",
        description="List the finished runs of a sweep, with means over seeds and the best: index.csv and index.html.",
    )
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", help="the folder below which the runs are")
    write_index(found := read_index(parser.parse_args(words).sweep_dir))
    found.print()


def compare_arms(words: list[str]) -> None:
    """Compare the arms of a sweep."""
    parser = Words(
        "choosy compare",
        description="Compare the arms of a sweep over the same seeds, as far as its runs came: choosy train -m "
        "experiment=compare, or choosy train -m selector=random_pairs,predicted_gap seed=0,1,2",
    )
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", help="the folder below which the runs are")
    parser.add_argument("--baseline", help="the arm to compare with (default: the one that chooses at random)")
    parser.add_argument("--label-price", type=float, help="what a label costs you, to compare money as well")
    parser.add_argument("--hour-price", type=float, help="what an hour of the machine costs you")
    typed = parser.parse_args(words)
    priced = typed.label_price is not None or typed.hour_price is not None
    prices = UnitPrices(typed.label_price or 0.0, typed.hour_price or 0.0) if priced else None
    comparison = compare(typed.sweep_dir, baseline=typed.baseline, prices=prices)
    print_comparison(comparison)
    say(write_comparison(comparison, typed.sweep_dir))


USING_TUNED = {  # where each command is
    "evaluate": "choosy.evaluation:evaluate_model",
    "eval": "choosy.evaluation:evaluate_model",
    "chat": "choosy.chat:chat",
    "merge": "choosy.tuned_model:merge",
    "push": "choosy.push:push",
}
COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "fit": fit,
    "report": report,
    "index": index,
    "compare": compare_arms,
    **{command: use_tuned(command) for command in USING_TUNED},
    "labels": labels,
}

if __name__ == "__main__":
    main()
