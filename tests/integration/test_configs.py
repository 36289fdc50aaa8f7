"""Every file of the menu composes, and what it composes is what the constructors ask for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf, open_dict
from tiny import CONF

from choosy import cli, start
from choosy.main import compose, menu, plain, unresolved
from choosy.options.check import blanks


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


RECIPES = sorted((CONF / "experiment").glob("*.yaml"))
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml")))
DATA = {"on_policy": [], "offline": ["data.train=pairs.jsonl"]}
EDITOR = ["editor.model=toy", "editor.base_url=http://localhost:8000/v1"]
LABELER = {
    "function": ["labeler.path=toy.vowels"],
    "reward_model": ["labeler.model=judge"],
    "judge": ["labeler.model=toy", "labeler.base_url=http://localhost:8000/v1"],
    "thumbs_judge": ["labeler.model=toy", "labeler.base_url=http://localhost:8000/v1"],
    "dataset": [],
    "human": [],
    "thumbs_human": [],
    "queue": [],
    "vader": [],
    "relevance": [],
    "cheerful_answer": [],
    "noisy": [],
    "crowd": ["+labeler@labeler.members.one=vader", "+labeler@labeler.members.two=contrastive"],
    "weighted": ["+labeler@labeler.parts.one=vader", "+labeler@labeler.parts.two=dataset"],
    "contrastive": [],
    "predictor": [],
    "mine": ["labeler._target_=choosy.labeling.vader.Vader"],
}


class Parser(Exception):
    """The parser of `choosy fit`, caught before it is used."""


@pytest.fixture(scope="module")
def parse() -> Callable[[Any], Any]:
    """What `choosy fit --config run.yaml` makes of a composed configuration; nothing is built."""

    def caught(self: cli.ChoosyCLI, parser: Any, args: Any) -> None:
        raise Parser(self._subcommand_parsers["fit"])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli.ChoosyCLI, "parse_arguments", caught)
        patched.setattr("sys.argv", ["choosy", "fit"])
        with pytest.raises(Parser) as found:
            cli.fit([], {}, None)
    parser = found.value.args[0]
    parser.exit_on_error = False
    return lambda cfg: parser.parse_string(OmegaConf.to_yaml(cfg, resolve=True))


def check(cfg: Any, parse: Callable[[Any], Any]) -> Any:
    assert "${hydra:" not in OmegaConf.to_yaml(cfg), "the job's configuration must stand without Hydra"
    assert blanks(OmegaConf.to_container(cfg)) == []
    parsed = parse(cfg)
    assert [callback.class_path for callback in parsed.trainer.callbacks] == [
        callback["_target_"] for callback in cfg.callbacks.values()
    ]
    return parsed


def labels_of(parsed: Any) -> Any:
    return parsed.data.init_args.run.init_args.labels.init_args


@pytest.mark.parametrize("selector", options("selector"))
def test_every_selector_composes_with_given_pairs(selector, parse):
    """With sampled responses each plays a run: test_train.py."""
    cfg = compose([f"selector={selector}", "data=offline", *DATA["offline"]])
    assert check(cfg, parse).data.class_path == cfg.data["_target_"]


OTHERS = [(group, name) for group in GROUPS if group not in ("selector", "data", "labeler") for name in options(group)]


@pytest.mark.parametrize(("group", "name"), OTHERS, ids=["=".join(each) for each in OTHERS])
def test_every_other_file_composes(group, name, parse):
    text = (CONF / group / f"{name}.yaml").read_text()
    given = DATA["offline"] if "override /data: offline" in text else []
    given = [*given, *(EDITOR if group == "editor" or "override /editor" in text else [])]
    check(compose([f"{group}={name}", *given]), parse)


@pytest.mark.parametrize("labeler", options("labeler"))
def test_every_labeler_composes_with_the_settings_of_labels(labeler, parse):
    typed = ["labels.budget=500", "labels.ledger=labels.sqlite", "labels.max_invalid=0.1", "labels.evaluation=none"]
    cfg = compose([f"labeler={labeler}", *LABELER[labeler], "labels.budget_money=2.5", *typed])
    labels = labels_of(check(cfg, parse))
    assert labels.labeler.class_path == cfg.labeler["_target_"]
    assert (labels.budget, labels.budget_money, labels.ledger) == (500, 2.5, "labels.sqlite")
    assert (labels.max_invalid, labels.evaluation) == (0.1, "none")


@pytest.mark.parametrize("labeler", options("labeler"))
def test_every_labeler_can_judge_heldout_answers(labeler, parse):
    there = [line.replace("labeler.", "labels.evaluation.", 1) for line in LABELER[labeler]]
    cfg = compose([f"labeler@labels.evaluation={labeler}", *there, "labels.budget=1"])
    labels = labels_of(check(cfg, parse))
    assert labels.evaluation.class_path == compose([f"labeler={labeler}", *LABELER[labeler]]).labeler["_target_"]
    assert labels.labeler.class_path == "choosy.labeling.vader.Vader"


def test_labelers_inside_a_labeler_are_chosen_by_name(parse):
    members = ["+labeler@labeler.members.one=vader", "+labeler@labeler.members.two=contrastive"]
    typed = ["labeler@labeler.expert=vader", "labeler.memory=50", "+labeler.budgets.one=7"]
    crowd = check(
        compose(["labeler=crowd", *members, *typed]), parse
    ).data.init_args.run.init_args.labels.init_args.labeler.init_args
    assert crowd.members["two"].class_path == "choosy.labeling.contrastive.Contrastive"
    assert crowd.expert.class_path == "choosy.labeling.vader.Vader"
    assert dict(crowd.budgets) == {"one": 7}
    for labeler, inner in (("predictor", "paid"), ("noisy", "wrapped")):
        cfg = compose([f"labeler={labeler}", f"labeler@labeler.{inner}=contrastive"])
        outer = labels_of(check(cfg, parse)).labeler.init_args
        assert outer[inner].class_path == "choosy.labeling.contrastive.Contrastive"


def test_the_default_is_what_paid_most_in_the_evidence_and_recipes_say_their_own():
    default = compose([])
    chosen = default.callbacks.random_prompts
    assert (chosen.fraction, chosen.warmup_rounds) == (0.25, 0)
    assert default.pairing == "auto"
    assert default.data.responses == 4
    assert default.run.weighting["_target_"].endswith("Uniform")
    for experiment in ("apl", "optune", "real"):
        given = ["data.train=rows.jsonl", "model.name=some/model"]
        assert "random_prompts" not in compose([f"experiment={experiment}", *given]).callbacks


def test_two_selectors_in_one_line_compose_both():
    assert {"optune", "certainty"} <= compose(["selector=optune_certainty"]).callbacks.keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.beta=hot", ("beta", "float", "hot")),
        ("rounds=many", ("rounds", "int", "many")),
        ("reset_policy=sometimes", ("reset_policy", "each_round", "sometimes")),
        ("callbacks.random_prompts.fraction=much", ("fraction", "float", "much")),
        ("+loss.betta=1", ("betta",)),
    ],
)
def test_a_wrong_type_is_refused_by_words(override, message, parse):
    with pytest.raises(Exception) as refused:  # noqa: PT011  (the words are what matters)
        parse(compose([override]))
    assert all(word in str(refused.value) for word in message), refused.value


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_a_file_says_first_what_it_is_for(path: Path):
    lines = path.read_text().splitlines()
    if lines[0].startswith("# @package"):
        lines = lines[1:]
    assert lines[0].removeprefix("# ").strip("# "), f"{path}: say in the first line what the file is for"
    assert lines[0].startswith("# ")


def test_a_blank_of_the_menu_is_known_to_this_test():
    known = {"data": DATA, "labeler": LABELER, "editor": {"endpoint": EDITOR}}
    for group in GROUPS:
        for name in options(group):
            missing = blanks(OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml")))
            typed = [line for line in known.get(group, {}).get(name, []) if not line.startswith("+")]
            assert len(missing) == len(typed)


def controls() -> list[Any]:
    """Each command that an experiment names as its control."""
    found = [(file.stem, re.search(r"[Ii]ts control: ([^\n,;]*)", file.read_text())) for file in RECIPES]
    return [pytest.param(name, line[1].split(), id=name) for name, line in found if line]


@pytest.mark.parametrize(("experiment", "control"), controls())
def test_the_control_that_an_experiment_names_can_be_typed(experiment: str, control: list[str]) -> None:
    words = [f"experiment={experiment}", *control, "data.train=pairs.jsonl"]
    cfg = compose(words)
    with open_dict(cfg):
        start.without_nulls(cfg)
        start.without_replaced(cfg, words)
    start.check(unresolved(cfg), lambda: plain(cfg), menu())


def test_what_an_experiment_sets_of_a_part_that_was_replaced_is_left_out_and_said(caplog) -> None:
    words = ["experiment=hypo", "loss=sigmoid", "loss.beta=0.2", "data.train=pairs.jsonl"]
    cfg = compose(words)
    with open_dict(cfg):
        start.without_replaced(cfg, words)
    assert dict(cfg.loss) == {
        "_target_": "choosy.methods.losses.SigmoidLoss",
        "beta": 0.2,
        "label_smoothing": 0.0,
    }
    assert "loss=sigmoid takes no parts, shares, which experiment=hypo sets: left out." in caplog.text
