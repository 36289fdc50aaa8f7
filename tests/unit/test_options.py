"""What is typed is checked against the sources of the classes it is for, before torch is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from answers import answers
from hydra.utils import instantiate
from omegaconf import OmegaConf

from choosy.__main__ import COMMANDS
from choosy.main import check, compose, train_help
from choosy.options.absent import refuse_absent, refuse_trainer, sources
from choosy.options.check import options
from choosy.options.menu import menu
from choosy.options.names import CHOICES, COMMANDS_OF_OTHERS, ELSEWHERE, NONE, OURS, WHY_NONE, meant
from choosy.options.parts import typed_for
from choosy.options.signatures import Missing, signature
from choosy.options.typed import at_home, program
from choosy.options.values import wanted
from choosy.version import __version__

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml")))
MENU = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
GIVEN = {
    "data=offline": ["data.train=pairs.jsonl"],
    **{
        f"experiment={path.stem}": ["data.train=pairs.jsonl"]
        for path in (CONF / "experiment").glob("*.yaml")
        if "override /data: offline" in path.read_text()
    },
    "experiment=bmc": ["data.train=pairs.jsonl", "editor.model=toy", "editor.base_url=http://localhost:8000/v1"],
    "editor=endpoint": ["editor.model=toy", "editor.base_url=http://localhost:8000/v1"],
    "labeler=function": ["labeler.path=toy.vowels"],
    "labeler=mine": ["labeler._target_=choosy.labeling.vader.Vader"],
    "labeler=reward_model": ["labeler.model=judge"],
    "labeler=judge": ["labeler.model=toy", "labeler.base_url=http://localhost:8000/v1"],
    "labeler=thumbs_judge": ["labeler.model=toy", "labeler.base_url=http://localhost:8000/v1"],
    "labeler=weighted": ["+labeler@labeler.parts.one=vader", "+labeler@labeler.parts.two=contrastive"],
    "labeler=crowd": ["+labeler@labeler.members.one=vader", "+labeler@labeler.members.two=contrastive"],
}

TYPED = {  # what is typed: what the sentence says
    "--help": "model.lora.r=16",
    "data.limt=8": "no option data.limt. Did you mean data.limit?",
    "+data.limt=8": "no option data.limt. Did you mean data.limit?",
    "model.lora.target_modules=[q_proj]": "target_modules is called model.lora.targets here",
    "learning_rate=1e-4": "learning_rate is called lr here: type lr=1e-4.",
    "loss_type=ipo": "loss_type is called loss here: type loss=ipo.",
    "+loss_type=dpo": "loss_type is called loss here: type loss=sigmoid.",
    "reward_funcs=rewards.py:f": "reward_funcs is called labeler=function labeler.path here: type labeler=function "
    "labeler.path=rewards.py:f.",
    "fp16=true": "Choosy has no fp16: type model.dtype=bfloat16, or model.dtype=float32.",
    "bf16=true": "bf16 is called model.dtype=bfloat16 here.",
    "use_wandb=true": "use_wandb is called logger here.",
    "--loss_type=ipo": "type loss=ipo",
    "trainer.accumulate_grad_batches=2": "batching.batch_size counts the items of one optimiser step",
    "+trainer.gradient_clip_val=1.0": "Type max_grad_norm=",
    "+trainer.precision=bf16-mixed": "Type model.dtype=bfloat16 or model.dtype=float32",
    "++trainer.max_epochs=2": "type rounds=2",
    "optimizer=adafactor": "optimizer._target_=torch.optim.NAME. Choices: adam, adamw, adamw_8bit, muon, rmsprop.",
    "model=/some/folder": "A model of yours goes by model.name=FOLDER",
    "selector=certanty": "Did you mean certainty?",
    "loss=dpo": "There is no loss=dpo. For dpo type loss=sigmoid. Choices: ada_dpo",
    "trainer=deepspeed": "There is no trainer=deepspeed. For deepspeed type trainer=fsdp. Choices: auto, cpu",
    "loss=grpo": "Choosy learns from preferences and has no policy gradient",
    "labeler=gpt-4o": "For gpt-4o type labeler=judge.",
    "+warmup_ratio=0.1": "warmup_ratio is called warmup_steps here: type warmup_steps=0.1.",
    "+num_train_epochs=3": "called rounds (of fresh responses) or epochs_per_round (over the pairs of a round) here",
    "lr=abc": "lr wants a number, found 'abc'.",
    "logger=null": "logger=null names no choice of a group; type selector=none, weighting=uniform, labels.",
    "experiment=bmc editor=null": "editor=null names no choice of a group; type",
    "overwrite=flase": "overwrite wants true or false, found 'flase'.",
    "lr=nan": "lr wants a finite number, found nan.",
    "seed=-1": "seed wants a number of 0 or more, found -1.",
    "rounds=-3": "rounds wants a number of 1 or more, found -3.",
    "selecter=random": "Did you mean selector?",
    "run_dir=/dev/null": "/dev/null: file exists; type another path.",
    "rounds=2.5": "rounds wants a whole number",
    "reference=frist": "reference wants initial or previous_round or a number, found 'frist'.",
    "model.lora=16": "model.lora wants settings or null, found 16.",
    "seed=null": "seed wants a whole number, found null.",
    "model.dtype=float16": "model.dtype wants auto or bfloat16 or float32 or nf4, found 'float16'.",
    "~trainer": "A run needs trainer; leave out ~trainer.",
    "~nothing": "There is no option nothing.",
    "+lr_scheduler=cosine": "lr_scheduler is called",
    "lr_scheduler_type=cosine_with_restarts": "is called schedule (constant, linear or cosine) here.",
    "--config-dir=tinny": "tinny: there is no such folder; did you mean",
    "--config-dir=nosuch": "nosuch: there is no such folder; check the path.",
    "--config-name=mine": "files of yours go by --config-dir FOLDER.",
    "--config-path=mine": "files of yours go by --config-dir FOLDER.",
    "+pool.size=3": "There is no option pool.size.",
    "labeler._target_=no_such_module.Reward": "names no class: there is no no_such_module.",
    "selector=certainty callbacks.certainty._target_=callbacks.certainty.Certanity": "Did you mean callbacks.",
    "name=one,two": "\"name='one,two'\"",
    "name=lr=1e-4": "\"name='lr=1e-4'\"",
    "ckpt_path=runs/epoch=3.ckpt": "\"ckpt_path='runs/epoch=3.ckpt'\"",
    "lr": "lr has no value: an option is typed as NAME=VALUE. Type lr=...",
    "--lr=1e-4": "options have no dashes here: type lr=1e-4.",
    "--learning_rate 1e-4": "options have no dashes here: learning_rate is called lr here: type lr=1e-4.",
    "--num_generations=4 --max_completion_length 64": "type data.responses=4.\n--max_completion_length: options",
    "max_completion_length=20 num_generations=4": "here: type data.responses=4.",
    "prompts.csv": "prompts.csv has no value: an option is typed as NAME=VALUE. Type data.train=prompts.csv.",
    "trained": "Type model.name=trained.",
    "lr=1e-4 -m rounds=2,3 loss.bta=0.1": "no option loss.bta. Did you mean loss.beta?",
    "run_dir=${nme}": "Interpolation key 'nme' not found",
    "labeler.function=f.py:f": "function is called labeler=function labeler.path here: type labeler=function labeler.",
    "labeler.path=f.py:f": "There is no option labeler.path: it belongs to labeler=function.",
    "+labeler.weights=[1]": "it belongs to labeler=cheerful_answer, labeler=contrastive, labeler=function or "
    "labeler=weighted.",
    "callbacks.d_optimal.fraction=0.5": "it belongs to selector=d_optimal.",
    "optimizer._target_=torch.optim.Adafactor lr=abc": "lr wants a number, found 'abc'.",  # it takes no optimizer.fused
    "labeler=function labeler._target_=mine.Lists lr=abc": "lr wants a number, found 'abc'.",  # nor this a path
    "labeler=function labeler._target_=mine.Lists labeler.price=1": "There is no option labeler.price: it belongs to",
    "labeler=function labeler.path=null": "labeler.path wants text or a list, found null.",
    "~data data.train=rows.jsonl": "~data takes data away, and data.train is typed too; leave out one of them.",
    "labeler=judge": "labeler.model and labeler.base_url must be given",
    "model.name=demo:smollm2 data.train=promts.csv": "; did you mean prompts.csv?",
    "model.name=demo:smollm2 data.train=nosuch.csv": "; check the path.",
    "model.name=tinny": "There is no folder tinny (looked in",
    "model.name=nosuch": "none has a name like it), and nosuch is no hub id, which has an owner",
    "model.name=./tinny": "; did you mean tiny?",
    "model.name=demo:smollm2 logger=wandb": "WandbLogger needs the package wandb: pip install 'choosy-tuning[wandb]'",
    "model.name=demo:smollm2 labeler=function labeler.path=mine.py:keyword": "mine.py has no keyword; did you mean "
    "keywords?",
    "model.name=demo:smollm2 labeler=function labeler.path=[mine.py:keywords,mine.kyword]": "did you mean",
    "model.name=demo:smollm2 labeler=function labeler.path=mien.py:f": "did you mean mine.py?",
    "model.name=demo:smollm2 trainer.strategy=nosuch": "is none of Lightning's; type trainer=ddp or trainer=fsdp",
    "model.name=demo:smollm2 trainer.accelerator=tpu": "trainer.accelerator=tpu is none of auto, cpu, gpu, cuda, mps.",
    "model.name=/no/such/folder": "there is no folder '/no/such/folder'",
    "model.name=owner/name": "its files are not in the cache, and HF_HUB_OFFLINE keeps the Hugging Face hub from being",
    "model.name=demo:smollm2 labeler=reward_model labeler.model=/no/such": "there is no folder '/no/such'",
    "model.name=demo:smollm2 labeler=reward_model labeler.model=owner/rm": "owner/rm does not load",
    "model.name=demo:smollm2 learned_reward.embedder=lm:owner/embedder": "owner/embedder does not load",
}


def test_help_and_typos_are_answered_in_a_sentence_without_torch(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "adapter_config.json").touch()
    (tmp_path / "prompts.csv").write_text("prompt\nWhy?\n")
    (tmp_path / "mine.py").write_text("import torch\nkeywords = [len][0]\nclass Lists: name = 'lists'\n")
    found = answers([f"train {typed}" for typed in TYPED], tmp_path)
    for typed, words in TYPED.items():
        said = found["said"][f"train {typed}"]
        assert words in said, (typed, said)
        assert "Traceback" not in said
        assert typed == "--help" or len(said.strip().splitlines()) == 1 + ("num_generations" in typed), said
    assert max(found["took"].values()) < 2, found["took"]


class Hub(BaseHTTPRequestHandler):
    """A hub that has owner/name, and no other model."""

    def do_HEAD(self) -> None:
        known = self.path.startswith("/owner/name/")
        self.send_response(200 if known else 404)
        for name, value in {"ETag": "1", "X-Repo-Commit": "1"}.items() if known else [("X-Error-Code", "RepoNotFound")]:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


def test_a_hub_is_asked_once_for_a_model_that_is_not_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    here, nowhere = "train model.name=owner/name data.train=nosuch.csv", "train model.name=owner/nosuch"
    with HTTPServer(("127.0.0.1", 0), Hub) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        said = answers([here, nowhere], tmp_path)["said"]
        hub.shutdown()
    assert "No file nosuch.csv" in said[here]
    assert said[nowhere].strip().endswith("its files are not in the cache, and the hub shows no model of this name.")
    found = answers([nowhere], tmp_path)
    assert found["said"][nowhere].strip().endswith("not in the cache, and the Hugging Face hub cannot be reached.")
    assert found["took"][nowhere] < 2


def test_a_configuration_that_is_printed_says_what_a_run_refuses_of_it(tmp_path):
    good, bad = "train model.name=demo:smollm2 --cfg job", "train model.name=demo:smollm2 loss.beta=0 --cfg job"
    said = answers([good, bad], tmp_path)["said"]
    assert said[good].startswith("model:\n")
    assert "refuses" not in said[good]
    assert said[bad].startswith("model:\n")
    assert "A run refuses this configuration: loss.beta=0 turns preference into nothing" in said[bad]


@pytest.mark.parametrize(
    "words",
    [
        *("--help", "labels --help", "fit --help", "compare --help", "report nowhere"),
        *("eval --help", "chat", "merge nowhere there"),
    ],
)
def test_a_command_s_help_imports_no_torch(words, tmp_path):
    program = (
        "import sys\nfrom choosy.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *words.split()], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


def test_the_version_is_printed_by_each_program(tmp_path):
    said = answers(["--version", "train --version", "train lr=1 --version"], tmp_path)["said"]
    assert {*said.values()} == {f"choosy {__version__}\n"}


@pytest.mark.parametrize("line", MENU)
def test_whatever_the_menu_composes_is_accepted(line):
    check(compose([line, "model.name=demo:smollm2", *GIVEN.get(line, [])]))


def test_a_setting_of_the_user_s_own_is_accepted_where_something_reads_it():
    check(compose(["+mine=0.3", "lr=${mine}"]))
    with pytest.raises(ValueError, match="There is no option mine"):
        check(compose(["+mine=0.3"]))


def test_what_is_no_text_is_left_to_whoever_reads_it():
    data = {
        "_target_": "data_modules.on_policy.OnPolicyData",
        "train": 5,
        "heldout": ["a.csv", 3],
        "heldout_pairs": None,
    }
    assert [*sources(data)] == ["a.csv"]
    function = {"_target_": "choosy.labeling.function.Function", "path": None}
    refuse_absent({"logger": None, "labeler": {"_target_": "x", "members": {"one": function}}})
    refuse_absent({"labeler": function | {"path": "__main__.f"}})  # of a script or a notebook
    with pytest.raises(ValueError, match=r"there is no file nosuch\.py"):
        refuse_absent({"labeler": {"members": {"one": function | {"path": ["nosuch.py:f"]}}}})


def test_a_path_without_its_function_or_with_a_wrong_one_says_what_the_file_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text("import math\n\ndef length(r): ...\n\ndef _inner(r): ...\n\nasync def asks(r): ...\n")
    for path, words in {
        "rewards.py": "it names a file and no function of it; it has rewards.py:length or rewards.py:asks; type",
        "rewards.py:lenght": "rewards.py has no lenght; did you mean length?; type",
        "rewards.py:correct": "rewards.py has no correct; it has rewards.py:length or rewards.py:asks; type",
        "rewards.correct": "rewards.py has no correct; it has rewards.py:length or rewards.py:asks; type",
    }.items():
        with pytest.raises(ValueError, match=re.escape(f"labeler.path={path!r} names no function: {words}")):
            refuse_absent({"labeler": {"_target_": "choosy.labeling.function.Function", "path": path}})


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"strategy": "ddp_spawn_find_unused_parameters_true", "accelerator": "cuda"},
        {"strategy": "deepspeed_stage_3_offload"},
        {"strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy"}},
        {"strategy": "mine", "callbacks": [{"_target_": "my_strategies.Registers"}]},
        {"strategy": "mine", "accelerator": {"_target_": "my_devices.Npu"}},
    ],
)
def test_strategies_of_lightning_and_of_the_user_s_own_pass(trainer):
    refuse_trainer({"trainer": trainer})


def test_parts_are_taken_away_in_each_way():
    for words in (["~logger"], ["~callbacks"], ["~callbacks.win_rate"], ["logger.tensorboard=null"]):
        cfg = compose(words)
        check(cfg)
        assert None not in [*cfg.trainer.logger, *cfg.trainer.callbacks]


def test_what_to_type_for_a_group_without_a_choice_composes():
    with pytest.raises(ValueError, match="names no choice of a group") as refused:
        compose(["experiment=bmc", "editor=null"])
    words = re.split(", | or ", str(refused.value).partition("type ")[2].rstrip("."))
    assert len(words) == 6
    for word in words:
        given = ["data.train=pairs.jsonl"] if word == "~editor" else GIVEN["experiment=bmc"]
        check(cfg := compose(["experiment=bmc", *given, word]))
        assert (cfg.labels.editor is None) == (word == "~editor")


def test_every_mistake_has_its_line():
    with pytest.raises(ValueError, match=r"(?s)^lr wants a number, found 'hot'\.\nrounds wants") as refused:
        check(compose(["lr=hot", "rounds=many"]))
    assert len(str(refused.value).splitlines()) == 2


def test_the_commands_of_others_lead_to_commands_that_exist():
    commands = {"train", *COMMANDS}
    assert {line.split()[1].rstrip(",") for line in COMMANDS_OF_OTHERS.values()} <= commands
    assert not commands & COMMANDS_OF_OTHERS.keys()


def known(*choices: str) -> list[str]:
    return options(OmegaConf.to_container(compose([*choices]), resolve=False))


def test_the_names_of_other_libraries_lead_to_options_that_exist():
    there = {*known(), *menu()["defaults"]}
    for ours in ELSEWHERE:
        name = ours.removeprefix("+").split("=")[0].split(" ")[0]
        others = (
            "loss.gamma",
            "optimizer.betas",
            "optimizer.eps",
            "labeler.weights",
        )  # of one choice of a group, or of the class alone
        choice = re.search(r"\(of (\w+=\w+)", ours)
        assert name in there or name in others or (choice and name in known(choice[1])), ours
    for group, choices in CHOICES.items():
        assert {here.split(" ")[0] for here in choices.values()} <= {
            path.stem for path in (CONF / group).glob("*.yaml")
        }
    assert len(OURS) == sum(len(names.split()) for names in ELSEWHERE.values()), "a name stands twice"
    assert not OURS.keys() & WHY_NONE.keys()
    assert all(why[0].isupper() and not why.endswith(".") for why in NONE)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("model.lora.rank", "rank is called model.lora.r here."),
        ("temperature", "temperature is called sampler.temperature here."),
        ("callbacks.winrate.every", "Did you mean callbacks.win_rate.every?"),
        ("batch_sise", "Did you mean batching.batch_size?"),
        ("zzzzz", ""),
    ],
)
def test_what_was_meant(typed, sentence):
    assert meant(typed, known()) == sentence


# -- signatures that are read from sources ---------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Write a module of this source, and return the signature of a name in it."""
    monkeypatch.syspath_prepend(tmp_path)
    count = iter(range(99))

    def read(text: str, name: str) -> Any:
        module = f"{tmp_path.name.replace('-', '_')}_{next(count)}"
        (tmp_path / f"{module}.py").write_text(text)
        return signature(f"{module}.{name}")

    return read


def test_arguments_are_those_that_python_would_take(source):
    plain = source("class A:\n    def __init__(self, a, /, b: int = 1, *, c: str, **more): ...", "A")
    assert [(name, a.is_required) for name, a in plain.arguments.items()] == [("a", True), ("b", False), ("c", True)]
    assert plain.takes_others
    heir = source("class B:\n    def __init__(self, a): ...\nclass A(B):\n    def f(self): ...", "A")
    assert [*heir.arguments] == ["a"]
    data = "from dataclasses import *\n@dataclass\nclass B:\n    a: int\n@dataclass\nclass A(B):\n    b: int = 2\n"
    assert [*source(f"{data}    c: int = field(init=False)", "A").arguments] == ["a", "b"]
    assert [*source("def made(a, b=2): ...", "made").arguments] == ["a", "b"]
    assert source("A = type('A', (), {})", "A") is None
    assert source("from nowhere_at_all import A", "A") is None
    assert source("if True:\n    class A: ...", "A").arguments == {}
    with pytest.raises(Missing) as missing:
        source("class Reward: ...", "Rewards")
    assert missing.value.known == ("Reward",)


def test_a_star_import_may_bring_any_name(source):
    assert source("from os.path import *", "A") is None


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "words"),
    [
        ("int", [1], [1.0, True, "1", None], "a whole number"),
        ("float", [1, 1.5], ["1", True, None], "a number"),
        ("bool", [True], [1, "yes"], "true or false"),
        ("str", ["a", 7], [True, None, ["a"]], "text"),
        ("int | None", [1, None], ["1"], "a whole number or null"),
        ("Optional[float]", [None, 1.0], ["x"], "a number or null"),
        ("Literal['a', 'b'] | None", ["a", None], ["c"], "a or b or null"),
        ("list[str]", [["a"], []], ["a"], "a list"),
        ("dict[str, float]", [{"a": 1.0}], ["a"], "settings"),
        ("Word", ["a"], ["z"], "a or b"),
        ("Thing | None", [{"_target_": "x.Y"}, None], [16], "settings or null"),
        ("Thing | float", [1.0], ["x"], "a number"),
        ("Unknown", [1, "a", None], [], ""),
        ("'int'", [1], ["a"], "a whole number"),
    ],
)
def test_values_fit_their_annotations(annotation, good, bad, words, source):
    text = f"Word = Literal['a', 'b']\nclass Thing: ...\ndef f(a: {annotation}): ..."
    argument = source(text, "f").arguments["a"]
    assert [wanted(value, argument.annotation, argument.module) for value in good] == [None] * len(good)
    assert [wanted(value, argument.annotation, argument.module) for value in bad] == [words] * len(bad)


def test_help_shows_comments_and_choices_of_what_is_chosen():
    said = train_help(["labeler=judge", "selector=certainty"])
    assert "  * judge                     a chat model says which response is better" in said
    assert "labeler.both_orders=true  # ask about each pair twice" in said
    assert "callbacks.certainty.rescore=auto  # never | auto | fp32; " in said
    assert "trainer.enable_progress_bar=false  # callbacks.progress shows" in said
    assert "${oc.dict" not in said
    names = {line.split("=")[0].split("  #")[0] for line in said.splitlines()}
    plumbing = (
        "run",
        "run_dir",
        "folder",
        "ledger",
        "callbacks",
        "logger",
        "labeler",
        "editor",
        "default_root_dir",
        "save_dir",
    )
    missing = [
        o
        for o in options(OmegaConf.to_container(compose(["labeler=judge", "selector=certainty"]), resolve=False))
        if not o.startswith(("run.", "module", "hydra")) and o not in names
    ]
    config = compose(["labeler=judge", "selector=certainty"])
    leaves = [
        o for o in missing if not OmegaConf.is_config(OmegaConf.select(config, o)) and o.split(".")[-1] not in plumbing
    ]
    assert leaves == []


@pytest.mark.parametrize(
    "typed",
    [
        *("loss=sigmoid", "loss=ipo", "loss=rpo", "loss=orpo", "loss=dlma"),
        *("weighting=uniform", "weighting=wdpo_linear", "selector=middle", "selector=random_pairs"),
    ],
)
def test_an_object_is_named_as_it_is_typed(typed):
    config = compose([typed, "loss.beta=0.3"] if typed == "loss=sigmoid" else [typed])
    group, name = typed.split("=")
    place = {"middle": "certainty", "random_pairs": "random_pairs"}
    part = config.callbacks[place[name]] if group == "selector" else config[group]
    assert typed_for(instantiate(part, _convert_="all")) == typed


def test_an_object_of_ones_own_is_named_by_its_class():
    class Mine:
        beta = 0.1

    assert typed_for(Mine()) == "Mine"


def test_a_tilde_in_a_value_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", home := f"{tmp_path}/Ana Lee")
    words = [
        "data.train=[~/one.jsonl,two.jsonl]",
        "run_dir=~/runs/one",
        "labeler=function",
        "labeler.path='~/mine.py:f'",
    ]
    cfg = compose([*words, "labels.ledger=~/ledger.sqlite", "model.name=~/model", "model.chat_template=~/chat.jinja"])
    assert [*cfg.data.train] == [f"{home}/one.jsonl", "two.jsonl"]
    assert (cfg.run_dir, cfg.labeler.path) == (f"{home}/runs/one", f"{home}/mine.py:f")
    assert cfg.labels.ledger == f"{home}/ledger.sqlite"
    assert (cfg.model.name, cfg.model.chat_template) == (f"{home}/model", f"{home}/chat.jinja")
    assert at_home("--config-dir=~/menu") == f"--config-dir={home}/menu"
    assert (at_home("~logger"), at_home("name=a~/b")) == ("~logger", "name=a~/b")


def test_commands_are_shown_as_the_shell_finds_them(monkeypatch, tmp_path):
    own = Path(sys.executable).with_name("python")
    monkeypatch.chdir(own.parents[1])
    assert program("python") == "python"
    monkeypatch.setenv("PATH", str(tmp_path))  # as after make demo, which activates no environment
    assert program("python") == f"{own.parent.name}/python"
    monkeypatch.chdir(tmp_path)
    assert program("python") == str(own)


def test_a_python_without_choosy_is_told_what_to_type(tmp_path):
    bare = subprocess.run([sys.executable, "-I", "-S", ROOT / "train.py"], capture_output=True, text=True, cwd=tmp_path)
    assert bare.stderr == "This Python has no Choosy: type make setup, then source .venv/bin/activate\n"
