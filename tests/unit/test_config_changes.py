"""What a resumed run may change, and what it may not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from choosy.cli import from_hydra
from choosy.main import compose, plain
from choosy.resume.config_changes import FIXED, OFF, changes, named_settings, report_changes, settings

HYDRA: dict[str, Any] = {
    "seed": 0,
    "lr": 1e-4,
    "run_dir": "runs/a",
    "module": {
        "_target_": "choosy.module.WeightedDPO",
        "policy": {
            "_target_": "choosy.models.policy.Policy",
            "name": "m",
            "lora": {"_target_": "choosy.models.policy.Lora", "r": 16},
        },
        "loss": {"_target_": "choosy.methods.losses.SigmoidLoss", "beta": 0.1},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-4},
    },
    "data": {
        "_target_": "data_modules.on_policy.OnPolicyData",
        "train": "prompts.jsonl",
        "run": {
            "_target_": "choosy.rounds.run.Run",
            "folder": "runs/a",
            "rounds": 2,
            "labels": {
                "_target_": "choosy.labeling.buyer.LabelBuyer",
                "ledger": "runs/a/ledger.sqlite",
                "budget": None,
            },
            "training": {"_target_": "choosy.rounds.training.Training", "batch_size": 4},
        },
    },
    "trainer": {"devices": 1, "max_epochs": 2, "callbacks": [{"_target_": "callbacks.optune.OPTune", "fraction": 0.3}]},
}


def changed(**settings: Any) -> dict[str, Any]:
    """The configuration with some settings, named by dots as double underscores."""
    config = copy.deepcopy(HYDRA)
    for name, value in settings.items():
        *path, last = name.split("__")
        node = config
        for key in path:
            node = node[key]
        node[last] = value
    return config


def test_the_same_configuration_has_no_changes():
    assert changes(HYDRA, copy.deepcopy(HYDRA)) == {}
    assert changes(HYDRA, changed(data__run__sampler={"ahead": 0})) == {}, "one of a version that could not set it"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"module__optimizer__lr": 2e-4}, ["lr: 0.0001 -> 0.0002"]),
        ({"data__run__rounds": 4, "trainer__max_epochs": 4}, ["rounds: 2 -> 4"]),
        ({"trainer__devices": 8}, ["trainer.devices: 1 -> 8"]),
        ({"data__run__labels__budget": 9}, ["labels.budget: not set -> 9"]),
        ({"seed": 1}, ["seed: 0 -> 1"]),
        ({"trainer__callbacks": []}, ["selector: optune -> none"]),
    ],
)
def test_a_change_is_told_in_the_words_of_the_menu(settings, message):
    assert list(changes(HYDRA, changed(**settings)).values()) == message


def cli(words: list[str]) -> dict[str, Any]:
    """The configuration of `choosy train` as LightningCLI has it."""
    return from_hydra(yaml.safe_dump(plain(compose(words))))


@pytest.mark.parametrize("composed", [lambda words: plain(compose(words)), cli], ids=["Hydra", "LightningCLI"])
@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        (["selector=random_pairs", "loss=sigmoid"], ["selector=certainty", "loss=ipo", "lr=1e-3"],
         ["selector: random_pairs -> certainty", "loss: sigmoid -> ipo", "lr: 0.0002 -> 0.001"]),
        (["selector=none"], ["selector=optune_certainty", "callbacks.certainty.fraction=0.3"],
         ["selector: none -> optune_certainty", "callbacks.certainty.fraction: not set -> 0.3"]),
        (["selector=certainty"], ["selector=uncertainty"], ["selector: certainty -> uncertainty"]),
        (["selector=certainty"], ["selector=certainty", "callbacks.certainty.count=3"],
         ["callbacks.certainty.count: not set -> 3"]),
        (["loss=ipo"], ["loss=hinge", "loss.beta=0.3"], ["loss: ipo -> hinge", "loss.beta: 0.1 -> 0.3"]),
        (["trainer=cpu"], ["trainer=cpu", "trainer.devices=2"], ["trainer.devices: 1 -> 2"]),
        (["weighting=wdpo"], ["weighting=wdpo_linear"], ["weighting: wdpo -> wdpo_linear"]),
        (["weighting=uniform"], ["weighting=wdpo_linear"], ["weighting: uniform -> wdpo_linear"]),
        (["loss=ipo"], ["loss=rpo", "loss.parts.sigmoid.beta=0.3"],
         ["loss: ipo -> rpo", "loss.parts.sigmoid.beta: not set -> 0.3"]),
        (["labeler=vader"], ["labeler=function", "labeler.path=a.f"],
         ["labeler: vader -> function", "labeler.path: not set -> 'a.f'"]),
        (["labeler=vader"], ["labeler=mine", "labeler._target_=my.Own"], ["labeler: vader -> my.Own"]),
        ([], ["labeler@labels.evaluation=function", "labels.evaluation.path=a.f"],
         ["labels.evaluation: 'auto' -> function", "labels.evaluation.path: not set -> 'a.f'"]),
        ([], ["logger=wandb"], ["logger: default -> wandb"]),
        ([], ["~callbacks.win_rate"], ["callbacks.win_rate: callbacks.evaluation.WinRate -> not set"]),
    ],
)  # fmt: skip
def test_another_option_of_a_group_is_told_by_its_name(then, now, message, composed):
    always = ["name=one", "run_dir=runs/one"]
    was, is_now = composed([*always, *then]), composed([*always, *now])
    assert list(changes(was, is_now).values()) == message


def test_loggers_have_the_options_by_name():
    shown = named_settings(plain(compose(["selector=optune_certainty", "weighting=wdpo_linear"])))
    expected = {"selector": "optune_certainty", "loss": "sigmoid", "weighting": "wdpo_linear", "lr": 2e-4}
    assert expected.items() <= shown.items()
    assert not [name for name in shown if "_target_" in name]


def test_a_folder_that_was_moved_is_no_change():
    moved = changed(run_dir="runs/b", data__run__folder="runs/b", data__run__labels__ledger="runs/b/ledger.sqlite")
    assert changes(HYDRA, moved) == {}


def test_the_place_of_the_only_class_that_there_is_is_no_change():
    before = changed(data__run__training={"_target_": "choosy.rounds.run.Training", "batch_size": 4})
    assert changes(before, HYDRA) == {}


def test_lightning_cli_and_hydra_write_the_same_configuration():
    def wrapped(node: Any) -> Any:
        if isinstance(node, list):
            return [wrapped(item) for item in node]
        if not isinstance(node, dict):
            return node
        rest = {k: wrapped(v) for k, v in node.items() if k not in ("_target_", "_partial_")}
        if list(node) == ["_target_", "r"]:  # the adapter's settings, which are of the only class there is
            return rest
        return {"class_path": node["_target_"], "init_args": rest} if "_target_" in node else rest

    cli = {"seed_everything": 0, "model": wrapped(HYDRA["module"]), "data": wrapped(HYDRA["data"])}
    cli["trainer"] = wrapped(HYDRA["trainer"]) | {"fast_dev_run": False}  # a default that Hydra's has not
    assert changes(HYDRA, cli) == {}
    assert list(changes(cli, changed(module__policy__lora=None)).values()) == ["model.lora.r: 16 -> not set"]
    assert list(changes(cli, changed(module__optimizer__lr=2e-4)).values()) == ["lr: 0.0001 -> 0.0002"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"module__policy__name": "n"}, "model.name: 'm' -> 'n'"),
        ({"module__policy__lora__r": 8}, "model.lora.r: 16 -> 8"),
        ({"module__policy__lora": None}, "model.lora.r: 16 -> not set"),
        ({"data__run__sampler": {"ahead": 1}}, "sampler.ahead: not set -> 1"),
        ({"data__train": "other.jsonl"}, "data.train: 'prompts.jsonl' -> 'other.jsonl'"),
        ({"module__optimizer___target_": "torch.optim.SGD"}, "optimizer: adamw -> torch.optim.SGD"),
    ],
)
def test_what_a_run_was_made_with_stays(settings, message, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(HYDRA))
    with pytest.raises(
        ValueError, match=rf"cannot be resumed with.*{message}.*Type the old value, or choose another name="
    ):
        report_changes(tmp_path, changed(**settings))


def test_what_may_change_is_said(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(HYDRA))
    report_changes(tmp_path, changed(module__optimizer__lr=2e-4))
    assert "the run is resumed with lr: 0.0001 -> 0.0002" in caplog.text


def test_another_labeler_may_judge_on_another_scale(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(HYDRA))
    report_changes(tmp_path, changed(data__run__labels__labeler={"_target_": "f.Function", "path": "r.f"}))
    assert "Earlier labels and held-out results are the old labeler's, perhaps on another scale" in caplog.text
    caplog.clear()
    report_changes(tmp_path, changed(data__run__labels__labeler={"price": 2.0}))
    assert "labeler.price" in caplog.text
    assert "scale" not in caplog.text


@pytest.mark.parametrize("sampler", ["generate", "vllm"])
def test_a_run_of_a_version_without_an_option_is_not_told_of_its_default(sampler):
    now = plain(compose(["name=one", "run_dir=runs/one", f"sampler={sampler}"]))
    was = copy.deepcopy(now)
    options = was["data"]["run"]["sampler"], was["module"]["policy"]["compute"]
    names = {option.rpartition(".")[2] for option in OFF}
    taken = [part.pop(name) for part in options for name in names & part.keys()]
    assert len(taken) == len(OFF) - (sampler == "generate")
    assert changes(was, now) == {}
    now["data"]["run"]["sampler"]["max_ratio"] = 3.0
    assert changes(was, now) == {"sampler.max_ratio": "sampler.max_ratio: not set -> 3.0"}


def test_a_run_without_its_configuration_is_not_compared(tmp_path):
    report_changes(tmp_path, changed(seed=1))


@pytest.mark.parametrize("data", [[], ["data=offline", "data.train=pairs.jsonl"]], ids=["on_policy", "offline"])
def test_every_setting_has_the_name_that_is_typed_for_it(data):
    composed = plain(compose(data))
    names = settings(composed).keys()
    assert {name for name in FIXED if "*" not in name} - OPTIONAL <= {n.removesuffix("._target_") for n in names}
    assert any(name.startswith("model.lora.") for name in names)
    lists = ("callbacks.", "logger.", "trainer.plugins.")
    typed = sorted((n for n in names if not n.startswith(lists) and not n.endswith("_target_")), reverse=True)
    assert len(typed) > 50
    compose([*data, *(f"{name}=null" for name in typed)])  # Hydra refuses a name that it does not know


OPTIONAL = {"model.revision", "model.adapter", "model.chat_template", "data.heldout", "data.limit"} | {
    "data.heldout_limit",
    "data.shares",
}


def test_the_folder_of_a_moved_run_is_not_sought_within_other_names():
    old, new = (
        {
            "seed": 0,
            "module": {},
            "trainer": {},
            "data": {"train": "/x/my_run_is/a", "run": {"folder": at}, "at": f"{at}/b"},
        }
        for at in ("run", "/x/run")
    )
    assert [*changes(old, new)] == []
