"""Uploads a tuned model to the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from choosy.models.adapters import CONFIG
from choosy.models.checksums import NAME, write_checksums
from choosy.models.locate import UNREACHABLE, shown_name
from choosy.options.words import Words
from choosy.reporting.model_card import PICTURE, is_ours, on_the_hub, with_base
from choosy.terminal import say
from choosy.tuned_model import TunedModel

BASE = "base_model_name_or_path"


def push(words: list[str]) -> None:
    """Upload a tuned model with its card."""
    parser = Words(
        "choosy push",
        description="Upload a tuned model with its card to the Hugging Face hub, as the account of HF_TOKEN or of "
        "hf auth login. A new repository is private unless --public is typed.",
    )
    parser.add_argument("model", metavar="MODEL", help="the folder of a run, of an adapter or of a model")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository; it is made if there is none")
    parser.add_argument("--public", action="store_true", help="let everybody see a new repository")
    parser.add_argument("--base", metavar="OWNER/NAME", help="the hub id of the base model, if it was a folder here")
    typed = parser.parse_args(words)
    if typed.repo.count("/") != 1:
        raise ValueError(f"{typed.repo} is no repository of the hub, which is OWNER/NAME, such as me/{typed.repo}.")
    path = Path(typed.model).expanduser()
    is_gguf = not (path / "config.yaml").is_file() and any(path.glob("*.gguf"))
    source = path if is_gguf else Path(TunedModel.open(typed.model).source).expanduser()
    if not source.is_dir():
        raise ValueError(f"{typed.model} is on the hub already; type the folder of a run, an adapter or a model.")
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    with TemporaryDirectory() as folder:
        not_uploaded = all_but_gguf if is_gguf else shutil.ignore_patterns(".*")
        copy = Path(shutil.copytree(source, Path(folder, "model"), ignore=not_uploaded))
        name_base(copy, typed.base)
        if (card := copy / "README.md").exists() and is_ours(text := card.read_text(encoding="utf-8")):
            card.write_text(on_the_hub(text, typed.repo), encoding="utf-8")
        if (copy / NAME).exists():
            write_checksums(copy)
        hub = HfApi()
        try:
            hub.create_repo(typed.repo, private=not typed.public, exist_ok=True)
            hub.upload_folder(repo_id=typed.repo, folder_path=copy, commit_message="Upload a model tuned with Choosy")
        except OfflineModeIsEnabled:
            raise ValueError("HF_HUB_OFFLINE keeps the hub from being asked; unset it.") from None
        except LocalTokenNotFoundError:
            raise ValueError("The hub asks who you are: set HF_TOKEN, or type hf auth login.") from None
        except HfHubHTTPError as error:
            raise ValueError(f"The hub refuses {typed.repo}: {error.server_message or error}") from None
        except httpx2.TransportError as error:
            raise ValueError(f"{typed.repo} is not uploaded: {UNREACHABLE} at {hub.endpoint} ({error}).") from None
    say(f"{hub.endpoint}/{typed.repo}")


def all_but_gguf(folder: str, names: list[str]) -> set[str]:
    """What is not uploaded of a folder with files of llama.cpp, which may hold anything else."""
    return {name for name in names if not name.endswith(".gguf") and name not in ("README.md", PICTURE, NAME)}


def name_base(folder: Path, base: str | None) -> None:
    """Name the base model by its hub id, in an adapter's configuration and in the card, without a path from here.

    Raises:
        ValueError: It was a folder of this machine, and no hub id is given.
    """
    file, card = folder / CONFIG, folder / "README.md"
    known = shown_name("demo:smollm2")
    if base and not is_hub_id(base):
        raise ValueError(f"--base {base} is no hub id; type --base with its hub id, such as {known}.")
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
        named = str(config[BASE])
        found = base or (known if Path(named).name == known.rpartition("/")[2] else named)
        if Path(found).is_dir() or not is_hub_id(found):
            raise ValueError(
                f"The adapter was tuned on the folder {named} of this machine; type --base with its hub id, "
                f"such as {known}."
            )
        file.write_text(json.dumps({**config, BASE: found}, indent=2) + "\n", encoding="utf-8")
    if base and card.exists() and is_ours(text := card.read_text(encoding="utf-8")):
        card.write_text(with_base(text, base), encoding="utf-8")


def is_hub_id(name: str) -> bool:
    """Whether the hub takes a name, with an owner or without.

    Example:
        >>> is_hub_id("gpt2"), is_hub_id("owner/model"), is_hub_id("/data/model"), is_hub_id("../model")
        (True, True, False, False)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is exported at run time

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
