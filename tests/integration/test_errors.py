"""What goes wrong is stated in a sentence, before anything is spent, and costs nothing that was there before."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from tiny import CONF, contents, labels, on_top, summary, typed

from choosy.main import compose, explained, in_sentences, innermost, train
from choosy.sampling.generate import Generate

Refused = Callable[..., str]


@pytest.fixture
def lines(tmp_path, tiny_policy_dir, prompts_file, monkeypatch) -> list[str]:
    monkeypatch.syspath_prepend(tmp_path)
    return typed(tmp_path, tiny_policy_dir, prompts_file)


@pytest.fixture
def refused(lines, tmp_path, monkeypatch) -> Refused:
    """Type a line that is refused: with these words, nothing sampled, no label bought, no round begun."""

    def sample(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("responses were sampled before the mistake was named")

    def check(*overrides: str, message: str, run_dir: Path = tmp_path / "run") -> str:
        with monkeypatch.context() as patched:
            patched.setattr(Generate, "sample", sample)
            with pytest.raises(Exception) as caught:  # noqa: PT011  (its words matter)
                train(compose(on_top(lines, overrides)), run_dir)
        words = str(innermost(caught.value))
        assert re.search(message, words, re.DOTALL), words
        assert labels(run_dir / "ledger.sqlite").empty
        assert not list(run_dir.glob("rounds/*.parquet"))
        return words

    return check


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


# -- the command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["selector", "loss", "weighting", "labeler"])
def test_an_unknown_choice_names_the_choices(group, refused):
    words = refused(f"{group}=nosuch", message=f"There is no {group}=nosuch.*Choices: ")
    assert set(words.removesuffix(".").split("Choices: ")[1].split(", ")) == set(options(group))


def test_a_misspelt_key_is_named(refused):
    refused("rouns=3", message=r"There is no option rouns\. Did you mean rounds\?")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr=nan", "lr wants a finite number, found nan"),
        ("max_grad_norm=-1", "max_grad_norm wants a number of 0 or more, found -1"),
        ("warmup_steps=-1", "warmup_steps wants a number of 0 or more, found -1"),
        ("labels.budget=0", "labels.budget wants a number of 1 or more, found 0"),
        ("data.responses=0", "data.responses wants a number of 1 or more, found 0"),
        (
            "data.responses=1",
            "data.responses=1 gives some .* single response, and loss=sigmoid .*Type loss=kto",
        ),
        ("sampler.temperature=-1", "sampler.temperature wants a number of 0 or more, found -1"),
        ("model.name=/no/such/folder", "there is no folder '/no/such/folder'.*check the path"),
        ("labeler.path=toy.nosuch", "toy.nosuch.*names no function.*PYTHONPATH"),
        ("labeler.path=???", r"labeler.path must be given; type labeler.path=\.\.\."),
        ("loss.beta=0", "loss.beta=0 .*choose beta > 0"),
        ("rounds=0", "rounds wants a number of 1 or more, found 0"),
    ],
)
def test_a_value_that_makes_no_sense(line, message, refused):
    refused(line, message=message)


def test_what_lightning_refuses_is_a_sentence(lines, tmp_path):
    with pytest.raises(InstantiationException) as caught:
        train(compose(on_top(lines, ["trainer.strategy=nosuch"])), tmp_path / "run")
    assert "strategy='nosuch'" in explained(innermost(caught.value))


def test_a_program_that_is_not_installed_is_a_sentence():
    assert explained(ModuleNotFoundError("Requirement 'wandb' not met")) == "Requirement 'wandb' not met"


@pytest.mark.parametrize(
    ("selector", "fraction"), [("optune", "0"), *((selector, "1.5") for selector in options("selector"))]
)
def test_a_share_that_is_none(selector, fraction, refused):
    chooses = [name for name, callback in compose([f"selector={selector}"]).callbacks.items() if "fraction" in callback]
    assert bool(chooses) == (selector != "none")
    for name in chooses:
        message = f"fraction={fraction} is no share of the items; choose 0 < fraction <= 1"
        typed = [f"callbacks.{name}.fraction={fraction}", f"callbacks.{name}.count=null"]
        more = [f"callbacks.{name}.oversample=null"] if "oversample" in selector and name == "random_prompts" else []
        refused(f"selector={selector}", *typed, *more, message=message)


@pytest.mark.parametrize(
    "two",
    [
        ["selector=[certainty,dissimilarity]"],
        ["selector=certainty", "+callbacks.second._target_=callbacks.dissimilarity.Dissimilarity"],
    ],
    ids=["list", "second"],
)
def test_two_selectors_for_one_slot(two, refused):
    refused(
        *two,
        message="selector=certainty and selector=dissimilarity both choose pairs.*selector=optune_certainty",
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refused, tmp_path):
    refused("trainer=gpu", message="trainer.accelerator=gpu, but torch finds no GPU; choose trainer=cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("+labeler.api_key=sk-0123456789", "labeler.api_key holds a secret.*environment variable"),
        ("name=sk-canary-0123", "name holds a secret"),
        ("+labeler.note='${oc.env:JUDGE_API_KEY}'", "labeler.note holds a secret"),
    ],
)
def test_a_key_in_the_configuration(line, message, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-canary-0123")
    words = refused(line, message=message)
    assert "sk-" not in words
    assert not (tmp_path / "run").exists()


def test_a_run_writes_no_key_down(lines, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-canary-0123")
    (tmp_path / "leaking.py").write_text(
        """
from choosy.labeling.protocols import Answer

class Leaking:
    name = "leaking"

    def compare(self, items):
        for at, (_, one, other) in enumerate(items):
            yield Answer(at, "first" if one.text > other.text else "second", raw="by sk-canary-0123", cost=0.25)
"""
    )
    lines[:] = [line for line in lines if not line.startswith("labeler")]
    named = [*lines, "labeler=vader", "labeler._target_=leaking.Leaking", "weighting=uniform", "selector=none"]
    train(compose(named), tmp_path / "run")
    files = contents(tmp_path / "run")
    assert {"config.yaml", "ledger.sqlite", "summary.json", "report.html"} <= files.keys()
    assert not [name for name, content in files.items() if b"canary" in content]
    numbers = summary(tmp_path / "run")
    assert numbers["money"]["spent"] == 0.25 * numbers["labels"]["spent"] > 0
    judged = numbers["judgements"]
    assert judged["decided"] == numbers["labels"]["spent"]
    assert 0 <= judged["first_shown"] <= 1
    assert judged["agreement"] is None or 0 <= judged["agreement"] <= 1
    columns = (tmp_path / "run" / "metrics.csv").read_text().split("\n")[0].split(",")
    assert {"labels/ties", "labels/invalid_rate", "labels/first_shown", "labels/money"} <= set(columns)


def test_an_object_of_the_user_s_that_cannot_be_built(lines, tmp_path):
    (tmp_path / "fragile.py").write_text(
        "class Fragile:\n    def __init__(self, **given):\n        raise OSError('dry')\n"
    )
    where = r"\n  .*fragile\.py, line 3, in __init__\n    raise OSError\('dry'\)$"
    sentence = (
        rf"^\ndata.run.labels.labeler cannot be built: OSError: dry\. HYDRA_FULL_ERROR=1 shows the stack\.{where}"
    )
    with pytest.raises(SystemExit, match=sentence), in_sentences(lambda: ""):
        train(compose([*lines, "labeler._target_=fragile.Fragile"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- the data --------------------------------------------------------------------------------------------------


def test_a_data_file_that_is_not_there(refused):
    refused("data.train=nosuch.jsonl", message=r"No file nosuch.jsonl \(looked in .*\); check the path")


@pytest.mark.parametrize("column", ["train", "heldout"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 3: not JSON.*write one JSON object a line"),
        ('{"topic": "Why?"}', "line 3: no prompt; wanted a column prompt.*found topic"),
        ('{"prompt": 7}', "line 3: prompt must be a string or a list of messages, found int"),
    ],
)
def test_a_malformed_row_names_file_and_line(column, row, message, refused, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "Why tea?"}}\n{{"prompt": "Why rain?"}}\n{row}\n')
    refused(f"data.{column}={path}", message=re.escape(f"{path}, ") + message)


def test_an_empty_data_file(refused, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    refused(f"data.train={tmp_path}/empty.jsonl", message="empty.jsonl has no rows")


def test_prompts_that_are_all_too_long(refused, prompts_file):
    message = f"Longer than data.reader.max_prompt_tokens=3: 8 of the 8 prompts of {prompts_file}; the longest has \\d+"
    refused("data.reader.max_prompt_tokens=3", message=message)


def test_one_prompt_that_is_too_long_and_shall_not_be_dropped(refused, prompts_file):
    long = json.dumps({"id": "long", "prompt": "Why? " * 50})
    prompts_file.write_text(f"{long}\n{prompts_file.read_text()}")
    message = "Longer than data.reader.max_prompt_tokens=100: 1 of the 8 prompts of .*data.reader.too_long=drop"
    refused("data.reader.max_prompt_tokens=100", "data.reader.too_long=error", message=message)


def test_a_chat_for_a_tokenizer_without_a_chat_template(refused, tiny_policy_dir, tmp_path):
    from transformers import AutoTokenizer

    plain = tmp_path / "plain"
    shutil.copytree(tiny_policy_dir, plain, ignore=shutil.ignore_patterns("*.jinja"))
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(plain)
    refused(
        f"model.name={plain}", message="p00 is a conversation.*no chat template.*model.chat_template.*as_chat=false"
    )


# -- parts that do not fit together ----------------------------------------------------------------------------


@pytest.fixture
def only_compares(lines) -> None:
    lines[:] = [line for line in lines if not line.startswith("labeler")]
    lines += ["labeler=vader", "labeler._target_=toy.Longer"]


@pytest.mark.usefixtures("only_compares")
@pytest.mark.parametrize("weighting", [name for name in options("weighting") if name.startswith("wdpo")])
def test_a_reward_gap_of_a_labeler_that_only_compares(weighting, refused):
    refused(
        f"weighting={weighting}", message="labeler longer gives none: it only compares.*weighting=uniform.*labeler="
    )


@pytest.mark.usefixtures("only_compares")
@pytest.mark.parametrize("loss", ["dlma", "pro"])
def test_a_loss_of_the_rewards_of_a_labeler_that_only_compares(loss, refused):
    message = f"loss={loss} needs the rewards .*labeler longer gives none.*loss=sigmoid.*labeler="
    refused(f"loss={loss}", "weighting=uniform", message=message)


@pytest.mark.usefixtures("only_compares")
def test_single_responses_for_a_labeler_that_only_compares(refused):
    message = "data.responses=1 gives some prompts a single response, and labeler longer compares.*labeler="
    refused("loss=kto", "weighting=uniform", "data.responses=1", message=message)


def test_a_reward_gap_of_single_responses(refused):
    message = "a single response, and weighting=wdpo compares .* Type weighting=uniform, or give .* at least two"
    refused("loss=kto", "data.responses=1", "weighting=wdpo", message=message)


def test_pairs_of_single_responses(refused):
    single = ["loss=kto", "data.responses=1", "weighting=uniform"]
    refused(
        *single,
        "selector=certainty",
        message="a single response, and selector=certainty compares .* Type selector=none .*predicted_gap.*, or give",
    )


def test_a_selector_of_data_whose_prompts_have_one_response_or_several(refused, tmp_path):
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}!", "label": n % 2 == 0} for n in range(4)]
    rows += [{"prompt": f"Ask {n}.", "chosen": f"{n}?", "rejected": "No."} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=offline", f"data.train={tmp_path / 'rows.jsonl'}", "data.heldout=null"]
    given = [*data, "loss=kto", "loss.reference_point=zero", "weighting=uniform"]
    for selector in ("random_pairs", "predicted_gap", "certainty"):
        message = f"single response and others several, and selector={selector} would never .* Type selector=none"
        refused(*given, f"selector={selector}", message=message)


def test_own_samples_under_instructions(refused):
    instructions = "{_target_:choosy.models.instructions.Instructions,texts:[Be kind.]}"
    own = ["loss=xpo", "weighting=uniform", f"data.instructions={instructions}"]
    refused(*own, message="needs samples of the policy's own .* data.instructions are of another; choose")


@pytest.mark.parametrize("setting", ["temperature=0.7", "top_p=0.9", "top_k=50"])
def test_own_samples_of_another_distribution(setting, refused):
    message = rf"loss=kto needs samples of the policy's own.*sampler.{setting}.*Choose sampler.temperature=1 .*zero"
    refused("loss=kto", "weighting=uniform", f"sampler.{setting}", message=message)


def test_unpaired_rows(refused, tmp_path):
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}!", "label": n % 2 == 0} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=offline", f"data.train={tmp_path / 'rows.jsonl'}", "data.heldout=null"]
    given = [*data, "weighting=uniform", "selector=none"]
    refused(*given, message="rows.jsonl gives .* single response, and loss=sigmoid compares .* Type loss=kto,")


def test_losses_of_different_forms(refused):
    parts = ["loss=rpo", "+loss.parts.kto._target_=choosy.methods.losses.KTOLoss", "+loss.shares.kto=1.0"]
    refused(*parts, message=r"items of different forms \(pair, single\); add up losses of one form")


@pytest.mark.usefixtures("only_compares")
@pytest.mark.parametrize("selector", ["optune", "optune_certainty", "optune_dissimilarity"])
def test_optune_with_a_labeler_that_only_compares(selector, refused):
    message = "OPTune ranks prompts by .*labeler longer gives none.*selector=certainty, selector=entropy.*labeler=vader"
    refused(f"selector={selector}", "weighting=uniform", message=message)


def test_optune_by_all_rewards_with_a_labeler_that_may_say_nothing(refused):
    message = r"statistic=shrunk counts every reward.*Type callbacks\.optune\.statistic=mean"
    lines = ["labeler=thumbs_human", "labeler.port=0", "labels.evaluation=none", "data.heldout=null"]
    refused(*lines, "selector=optune", "callbacks.optune.statistic=shrunk", message=message)


@pytest.mark.usefixtures("only_compares")
def test_many_responses_without_a_pair_selector_for_a_labeler_that_only_compares(refused):
    message = "longer only compares, and 3 responses.*selector=certainty, or data.responses=2"
    refused("weighting=uniform", "selector=random", "data.responses=3", message=message)


@pytest.mark.usefixtures("only_compares")
@pytest.mark.parametrize("more", [[], ["data.responses=3", "selector=certainty"]], ids=["two", "selected"])
def test_a_labeler_that_only_compares_is_welcome_otherwise(more, lines, tmp_path):
    train(compose([*lines, "weighting=uniform", "selector=none", *more]), tmp_path / "run")
    assert summary(tmp_path / "run")["reward"] == {"initial": None, "final": None}
    assert 0 <= summary(tmp_path / "run")["win_rate"] <= 1
    assert (tmp_path / "run" / "report.html").exists()


def test_a_weight_column_of_fresh_responses(refused):
    refused("weighting=column", message="a weight column in the data.*data=offline, or weighting=uniform")


def test_given_scores_of_fresh_responses(lines, refused):
    lines.remove("labeler.path=toy.vowels")
    refused("labeler=dataset", message="labeler=dataset.*fresh ones.*data=offline")


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Why {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(6)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row | ({"weight": 2.0} if n else {})) + "\n" for n, row in enumerate(rows)))
    return path


def test_a_weight_column_with_a_hole(lines, refused, pairs_file):
    lines.remove("data.limit=8")
    offline = ["data=offline", f"data.train={pairs_file}", "data.heldout=null"]
    refused(*offline, "weighting=column", message="the row of prompt .*pairs.jsonl has no weight; fill")


def test_given_scores_of_heldout_answers(lines, refused, pairs_file):
    lines.remove("labeler.path=toy.vowels")
    refused(
        "data=offline",
        f"data.train={pairs_file}",
        "labeler=dataset",
        message="data.heldout_pairs=.*evaluation=vader",
    )


# -- a labeler that fails --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sick", "why"),
    [
        ("nan_for_chess", "wanted a finite number, 1e15 at most, found nan"),
        ("fails_for_chess", "RuntimeError: the board is broken"),
    ],
)
def test_a_labeler_that_fails_on_a_row_loses_no_label(sick, why, lines, tmp_path):
    run, ledger = tmp_path / "run", tmp_path / "run" / "ledger.sqlite"
    named = [*lines, "labeler.name=toy", "labeler.fingerprint=toy", "selector=none"]
    with pytest.raises(
        ValueError,
        match=rf"(?s)prompt 'p05' \('Tell me about chess\.'\), response 0: .*{why}.*mend the labeler and resume",
    ):
        train(compose([*named, f"labeler.path=toy.{sick}"]), run)
    before = labels(ledger)
    assert len(before) > 0
    assert "p05" not in set(before["prompt_id"])
    train(compose([*named, "ckpt_path=last"]), run)
    after = labels(ledger)
    assert after.merge(before).shape == before.shape, "a label was bought twice or lost"
    assert "p05" in set(after["prompt_id"])
    train(compose(named), tmp_path / "never_sick")
    assert summary(run) == summary(tmp_path / "never_sick")


# -- the folder of the run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "planned"), [("a finished run", 1), ("an unfinished run", 2)])
def test_a_folder_that_holds_a_run(state, planned, lines, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stop = ["+trainer.max_steps=1"] if state == "an unfinished run" else []
    train(compose([*lines, f"rounds={planned}", *stop]), run)
    before = contents(run)
    with pytest.raises(ValueError, match=f"already holds {state}; choose another name=.*ckpt_path=last"):
        train(compose(lines), run)
    with pytest.raises(ValueError, match=r"ckpt_path=no.ckpt does not exist; give a file, or `last`"):
        train(compose([*lines, "ckpt_path=no.ckpt"]), run)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("ckpt_path", "message"),
    [("last", "holds no run to resume; give its name, as in name=demo"), ("no.ckpt", "no.ckpt does not exist")],
)
def test_nothing_to_go_on_with(ckpt_path, message, refused, tmp_path):
    refused(f"ckpt_path={ckpt_path}", message=message)
    assert not (tmp_path / "run").exists()


def test_a_folder_below_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    refused(message="cannot be written to.*choose another run_dir=", run_dir=tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(message="cannot be written to.*choose another run_dir=", run_dir=tmp_path / "locked" / "run")


@pytest.mark.parametrize("number", [0, -1])
def test_a_stream_of_no_prompts(number, refused):
    refused(
        f"data.prompts_per_round={number}",
        message=f"data.prompts_per_round wants a number of 1 or more, found {number}",
    )


def test_no_sample_of_the_policy_s_own(refused):
    refused("data=offline", "data.own_samples=0", message="data.own_samples wants a number of 1 or more, found 0")


def test_asked_scores_that_another_labeler_would_replace(refused):
    score = "data.reader.asked_score={_target_: choosy.data.asked_score.AskedScore, text: 'Score: {score}'}"
    refused("data=offline", score, message="judges them again; type labeler=dataset")


def test_a_failed_start_leaves_no_folder_and_its_name_is_free(lines, tmp_path):
    run = tmp_path / "run"
    run.mkdir()  # as Hydra has made it
    with pytest.raises(InstantiationException, match="names no function"):
        train(compose([*lines, "labeler.path=toy.no_such"]), run)
    assert not run.exists()
    (run / "mine").mkdir(parents=True)
    with pytest.raises(InstantiationException, match="names no function"):
        train(compose([*lines, "labeler.path=toy.no_such"]), run)
    assert [path.name for path in run.iterdir()] == ["mine"], "a folder that held something stays"


def test_a_run_that_failed_in_its_first_round_gives_way_to_another_and_its_labels_stay(lines, tmp_path, caplog):
    run = tmp_path / "run"
    named = [*lines, "labeler.name=toy", "labeler.fingerprint=toy", "selector=none"]
    with pytest.raises(ValueError, match="the board is broken"):
        train(compose([*named, "labeler.path=toy.fails_for_chess"]), run)
    before = labels(run / "ledger.sqlite")
    assert len(before) > 0
    train(compose([*named, "model.lora.r=4"]), run)  # which a resumed run could not change
    assert "held a run that failed before its first round was trained" in caplog.text
    assert labels(run / "ledger.sqlite").merge(before).shape == before.shape, "no label is bought twice"
    with pytest.raises(ValueError, match="already holds a finished run"):
        train(compose(named), run)


def test_overwrite_replaces_a_run_and_keeps_its_labels_aside(lines, tmp_path, tiny_policy_dir):
    run = tmp_path / "run"
    train(compose([*lines, "rounds=2"]), run)
    before = labels(run / "ledger.sqlite")
    with pytest.raises(ValueError, match="overwrite=true replaces the run that ckpt_path=last resumes; type one"):
        train(compose([*lines, "overwrite=true", "ckpt_path=last"]), run)
    everything, broken = contents(run), tmp_path / "broken"
    shutil.copytree(tiny_policy_dir, broken)
    (broken / "model.safetensors").write_text("no weights")
    with pytest.raises(Exception, match=r"(?i)safetensor|header"):
        train(compose([*lines, "overwrite=true", f"model.name={broken}"]), run)
    assert contents(run) == everything, "the old run is lost only to one that runs"
    train(compose([*lines, "rounds=1", "overwrite=true"]), run)
    assert summary(run)["rounds"] == 1
    assert summary(run)["labels"]["reused"] == 0
    assert not (run / "rounds" / "round_001.parquet").exists()
    assert labels(run / "replaced.1" / "ledger.sqlite").equals(before)
    assert {path.name for path in (run / "replaced.1").iterdir()} <= {
        "ledger.sqlite",
        "ledger.sqlite-wal",
        "ledger.sqlite-shm",
    }


def test_fewer_rounds_than_are_played(lines, tmp_path):
    train(compose([*lines, "rounds=2"]), tmp_path / "run")
    with pytest.raises(ValueError, match=r"2 rounds of the run are played, and rounds=1 plans fewer; type rounds=3"):
        train(compose([*lines, "rounds=1", "ckpt_path=last"]), tmp_path / "run")


def test_a_part_that_hydra_builds_is_refused_by_the_key_that_was_typed():
    cfg = compose(
        ["editor=endpoint", "editor.model=m", "editor.base_url=http://me/v1", "editor.endpoint.retries.count=-1"]
    )
    with pytest.raises(InstantiationException) as caught:
        instantiate(cfg.data, _convert_="all")
    assert str(innermost(caught.value)) == "editor.endpoint.retries.count=-1: type 0 or more"
