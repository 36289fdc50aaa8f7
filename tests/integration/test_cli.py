"""`choosy fit` plays what `choosy train` plays, and the other subcommands do what they say."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from programs import Program
from safetensors.torch import load_file
from tiny import MIXTURE, ROOT, WEIGHTED, command, contents, environ, labels, on_top, summary, typed
from torch.testing import assert_close

from choosy import __main__ as command_line
from choosy.main import compose, train


@pytest.fixture
def lines(tmp_path, tiny_policy_dir, prompts_file, monkeypatch) -> list[str]:
    monkeypatch.syspath_prepend(tmp_path)
    return [*typed(tmp_path, tiny_policy_dir, prompts_file), "selector=optune_certainty", "data.responses=3"]


@pytest.fixture
def choosy(monkeypatch) -> Callable[..., None]:
    def call(*words: object) -> None:
        monkeypatch.setattr("sys.argv", ["choosy", *map(str, words)])
        monkeypatch.setattr("sys.path", [*sys.path])
        command_line.main()

    return call


def written(lines: list[str], run_dir: Path) -> Path:
    """run.yaml for `choosy fit`, as `--cfg job --resolve` prints it."""
    path = run_dir.with_suffix(".yaml")
    path.write_text(OmegaConf.to_yaml(compose([*lines, f"run_dir={run_dir}"]), resolve=True))
    return path


def adapter(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


LEARNED = ["learned_reward.embedder=policy", "learned_reward.min_labels=4", "data.responses=3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["selector=optune_certainty"],
        [*WEIGHTED, *MIXTURE],
        ["selector=[predicted_gain,thompson]", "callbacks.predicted_gap.explore=0.5", "reward_gap=predicted", *LEARNED],
        ["selector=d_optimal", *LEARNED],
        ["selector=delta_ucb", "weighting=inverse_gap", *LEARNED],
        ["selector=spread_oversampled", "callbacks.spread.count=2", "pairing=sweet_spot", *LEARNED],
        ["selector=optune", "callbacks.optune.statistic=shrunk", "callbacks.optune.direction=smallest"],
    ],
    ids=" ".join,
)
def test_fit_plays_the_run_that_train_plays(more, lines, choosy, tmp_path):
    lines = on_top([line for line in lines if not line.startswith("selector=")], more)
    one, two = tmp_path / "one", tmp_path / "two"
    train(compose(lines), one)
    choosy("fit", "--config", written(lines, two))
    assert summary(one) == summary(two)
    bought = labels(two / "ledger.sqlite").query("purpose == 'train' and not run.str.contains('#')")  # no part of a sum
    assert summary(two)["labels"]["spent"] == bought["judgements"].sum() > 0
    assert_close(adapter(one), adapter(two), rtol=0, atol=0)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}


@pytest.mark.slow
def test_fit_goes_on_with_a_finished_run_for_more_rounds(lines, choosy, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(compose([*lines, "rounds=3"]), whole)
    config = written(lines, parted)
    choosy("fit", "--config", config)
    more = ("--trainer.max_epochs=3", "--data.init_args.run.init_args.rounds=3")
    choosy("fit", "--config", config, *more, "--ckpt_path=last")
    assert summary(parted) == summary(whole)
    assert_close(adapter(parted), adapter(whole), rtol=0, atol=0)


@pytest.mark.slow
def test_fit_goes_on_from_a_checkpoint_that_is_named(lines, choosy, tmp_path):
    run = tmp_path / "run"
    train(compose([*lines, "rounds=1"]), run)
    choosy("fit", "--config", written(lines, run), f"--ckpt_path={run}/checkpoints/last.ckpt")
    assert summary(run)["rounds"] == 2


def refused(choosy: Callable[..., None], *words: object, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        choosy(*words)


@pytest.mark.slow
def test_fit_refuses_a_used_folder_and_leaves_it_as_it_is(lines, choosy, tmp_path):
    run = tmp_path / "run"
    config = written([*lines, "rounds=1"], run)
    choosy("fit", "--config", config)
    before = contents(run)
    refused(
        choosy, "fit", "--config", config, message="already holds a finished run.*--overwrite=true.*--ckpt_path=last"
    )
    refused(choosy, "fit", "--config", config, "--ckpt_path=no.ckpt", message="ckpt_path=no.ckpt does not exist")
    assert contents(run) == before


@pytest.mark.slow
def test_fit_plays_what_comes_through_a_pipe(lines, choosy, tmp_path):
    receive, send = os.pipe()  # as of `--config <(choosy train ... --cfg job)`
    os.write(send, written([*lines, "rounds=1"], tmp_path / "run").read_bytes())
    os.close(send)
    choosy("fit", "--config", f"/dev/fd/{receive}", "--data.responses=2")
    os.close(receive)
    assert summary(tmp_path / "run")["rounds"] == 1
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["responses"] == 2


def test_fit_has_nothing_to_go_on_with(lines, choosy, tmp_path):
    config = written(lines, tmp_path / "run")
    refused(
        choosy, "fit", "--config", config, "--ckpt_path=last", message="^\n--ckpt_path=last: .* holds no run to resume"
    )
    assert not (tmp_path / "run").exists()


def test_fit_checks_what_is_configured_before_it_builds(lines, choosy, tmp_path):
    wrong = written([*lines, "loss.beta=hot"], tmp_path / "run")
    refused(choosy, "fit", "--config", wrong, message=r"^\nloss.beta wants a number, found 'hot'\.$")
    right = written(lines, tmp_path / "run")
    for word, message in {
        "--lr_scheduler=CosineAnnealingLR": "lr_scheduler is called schedule (constant, linear or cosine) here",
        "--learning_rate=3": "learning_rate is called lr here",
        "--lr=abc": "lr wants a number, found 'abc'",
        "--model.lr=3": "There is no option model.lr. Did you mean lr?",
        "--model.optimizer.lr=abc": "lr wants a number, found 'abc'",
        "--trainer.max_epoch=3": "Did you mean trainer.max_epochs?",
        "--trainer.max_epochs=5": "type --rounds=5",
        "--model.policy.lora.rank=3": "There is no option model.policy.lora.rank",
        "lr=3": "options have dashes here: --lr=3",
    }.items():
        refused(choosy, "fit", "--config", right, word, message=re.escape(message))
    refused(choosy, "fit", message="type --config run.yaml")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resolve", [True, False])
def test_fit_takes_the_menu_s_names_wherever_they_are_read(resolve, lines, choosy, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(OmegaConf.to_yaml(compose([*lines, "rounds=1", f"run_dir={tmp_path}/run"]), resolve=resolve))
    names = [f"--run_dir={tmp_path}/two", "--lr=0.0", "--model.lora.r=4", "--callbacks.optune.fraction", "0.7"]
    choosy("fit", "--config", path, *names)
    assert not (tmp_path / "run").exists()
    assert {"ledger.sqlite", "config.yaml", "adapter", "report.html", "metrics.csv", "tensorboard"} <= {
        path.name for path in (tmp_path / "two").iterdir()
    }
    config = yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())
    assert config["module"]["optimizer"]["lr"] == config["lr"] == 0
    assert config["module"]["policy"]["lora"]["r"] == 4
    assert 0.7 in [callback.get("fraction") for callback in config["trainer"]["callbacks"]]
    more = ["--ckpt_path=last", "--rounds=2"]
    choosy("fit", "--config", path, *names, *more)
    assert summary(tmp_path / "two")["rounds"] == 2
    assert str(tmp_path / "run") not in (tmp_path / "two" / "config.yaml").read_text()


def test_the_config_of_a_resumed_run_plays_again_under_another_name(lines, choosy, tmp_path, monkeypatch):
    """`choosy train` and `choosy fit` write the same file, which says nothing of a resume."""
    monkeypatch.chdir(tmp_path)
    train(compose([*lines, "rounds=1", "name=plum"]), tmp_path / "runs" / "plum")
    composed = (tmp_path / "runs/plum/config.yaml").read_text().partition("\n")[2]
    choosy("fit", "--config", "runs/plum/config.yaml", "--name=pear")
    checksum, _, played = (tmp_path / "runs/pear/config.yaml").read_text().partition("\n")
    assert checksum.startswith("# sha256:")
    assert played == composed.replace("plum", "pear")
    train(compose([*lines, "rounds=2", "name=plum", "ckpt_path=last"]), tmp_path / "runs" / "plum")
    choosy("fit", "--config", "runs/pear/config.yaml", "--rounds=2", "--ckpt_path=last")
    for name in ("plum", "pear"):
        config = yaml.safe_load((tmp_path / "runs" / name / "config.yaml").read_text())
        assert (config["rounds"], config["ckpt_path"], config["overwrite"]) == (2, None, False)
    again = ["--run_dir=runs/fig", "--lr=1e-3", "--seed=5", "--overwrite=true"]
    choosy("fit", "--config", "runs/pear/config.yaml", *again)
    config = yaml.safe_load((tmp_path / "runs/fig/config.yaml").read_text())
    assert config["module"]["seed"] == config["data"]["run"]["seed"] == config["seed"] == 5
    assert config["module"]["optimizer"]["lr"] == 1e-3
    assert config["overwrite"] is False
    assert "runs/pear" not in str(config)
    assert summary(tmp_path / "runs/fig")["seed"] == 5


def test_fit_plays_what_lightning_cli_composed(lines, choosy, tmp_path, capsys):
    config = written([*lines, "rounds=1"], tmp_path / "run")
    with pytest.raises(SystemExit):
        choosy("fit", "--config", config, "--print_config")
    assert not (tmp_path / "run").exists()
    config.write_text(capsys.readouterr().out)
    assert "class_path: choosy.module.WeightedDPO" in config.read_text()
    choosy("fit", "--config", config, "--trainer.callbacks.console=false")
    refused(choosy, "fit", "--config", config, message="already holds a finished run")
    more = ["--trainer.max_epochs=2", "--data.run.rounds=2"]
    refused(choosy, "fit", "--config", config, "--data.run.round=2", message="Did you mean data.run.rounds")
    choosy("fit", "--config", config, *more, "--ckpt_path=last")
    assert summary(tmp_path / "run")["rounds"] == 2
    before = contents(tmp_path / "run")
    words = ["--rounds=1", "--lr=1e-3"]
    choosy("fit", "--config", config, *words, f"--data.run.folder={tmp_path}/two")
    choosy("fit", "--config", tmp_path / "two" / "config.yaml", f"--run_dir={tmp_path}/three", "--seed=7")
    for name in ("two", "three"):
        assert summary(tmp_path / name)["rounds"] == 1
        assert "lr: 0.001" in (tmp_path / name / "config.yaml").read_text()
    assert summary(tmp_path / "three")["seed"] == 7
    assert contents(tmp_path / "run") == before


def test_fit_replaces_a_run_and_a_failed_start_leaves_no_folder(lines, choosy, tmp_path, capsys):
    run = tmp_path / "run"
    config = written([*lines, "rounds=1"], run)
    refused(
        choosy, "fit", "--config", config, "--labeler.path=toy.nosuch", message="toy has no nosuch|names no function"
    )
    refused(choosy, "fit", "--config", config, "--trainer.strategy=nosuch", message="nosuch")
    refused(choosy, "fit", "--config", config, "--trainer.devices=two", message="cannot be built: TypeError: `devices`")
    uniform = "--data.run.weighting.class_path=choosy.methods.weighting.Uniform"
    mine = ["--data.run.labels.labeler.class_path=toy.Longer", uniform]
    sentence = r"^\ndata.run.labels.labeler: Option 'path' is not accepted\.$"
    refused(choosy, "fit", "--config", config, *mine, message=sentence)
    assert not run.exists()
    choosy("fit", "--config", config)
    capsys.readouterr()
    choosy("report", run)
    assert f"  choosy fit --config {run}/config.yaml --rounds=2 --ckpt_path=last  # for more" in capsys.readouterr().out
    choosy("fit", "--config", config, "--ckpt_path=auto")
    assert capsys.readouterr().out.startswith(f"{run} is finished: Held-out reward")
    choosy("fit", "--config", config, "--overwrite=true", "--seed=1")
    assert summary(run)["seed"] == 1
    assert (run / "replaced.1" / "ledger.sqlite").exists()
    refused(choosy, "fit", "--config", config, "--overwrite=true", "--ckpt_path=last", message="type one of them")


@pytest.mark.parametrize("program", ["train.py", "choosy train", "choosy fit"])
def test_classes_and_rewards_in_the_current_folder_are_found_wherever_the_program_is(
    program, tmp_path, tiny_policy_dir, prompts_file
):
    """A sweep, a run and a run of `choosy fit`, without PYTHONPATH."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.py").write_text("import torch\n\nclass Plain(torch.optim.SGD):\n    pass\n")
    own = ["optimizer._target_=mine.Plain", "labeler.path=toy.vowels"]
    words = [*typed(here, tiny_policy_dir, prompts_file), *own, "rounds=1", "data.heldout=null", "seed=3"]
    entry = tmp_path / "choosy"
    entry.write_text("from choosy.__main__ import main\nmain()\n")
    line = {
        "train.py": [ROOT / "train.py", "-m", *words, "hydra.sweep.dir=runs"],
        "choosy train": [entry, "train", *words, "run_dir=runs/0"],
        "choosy fit": [entry, "fit", "--config", "run.yaml", "--run_dir=runs/0"],
    }[program]
    (here / "run.yaml").write_text(OmegaConf.to_yaml(compose(words)))
    (here / "callbacks.py").write_text("raise AssertionError('a module of the user is taken for ours')")
    given = {name: value for name, value in environ(here).items() if name != "PYTHONPATH"}
    run = Program([*map(str, line)], folder=here, environ=given)
    _, said = run.communicate(timeout=300)
    assert run.wait() == 0, said
    assert summary(here / "runs" / "0")["seed"] == 3


@pytest.mark.parametrize("module", ["choosy", "choosy.main", "choosy.cli"])
def test_a_module_that_is_run_by_its_name_works_or_says_what_to_type(module, tmp_path):
    run = command("-m", module, "--help", folder=tmp_path)
    assert re.search("choosy (train|fit)", run.stdout + run.stderr)
    assert run.returncode == (module == "choosy.cli")


def test_report_writes_and_prints_what_a_run_has_shown(lines, choosy, tmp_path, capsys):
    run = tmp_path / "run"
    train(compose([*lines, "rounds=1"]), run)
    page = (run / "report.html").read_text()
    for name in ("report.html", "curves.png"):
        (run / name).unlink()
    choosy("report", run)
    assert (run / "report.html").read_text() == page
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "The same prompts, before and after" in capsys.readouterr().out


@pytest.mark.slow
def test_index_lists_the_runs_below_a_folder(lines, choosy, tmp_path, capsys):
    for seed in (0, 1):
        train(compose([*lines, "rounds=1", f"seed={seed}"]), tmp_path / "sweep" / str(seed))
    choosy("index", tmp_path / "sweep")
    assert "in 2 runs, the best of them" in capsys.readouterr().out
    with (tmp_path / "sweep" / "index.csv").open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["0", "1"]
    for row in rows:
        assert int(row["labels"]) == summary(tmp_path / "sweep" / row["job"])["labels"]["spent"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "^choosy train selector=certainty "),
        (["trian", "seed=1"], r"^There is no choosy trian\. Did you mean choosy train\?$"),
        (["fits", "--config", "x"], r"^There is no choosy fits\. Did you mean choosy fit\?$"),
        (["nonsense"], r"^There is no choosy nonsense\. There are choosy train, fit, .*, labels\.$"),
        (["lr=1", "name=a b"], "^lr=1: first comes a command. Type choosy train lr=1 'name=a b'$"),
        (["--config", "run.yaml"], "^--config: first comes a command, such as choosy train or choosy fit"),
    ],
)
def test_an_unknown_command_is_answered_in_a_sentence(words, message, choosy):
    refused(choosy, *words, message=message)


def test_help_is_the_usage(choosy, capsys):
    choosy("--help")
    assert capsys.readouterr().out.strip() == command_line.USAGE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "choosy train.*selector=certainty.*selector:.*optune.*model.lora.r=16"),
        ("fit", "usage: choosy.*fit.*--config.*--trainer"),
        ("report", "usage: choosy report.*RUN_DIR"),
        ("index", "usage: choosy index.*SWEEP_DIR"),
        ("labels", "usage: choosy labels.*stats"),
        ("labels stats", "usage: choosy labels stats"),
    ],
)
def test_each_subcommand_has_help(words, message, choosy, capsys):
    with suppress(SystemExit):
        choosy(*words.split(), "--help")
    assert re.search(message, capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("word", ["report", "index"])
def test_a_folder_that_is_not_there_is_told_in_a_sentence(word, choosy, tmp_path):
    refused(choosy, word, tmp_path / "nowhere", message="Wanted the folder of a .*nowhere")


@pytest.mark.slow
def test_fit_plays_what_train_composes_and_needs_no_hydra(lines, tmp_path):
    words = [*lines, "rounds=1", f"run_dir={tmp_path}/run", "--cfg", "job", "--resolve"]
    composed = command("-m", "choosy", "train", *words, folder=tmp_path)
    assert composed.returncode == 0, composed.stderr
    (tmp_path / "run.yaml").write_text(composed.stdout)
    program = """
import sys
sys.modules["hydra"] = None
from pathlib import Path
from choosy.cli import fit
from choosy.options.fit_words import read_words, resolved
from choosy.start import prepare
typed = read_words(sys.argv[1:])
config = resolved(typed.config)
fit(typed.words, config, prepare(config, Path(config["run_dir"])))
"""
    played = command("-c", program, "--config", "run.yaml", folder=tmp_path, fresh=True)
    assert played.returncode == 0, played.stderr
    assert summary(tmp_path / "run")["rounds"] == 1


@pytest.mark.slow
def test_train_states_a_mistake_in_a_sentence(lines, tmp_path):
    words = [*lines, "data.responses=0", f"run_dir={tmp_path}/run"]
    run = command(ROOT / "train.py", *words, folder=tmp_path)
    assert run.returncode == 1
    assert run.stderr.strip() == "data.responses wants a number of 1 or more, found 0."
    assert not contents(tmp_path / "run")
