"""Opens a tuned model: that of a run, an adapter, a model of all weights."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from choosy.files import name_of_paths
from choosy.labeling.run_ledger import ledger_of
from choosy.main import built, check, compose, plain
from choosy.models.adapters import refuse_model, starting_point
from choosy.models.checksums import refuse_changed
from choosy.options.names import any_of
from choosy.options.typed import quoted
from choosy.options.words import Words
from choosy.reporting.exports import Whole, write_whole
from choosy.reporting.folders import refuse_sweep
from choosy.reporting.model_card import copy_card
from choosy.sealed import read_yaml
from choosy.terminal import say

if TYPE_CHECKING:  # functions import torch and transformers once the words of the command are read
    from choosy.models.policy import Policy
    from choosy.sampling.generate import Generate

PLACES = {  # where a run's config.yaml has what is typed
    "labeler": "labels.labeler",
    "sampler": "evaluation.sampler",
    "loss": "module.loss",
    "model": "module.policy",
}
TYPED = (*PLACES, "labels", "evaluation", "data", "seed")


@dataclass(frozen=True)
class TunedModel:
    """A tuned model with its settings.

    Attributes:
        name: What was typed: the folder of a run, of an adapter or of a model, or a hub id.
        config: The settings, as `config.yaml` of a run holds them; those of the policy are the start's.
        adapter: The folder of the tuned adapter; None = all weights are tuned.
        weights: The folder or hub id of all weights; None = an adapter is tuned.
        run: The run's folder; None = it is not known. Of a model of all weights the start is then not known either.
    """

    name: str
    config: dict[str, Any]
    adapter: str | None
    weights: str | None
    run: Path | None

    @classmethod
    def open(cls, name: str, words: Sequence[str] = ()) -> TunedModel:
        """Find a tuned model, and take other settings than its own from words of the command line.

        A model that no run names has the menu's settings, and no labeler as long as none is typed.
        """
        path = Path(name).expanduser()
        if path.is_dir() and not any((path / file).is_file() for file in ("adapter_config.json", "config.json")):
            config, model = read_tuned(path)
            is_adapter = (model / "adapter_config.json").is_file()
            config = overlaid(config, words, folder=path / "eval")
            return cls(name, config, str(model) if is_adapter else None, None if is_adapter else str(model), path)
        base, adapter = starting_point(name, None, None)
        refuse_changed(adapter or base)
        folder = Path("eval", name_of_paths(name))
        named = [f"model.name={quoted(base)}", *([] if adapter else ["model.lora=null"]), in_folder(folder)]
        config = plain(compose(named))
        refuse_model(config["module"]["policy"])
        config["labels"]["evaluation"] = "none"
        return cls(name, overlaid(config, words, folder=folder), adapter, None if adapter else base, None)

    @property
    def source(self) -> str:
        """What transformers loads the tuned model from."""
        return self.adapter or self.weights or ""

    @property
    def tuned(self) -> dict[str, Any]:
        """The settings of the tuned policy."""
        own = {"adapter": self.adapter} if self.adapter else {"name": self.weights}
        return {**self.config["module"]["policy"], **own}

    @property
    def start(self) -> dict[str, Any] | None:
        """The settings of the policy that was tuned; None if nothing says which it was."""
        return self.config["module"]["policy"] if self.run or self.adapter else None

    @property
    def trusted(self) -> bool:
        """Whether code that comes with the model may run."""
        return bool(self.config["module"]["policy"].get("trust_remote_code", False))

    @property
    def folder(self) -> Path:
        """Where to write what is found of it."""
        return self.run / "eval" if self.run else Path("eval", name_of_paths(self.name))

    @property
    def sampler(self) -> Generate:
        """The sampler of held-out answers."""
        from choosy.sampling.generate import Generate

        settings = self.config["evaluation"]["sampler"]
        return Generate(**{name: value for name, value in settings.items() if name != "_target_"})

    def load(self, settings: Mapping[str, Any]) -> Policy:
        """Load the policy of these settings, `tuned` or `start`."""
        import torch

        policy: Policy = built(settings)
        policy.load(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"), seed=self.config["seed"])
        return policy


def read_tuned(run: Path) -> tuple[dict[str, Any], Path]:
    """Return a run's settings, without the budget that it had to train, and the folder of its tuned model."""
    if not (run / "config.yaml").is_file():
        refuse_sweep(run)
        raise ValueError(f"{run} is not the folder of a run: it has no config.yaml; type one such as runs/demo.")
    model = next((run / name for name in ("adapter", "model") if (run / name).is_dir()), None)
    if model is None:
        raise ValueError(f"{run} has no tuned model yet; resume the run with ckpt_path=last.")
    refuse_changed(model)
    config: dict[str, Any] = read_yaml(run / "config.yaml")
    if "evaluation" not in config:
        raise ValueError(f"{run} was composed by LightningCLI; this command reads what `choosy train` composed.")
    config["labels"] |= {"budget": None, "budget_money": None, "ledger": str(ledger_of(run))}
    return config, model


def overlaid(config: dict[str, Any], words: Sequence[str], *, folder: Path) -> dict[str, Any]:
    """Return a configuration with what is typed in its place; a labeler that is typed judges held-out answers.

    Args:
        config: As `config.yaml` of a run holds it.
        words: What is typed, as for `choosy train`.
        folder: Where a labeler that is typed keeps its files.
    """
    if not words:
        return config
    named = {word.lstrip("+").partition("=")[0]: word for word in words}
    places = {name.partition("@")[2] or name: word for name, word in named.items()}  # in the composed configuration
    if other := [word for place, word in places.items() if place.partition(".")[0] not in TYPED]:
        raise ValueError(f"{other[0]}: nothing is trained here; what may be typed begins with {any_of(TYPED)}.")
    check(cfg := compose([*words, in_folder(folder)]))
    found = OmegaConf.create(config)
    for place in places:
        head, dot, rest = place.partition(".")
        value = OmegaConf.select(cfg, place)
        OmegaConf.update(found, PLACES.get(head, head) + dot + rest, value, merge=False, force_add=True)
    typed = {place.partition(".")[0] for place in places}
    if "labeler" in typed and not any(place.startswith("labels.evaluation") for place in places):
        found.labels.evaluation = "labeler"
    return dict(plain(found))


def in_folder(folder: Path) -> str:
    """Return the word that lets labelers and the ledger keep their files in a folder."""
    return f"run_dir={quoted(str(folder))}"


def merge(words: list[str]) -> None:
    """Write the tuned model as one model, without an adapter."""
    parser = Words("choosy merge", description="Write a run's tuned model as one model, its adapter merged in.")
    parser.add_argument("run_dir", metavar="RUN", help="the folder of the run, or of an adapter or a model")
    parser.add_argument("folder", metavar="DIR", help="a new folder for the model")
    parser.add_argument("--gguf", action="store_true", help="write one file for llama.cpp, Ollama and LM Studio")
    typed = parser.parse_args(words)
    tuned, folder = TunedModel.open(typed.run_dir), Path(typed.folder)
    if tuned.adapter is None and not typed.gguf:
        raise ValueError(f"All weights are tuned, and {tuned.weights} is the whole model; there is nothing to merge.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; type a new folder.")
    form: Whole = "gguf" if typed.gguf else "merged"
    written = write_whole(tuned.source, folder, form, name=folder.resolve().name, trusted=tuned.trusted)
    copy_card(Path(tuned.source), folder, form)
    if typed.gguf:
        say(f"{written} holds the whole model; llama-server -m {shlex.quote(str(written))} serves it")
    else:
        say(f"{folder} holds the whole model; AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it")
