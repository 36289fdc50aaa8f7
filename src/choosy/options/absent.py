"""Refuses functions, packages or strategies that a configuration names, if they are not there.

It imports none of them: torch, which most of them need, takes seconds.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from choosy.options.names import any_of, file_meant
from choosy.syntax_trees import parsed

EXTRAS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "TrackioLogger": "trackio"}  # each an extra of its name
LOGGERS = {**EXTRAS, "CometLogger": "comet_ml", "NeptuneLogger": "neptune"}
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
STRATEGIES = re.compile("auto|(ddp|deepspeed|fsdp|xla|single)(_[a-z0-9_]+)?")  # the names that Lightning registers
OTHERS = ("choosy.", "callbacks.", "data_modules.", "lightning.", "torch.")  # whose code registers no other
SOURCES = ("train", "heldout", "heldout_pairs")  # options of data_modules that name files


def refuse_absent(resolved: Mapping[str, Any]) -> None:
    """Raise a ValueError for the first reward function, logger's package, accelerator or strategy that is not there."""
    loggers = (resolved.get("trainer") or {}).get("logger")
    for logger in loggers if isinstance(loggers, list) else []:
        name = str(logger.get("_target_")).rpartition(".")[2]
        package = LOGGERS.get(name)
        if package and find_spec(package) is None:
            install = f"'choosy-tuning[{package}]'" if name in EXTRAS else package
            raise ValueError(f"{name} needs the package {package}: pip install {install}")
    refuse_trainer(resolved)
    for path in dict.fromkeys(_functions(resolved)):
        if (lacks := _lacks(path)) is not None:
            raise ValueError(
                f"labeler.path={path!r} names no function: {lacks}; type file.py:function, or package.module.function "
                "with the package in the current folder, installed or on PYTHONPATH"
            )


def refuse_trainer(resolved: Mapping[str, Any]) -> None:
    """Raise a ValueError for an accelerator or a strategy of a name that nothing can have registered.

    A class of the user's may register one when it is imported.
    """
    trainer = resolved.get("trainer") or {}
    accelerator, strategy = trainer.get("accelerator", "auto"), trainer.get("strategy", "auto")
    known = [name for name in ACCELERATORS if name != "tpu" or find_spec("torch_xla")]
    if any(_functions(resolved)) or not all(target.startswith(OTHERS) for target in _targets(resolved)):
        return
    if isinstance(accelerator, str) and accelerator not in known:
        raise ValueError(f"trainer.accelerator={accelerator} is none of {', '.join(known)}.")
    if isinstance(strategy, str) and not STRATEGIES.fullmatch(strategy):
        raise ValueError(
            f"trainer.strategy={strategy} is none of Lightning's; type trainer=ddp or trainer=fsdp, or "
            "choose another, such as trainer.strategy=ddp_find_unused_parameters_true."
        )


def _targets(node: Any) -> Iterator[str]:
    """Yield the paths of all classes of a configuration."""
    if isinstance(node, Mapping):
        yield from [str(node["_target_"])] if "_target_" in node else []
        node = [*node.values()]
    for below in node if isinstance(node, list) else ():
        yield from _targets(below)


def sources(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files, folders and hub ids that the data modules of Choosy read."""
    if str(data.get("_target_")).startswith("data_modules."):
        for option in SOURCES:
            yield from _texts(data.get(option))


def _functions(node: Any) -> Iterator[str]:
    """Yield the paths of all reward functions of a configuration."""
    if not isinstance(node, Mapping):
        return
    if node.get("_target_") == "choosy.labeling.function.Function":
        yield from _texts(node["path"])
    for below in node.values():
        yield from _functions(below)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value that is a text or a list of texts, and none of other values."""
    yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def _lacks(path: str) -> str | None:
    """Return a sentence on what of a function's path is not there; None if it is, or if only an import can say."""
    file, colon, name = path.rpartition(":")
    if colon and file.endswith(".py"):
        place = Path(file)
        if not place.is_file():
            return f"there is no file {file} in {Path.cwd()}; {file_meant(place)}".removesuffix("; ")
    elif path.endswith(".py") and Path(path).is_file():
        return f"it names a file and no function of it; it has {_functions_in(Path(path)) or 'none'}"
    else:
        module, _, name = path.rpartition(".")
        top = module.split(".")[0]
        if (
            top
            and top not in sys.modules
            and find_spec(top) is None
            and not Path(top).is_dir()
            and not Path(f"{top}.py").is_file()
        ):
            return f"there is no module {top}"
        place = Path(f"{module}.py")  # in the current folder; other modules are found by an import
    if "." in name or not place.is_file():
        return None
    known = _names(place)
    if known is None or name in known:
        return None
    meant = get_close_matches(name, known, n=1)
    hint = f"did you mean {meant[0]}?" if meant else f"it has {_functions_in(place) or 'no function'}"
    return f"{place} has no {name}; {hint}"


def _functions_in(file: Path) -> str:
    """Return the functions of a Python file as they are typed; "" if it has none."""
    try:
        body = parsed(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return ""
    names = [one.name for one in body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    typed = [f"{file}:{name}" for name in names if not name.startswith("_")]
    return any_of(typed) if typed else ""


def _names(file: Path) -> set[str] | None:
    """Return the names that a Python file gives values to, and more; None if its source does not say."""
    try:
        tree = parsed(file.read_bytes())
    except (SyntaxError, ValueError):
        return None
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Name():
                found.add(node.id)
            case ast.alias():
                found.add(node.asname or node.name.split(".")[0])
    return None if found & {"*", "__getattr__", "globals", "exec", "setattr"} else found
