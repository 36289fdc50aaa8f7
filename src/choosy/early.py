"""Refuses a run that cannot be played before its heavy libraries are imported.

Torch, Lightning, transformers and their like take seconds to import. A forked process puts a hollow object in the place
of each, builds the run by its own constructors, reads the first rows of its data, and answers with what is refused.
Whatever depends on a hollow object is unknown here: the run itself refuses it later.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from glob import glob
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from choosy.data import reading
from choosy.data.sources import Source, read_rows, refuse_missing_file
from choosy.errors import is_ours, name_typed_keys
from choosy.labeling import function
from choosy.models.adapters import refuse_model
from choosy.models.locate import refuse_unreachable
from choosy.options.absent import refuse_absent, sources
from choosy.options.signatures import Missing, bare_function

HEAVY = ("torch", "torchmetrics", "lightning", "transformers", "peft", "datasets", "scipy", "matplotlib")
OURS = ("choosy.", "callbacks.", "data_modules.")
OWN_EMBEDDERS = ("policy", "minilm")
ROWS = 1000  # that are read of a data source
LARGE = 1 << 26  # bytes of a file that takes seconds to read
SECONDS = 60  # after which the run starts without an answer; a busy machine takes many times what an idle one does


class Unknown(BaseException):
    """A value depends on a library that is not imported; no `except Exception` takes it for a mistake."""


class Hollow:
    """Stands for whatever is in a library that is not imported: its attributes and results are hollow too."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    __getitem__ = __or__ = __ror__ = __call__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()  # a class that is derived from it keeps its own methods

    def _unknown(self, *args: Any) -> Any:
        raise Unknown

    __bool__ = __len__ = __iter__ = __contains__ = __lt__ = __gt__ = __le__ = __ge__ = __eq__ = _unknown
    __int__ = __float__ = __str__ = __format__ = __instancecheck__ = __subclasscheck__ = _unknown
    __hash__ = object.__hash__


HOLLOW = Hollow()


class HollowLibraries(MetaPathFinder, Loader):
    """Imports heavy libraries as modules in which every name is hollow, and no pandas, which pyarrow can do without."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=fullname)
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in HEAVY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        vars(module)["__getattr__"] = HOLLOW.__getattr__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it hollow."""


def refuse_early(config: Mapping[str, Any], *, typed: Collection[str] = ()) -> None:
    """Raise a ValueError for the first thing that is not there, or that a part of the run refuses.

    Args:
        config: The resolved configuration, as Hydra composes it; `model` may stand for `module`, as in LightningCLI.
        typed: Names of the options that were typed.
    """
    refuse_absent(config)
    refuse_model(_module(config).get("policy") or {}, typed=typed)
    for name in dict.fromkeys(_other_models(config)):
        refuse_unreachable(name)
    for source in sources(config["data"]):
        refuse_missing_file(source)
    if "torch" in sys.modules or not hasattr(os, "fork") or os.environ.get("HYDRA_FULL_ERROR") == "1":
        return  # there is nothing to save, no way to, or the stack of the run itself is wanted
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(send, refusal(config).encode(errors="replace"))
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, encoding="utf-8") as answer:
        if not select.select([answer], [], [], SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        sentence = answer.read()
    os.waitpid(child, 0)
    if sentence:
        raise ValueError(sentence)


def _other_models(node: Any) -> Iterator[str]:
    """Yield the names of the models of a configuration that judge or embed."""
    if isinstance(node, Mapping):
        encoder = node.get("encoder")
        named = [node.get("embedder"), *(encoder if isinstance(encoder, list) else [encoder])]
        named += [node.get("model")] if node.get("_target_") == "choosy.labeling.reward_model.RewardModel" else []
        yield from (name.removeprefix("lm:") for name in named if isinstance(name, str) and name not in OWN_EMBEDDERS)
        node = [*node.values()]
    for below in node if isinstance(node, list) else ():
        yield from _other_models(below)


def refusal(config: Mapping[str, Any]) -> str:
    """Return the sentence that refuses a run, "" for none; this process can play none afterwards."""
    logging.disable()
    for stream in (1, 2):  # what is said here, the run says again
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.meta_path.insert(0, HollowLibraries())
    vars(function)["_function_at"] = _bare_function
    vars(reading)["read_rows"] = _first_rows
    with suppress(Unknown):
        try:
            _set_up(config)
        except ValueError as error:
            return str(error)
    return ""


def _module(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = config.get("module") or config["model"]
    return found


def _set_up(config: Mapping[str, Any]) -> None:
    """Build a run, and let its parts meet as Lightning does before the first round."""
    module, data = _built(_module(config)), _built(config["data"], "data")
    settings = _built({name: value for name, value in config["trainer"].items() if name != "_target_"})
    if module is HOLLOW or data is HOLLOW:
        return
    run, callbacks = data.run, settings.pop("callbacks", None) or []
    trainer = SimpleNamespace(
        **settings, callbacks=callbacks, is_global_zero=False, datamodule=data, lightning_module=module
    )
    data.trainer = module.trainer = trainer
    data.heldout_limit = min(data.heldout_limit or ROWS, ROWS)
    if data.source_shares is None:  # which are of all rows
        data.limit = min(data.limit or ROWS, ROWS)
    module.policy.tokens = SimpleNamespace(
        encode_prompt=lambda *_: (0,),
        encode_response=lambda *_: (0,),
        encode_turns=lambda *_: ((0,), (True,)),
        refuse_long_answers=lambda *_, **__: None,
        refuse_beyond_window=lambda *_, **__: None,
    )
    run.open = lambda policy, loss, prompts, read: run.labels.check_prompts(prompts)
    run.labels.ledger = HOLLOW  # which may be there already, and know what answers have cost
    is_read = _known(data.setup, "fit") is not HOLLOW
    for callback in callbacks:
        _known(lambda its=callback: its.setup(trainer, module, "fit"))
    for callback in callbacks:
        _known(lambda its=callback: its.on_fit_start(trainer, module))
    if is_read:
        _known(lambda: run.refuse_slots(data.responses, fresh=not data.given))
        _refuse_unmeasured(config, judged=bool(data.heldout_prompts and run.labels.evaluator))


def _refuse_unmeasured(config: Mapping[str, Any], *, judged: bool) -> None:
    objective, data, callbacks = config.get("objective"), config["data"], config.get("callbacks") or {}
    wanted = {"labels_to_win_rate": "win rates", "quality": "a reward, a win rate or an accuracy"}
    if objective not in wanted or (judged and callbacks.get("win_rate")):
        return
    pairs = ""
    if objective == "quality":
        if data.get("heldout_pairs") and callbacks.get("heldout_pairs"):
            return
        pairs = "; or give data.heldout_pairs=FILE"
    raise ValueError(
        f"objective={objective} needs {wanted[objective]}, and no held-out answers are judged: give data.heldout=FILE, "
        f"or ten prompts or more, and leave labels.evaluation to a labeler that judges them{pairs}."
    )


def _built(node: Any, place: str = "") -> Any:
    """Build what a configuration names of Choosy's own, and everything in it; what is of others is hollow."""
    if isinstance(node, list):
        return [_built(each, f"{place}.{n}") for n, each in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    arguments = {
        name: _built(value, f"{place}.{name}") for name, value in node.items() if not str(name).startswith("_")
    }
    if "_target_" not in node:
        return arguments
    module, _, name = str(node["_target_"]).rpartition(".")
    if not f"{module}.".startswith(OURS):
        return HOLLOW
    try:
        return _known(lambda: getattr(import_module(module), name)(**arguments))
    except ValueError as error:
        name_typed_keys(error, place)
        raise


def _known(call: Callable[..., Any], *args: Any) -> Any:
    """Return what a call returns; a hollow object where only the libraries could say.

    Raises:
        ValueError: Code of Choosy has refused something.
    """
    try:
        return call(*args)
    except ValueError as error:
        if is_ours(error) and not isinstance(error.__cause__, TypeError | AttributeError):
            raise
    except (Exception, Unknown):
        pass
    return HOLLOW


# -- what would take long, or run code of the user's twice ---------------------------------------------------------


def _bare_function(path: str) -> Any:
    """Return a function with the arguments of the user's and without its body."""
    with suppress(Missing, OSError, SyntaxError, UnicodeDecodeError):
        if (found := bare_function(path)) is not None:
            return found
    raise Unknown


def _first_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a source of files that are soon read."""
    for each in [source] if isinstance(source, str) else source:
        path = Path(each).expanduser()
        for file in [path] if path.exists() else map(Path, glob(str(path), recursive=True)):
            if file.exists() and not (file.is_file() and file.stat().st_size < LARGE):
                raise Unknown  # a pipe can be read only once
    return read_rows(source)
