"""Every combination of loss, weighting, labeler, selector and data runs, or a sentence refuses it."""

from __future__ import annotations

import json
import logging
import math
import random
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, NamedTuple

import hydra
import pandas as pd
import pytest
from answers import answers
from test_configs import LABELER, options

from callbacks.selector import Selector
from choosy.main import compose, conf, plain, train
from choosy.options.check import options as names_in

TRIED = 3000  # of all combinations, drawn by a seed
STEPS = 5  # sentences that are followed, one for each group, before a run must start

ROWS = {
    "prompts": [{"prompt": f"Is {n} odd?"} for n in range(6)],
    "pairs": [{"prompt": f"Is {n} odd?", "chosen": f"{n}, yes.", "rejected": "No."} for n in range(6)],
    "lists": [
        {"prompt": f"Is {n} odd?", "responses": [f"{n}, yes.", "No.", "Perhaps."], "scores": [1, 0.5, 0.2]}
        for n in range(6)
    ],
    "singles": [{"prompt": f"Is {n} odd?", "completion": f"{n}, yes.", "label": n % 2 == 0} for n in range(6)],
    "mixed": [
        {"prompt": f"Is {n} odd?", "completion": f"{n}, yes.", "label": n % 2 == 0}
        if n < 3
        else {"prompt": f"Is {n} odd?", "chosen": f"{n}, yes.", "rejected": "No."}
        for n in range(6)
    ],
    "weights": [
        {"prompt": f"Is {n} odd?", "chosen": f"{n}, yes.", "rejected": "No.", "weight": 0.5 + n} for n in range(6)
    ],
}
DATA = {
    "on_policy": "data.train=prompts.jsonl",
    **{f"on_policy {n}": f"data.train=prompts.jsonl data.responses={n}" for n in (1, 2)},
    **{f"offline {rows}": f"data=offline data.train={rows}.jsonl" for rows in ROWS if rows != "prompts"},
}
AS_DATA = {"data=offline": ("data", "offline pairs"), "data.responses=2": ("data", "on_policy 2")}
TYPED = {
    **{name: " ".join(line) for name, line in LABELER.items()},
    "crowd": "+labeler@labeler.members.one=function labeler.members.one.path=toy.vowels "
    "+labeler@labeler.members.two=contrastive",
    "noisy": "labeler@labeler.wrapped=function labeler.wrapped.path=toy.vowels",
    "weighted": "+labeler@labeler.parts.one=function labeler.parts.one.path=toy.vowels "
    "+labeler@labeler.parts.two=vader +labeler.weights.two=0.5",
}
# judge gibberish without a server or a person
CALLED = ("contrastive", "crowd", "dataset", "function", "noisy", "weighted")


class Chosen(NamedTuple):
    """One choice of each group."""

    data: str
    labeler: str
    loss: str
    selector: str
    weighting: str

    @property
    def typed(self) -> str:
        """The command line that makes these choices."""
        groups = ("labeler", "loss", "selector", "weighting")
        named = " ".join(f"{group}={getattr(self, group)}" for group in groups)
        return " ".join(f"{DATA[self.data]} {named} {TYPED[self.labeler]}".split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows and a labeler that the lines name."""
    folder = tmp_path_factory.mktemp("combinations")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "toy.py").write_text("def vowels(prompt, response):\n    return float(sum(map(ord, response)) % 7)\n")
    (folder / "judge").mkdir()
    return folder


@pytest.fixture(scope="module")
def there(folder: Path, tiny_policy_dir: Path) -> Iterator[list[str]]:
    """What every line types, from within the folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.syspath_prepend(folder)
        patched.setattr(logging.root.manager, "disable", logging.WARNING)
        yield ["trainer=cpu", f"model.name={tiny_policy_dir}", "model.dtype=float32", "data.heldout=null"]


def built(node: Any) -> Any:
    """Build what a configuration names."""
    if isinstance(node, list):
        return [built(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {name: built(value) for name, value in node.items() if not name.startswith("_")}
    if "_target_" not in node:
        return made
    target = resolve_name(node["_target_"])
    return partial(target, **made) if node.get("_partial_") else target(**made)


class Kitchen:
    """Builds runs of the parts that each choice of the menu names; a part that no run changes is built once."""

    def __init__(self, there: list[str]) -> None:
        self.choices = {
            "data": [*DATA],
            **{group: options(group) for group in ("labeler", "loss", "selector", "weighting")},
        }
        with conf():  # each line composes one choice of every group
            lines = max(map(len, self.choices.values()))
            composed = [
                self._composed(Chosen(**{group: names[n % len(names)] for group, names in self.choices.items()}), there)
                for n in range(lines)
            ]

        def part(group: str, find: Callable[[Any], Any]) -> dict[str, Any]:
            return {name: find(composed[n]) for n, name in enumerate(self.choices[group])}

        self.options = {name for cfg in composed for name in names_in(cfg)}
        self.data = part("data", lambda cfg: cfg["data"])
        self.labelers = part("labeler", lambda cfg: built(cfg["labeler"]))
        self.selectors = part("selector", lambda cfg: [*cfg["callbacks"].values()])
        self.weightings = part("weighting", lambda cfg: built(cfg["weighting"]))
        policy = built(composed[0]["model"])
        self.modules = part("loss", lambda cfg: built({**cfg["module"], "policy": policy}))
        self.shared = {name: built(composed[0][name]) for name in ("sampler", "learned_reward")}

    @staticmethod
    def _composed(chosen: Chosen, there: list[str]) -> Any:
        return plain(hydra.compose("train", overrides=[*there, *shlex.split(chosen.typed)]))

    def build(self, chosen: Chosen) -> None:
        """Build a run, and let its parts meet as Lightning does before the first round; a ValueError refuses it."""
        module = self.modules[chosen.loss]
        node = self.data[chosen.data]
        labels = {**node["run"]["labels"], "labeler": self.labelers[chosen.labeler]}
        parts = {"labels": labels, "weighting": self.weightings[chosen.weighting], **self.shared}
        data = built({**node, "run": {**node["run"], **parts}})
        callbacks = [one for one in map(built, self.selectors[chosen.selector]) if isinstance(one, Selector)]
        trainer: Any = SimpleNamespace(
            callbacks=callbacks, datamodule=data, lightning_module=module, is_global_zero=False
        )
        data.trainer = module.trainer = trainer
        data.run.open = lambda policy, loss, prompts, read: data.run.labels.check_prompts(prompts)
        data.setup("fit")
        for callback in callbacks:
            callback.setup(trainer, module, "fit")
        module.setup("fit")
        for callback in callbacks:
            callback.on_fit_start(trainer, module)

    def refusal(self, chosen: Chosen) -> str:
        """The sentence that refuses a run; "" for one that is legal."""
        try:
            self.build(chosen)
        except ValueError as error:
            return str(error)
        return ""

    def followed(self, chosen: Chosen, sentence: str) -> list[Chosen]:
        """The combinations that a sentence leads to, one for each piece of advice that changes a choice of a group."""
        found = []
        for words in typed_in(sentence):
            named = dict(AS_DATA.get(word) or word.split("=") for word in words.split())
            changed = {group: name for group, name in named.items() if name in self.choices.get(group, ())}
            if any(name not in getattr(chosen, group) for group, name in changed.items()):
                found.append(chosen._replace(**changed))
        return found


@pytest.fixture(scope="module")
def kitchen(there: list[str]) -> Kitchen:
    return Kitchen(there)


def typed_in(sentence: str) -> list[str]:
    """What a sentence says to type; words with nothing but a space between them are typed together."""
    return [words.rstrip(".") for words in re.findall(r"[\w@.]+=[\w.]+(?: [\w@.]+=[\w.]+)*", sentence)]


def kind_of(sentence: str) -> str:
    """A sentence without the names of parts, files and prompts."""
    parts = r"(?<=single response, and ).+(?= compares? the)"
    named = rf"{parts}|labeler [\w:.+-]+|^\w+|data.responses=1|\w+\.jsonl|prompt \w{{16}}|[1-9] responses"
    return re.sub(named, "...", sentence)


@pytest.mark.slow
def test_a_combination_is_legal_or_a_sentence_says_what_to_type(kitchen, folder, tiny_policy_dir, capsys):
    every = [Chosen(*each) for each in product(*kitchen.choices.values())]
    sentences = {chosen: kitchen.refusal(chosen) for chosen in random.Random(0).sample(every, TRIED)}
    refused = defaultdict(list)
    for chosen, sentence in sentences.items():
        if sentence:
            refused[kind_of(sentence)].append(chosen)
    with capsys.disabled():
        legal = sum(not sentence for sentence in sentences.values())
        print(f"\n{len(every)} combinations, {TRIED} composed and built, {legal} legal; refused:")
        for kind, those in sorted(refused.items(), key=lambda each: -len(each[1])):
            print(f"{len(those):6} {kind}")
    known_early = {kind: [one for one in those if one.labeler != "predictor"] for kind, those in refused.items()}
    first = {kind: those[0] for kind, those in known_early.items() if those}  # a predictor is built with torch alone
    for kind, chosen in first.items():
        words = " ".join(typed_in(sentences[chosen])).split()
        assert {word.partition("=")[0] for word in words} <= kitchen.options | kitchen.choices.keys(), sentences[chosen]
        led_to = kitchen.followed(chosen, sentences[chosen])
        assert led_to, sentences[chosen]
        assert all(kind_of(kitchen.refusal(other)) != kind for other in led_to), sentences[chosen]
        for _ in range(STEPS):
            if not (sentence := kitchen.refusal(chosen)):
                break
            chosen = kitchen.followed(chosen, sentence)[0]
        assert not kitchen.refusal(chosen), f"{kind} leads to {chosen}"
    lines = {f"train model.name={tiny_policy_dir} {chosen.typed}": chosen for chosen in first.values()}
    said = answers(lines, folder)["said"]
    for line, chosen in lines.items():
        assert said[line].strip() == sentences[chosen], f"the command does not refuse {line} before it imports torch"


def kinds_of_losses(kitchen: Kitchen) -> dict[frozenset[str], list[str]]:
    """The losses of the menu by what they need."""
    kinds = defaultdict(list)
    for name, module in kitchen.modules.items():
        kinds[module.loss.needs].append(name)
    return kinds


def test_one_sentence_names_all_that_compares_single_responses(kitchen):
    chosen = Chosen("offline singles", "judge", "f_dpo", "certainty", "wdpo")
    said = kitchen.refusal(chosen)
    assert "loss=f_dpo, weighting=wdpo, labeler judge:toy and selector=certainty compare" in said
    assert "Type loss=kto weighting=uniform labeler=contrastive selector=none (or" in said
    assert not kitchen.refusal(kitchen.followed(chosen, said)[0])


@pytest.mark.slow
def test_what_is_legal_runs(kitchen, there, folder, tmp_path):
    """For each kind of loss, a combination that chance draws."""
    draw = random.Random(1)
    for number, names in enumerate(kinds_of_losses(kitchen).values()):
        those = {**kitchen.choices, "loss": names, "labeler": CALLED}
        while kitchen.refusal(chosen := Chosen(**{group: draw.choice(those[group]) for group in Chosen._fields})):
            pass
        embedders = [
            f"callbacks.{name}.embedder=policy"
            for name, node in compose([f"selector={chosen.selector}"]).callbacks.items()
            if "embedder" in node
        ]
        small = ["rounds=2", "sampler.max_new_tokens=6", "batching.batch_size=4", "callbacks.report.console=false"]
        soon = ["learned_reward.embedder=policy", "learned_reward.min_labels=2"]
        line = [*there, *shlex.split(chosen.typed), *small, *soon, *embedders]
        train(compose(line), tmp_path / str(number))
        steps = pd.read_csv(tmp_path / str(number) / "metrics.csv").dropna(subset="loss_step")
        assert len(steps), chosen
        assert steps["loss_step"].map(math.isfinite).all(), chosen
