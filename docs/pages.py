"""Makes the pages of the site that the sources hold already: options, reference, the README; a hook of mkdocs.yml."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from choosy.options import names
from choosy.options.menu import about, comments, conf_text, listing, menu
from choosy.options.yaml_text import load_yaml

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OF_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PLACES = {"choosy": ROOT / "src" / "choosy", "callbacks": ROOT / "callbacks", "data_modules": ROOT / "data_modules"}
COMMANDS = re.compile(r"^```\n(?=(choosy|python|pip|make|torchrun|export|vllm)\b)", re.MULTILINE)
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> None:
    """Put the packages into the navigation."""
    pages = [{package: page} for package, page in packages().items()]
    config.nav = [{"Reference": pages} if "Reference" in entry else entry for entry in config.nav or []]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for path, text in made().items():
        files.append(File.generated(config, path, content=text))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the tables in, show commands as such, and let links to files of the checkout lead to pages of the site."""
    source = page.file.src_uri
    for mark, table in TABLES.items():
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    markdown = COMMANDS.sub("``` { .text .typed }\n", markdown)
    return LINK.sub(lambda link: link[1] + link_on_the_site(link[2], source), markdown)


def made() -> dict[str, str]:
    """Return the pages that are made, by their paths in docs/."""
    found = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in OF_THE_ROOT.items()}
    found |= {page: "\n".join(reference(package)) for package, page in packages().items()}
    return found | {"options.md": "\n".join(options())}


def link_on_the_site(link: str, page: str) -> str:
    """Return where a link in a page leads on the site: a link to a source file leads to its reference.

    Example:
        >>> link_on_the_site("../src/choosy/methods/losses.py", "losses.md")
        'reference/choosy.methods.md'
        >>> link_on_the_site("docs/data.md", "index.md"), link_on_the_site("../log.md", "decisions/005-x.md")
        ('data.md', '../log.md')
    """
    folder = PurePosixPath() if page in OF_THE_ROOT.values() else "docs" / PurePosixPath(page).parent
    target = Path(os.path.normpath(folder / link)).as_posix()
    module = PurePosixPath(target.removeprefix("src/"))
    package = ".".join((module.parent if module.suffix == ".py" else module).parts)
    inside = OF_THE_ROOT.get(target) or packages().get(package) or target.removeprefix("docs/")
    return PurePosixPath(os.path.relpath(inside, PurePosixPath(page).parent)).as_posix()


# -- the reference -------------------------------------------------------------------------------------------------


def packages() -> dict[str, str]:
    """Return the page of each package."""
    found = {
        ".".join((top, *init.parent.relative_to(folder).parts))
        for top, folder in PLACES.items()
        for init in folder.rglob("__init__.py")
    }
    return {package: f"reference/{package}.md" for package in sorted(found)}


def reference(package: str) -> Iterator[str]:
    """Yield the lines of a package's page: its modules, whose docstrings mkdocstrings puts in."""
    top, *below = package.split(".")
    folder = PLACES[top].joinpath(*below)
    yield f"# {package}\n"
    for path in sorted(folder.glob("*.py"), key=lambda path: (path.name != "__init__.py", path.name)):
        module = package if path.name == "__init__.py" else f"{package}.{path.stem}"
        more = "    options: {members: false, show_root_heading: false}\n" if module == package else ""
        yield f"::: {module}\n{more}"


# -- the options ---------------------------------------------------------------------------------------------------


def options() -> Iterator[str]:
    """Yield the lines of the page of all options."""
    yield "# Options\n"
    yield (
        "Every option of `choosy train`, with its default and what it takes. Type `GROUP=OPTION` for a choice and "
        "`NAME=VALUE` for a setting; `choosy train --help selector=certainty` shows the same for what you chose.\n"
    )
    train = load_yaml(conf_text("train"))
    of_no_group = {name: node for name, node in train.items() if name not in ("defaults", "run", "module", "hydra")}
    yield "## Settings of every run\n"
    yield from table(of_no_group, comments(conf_text("train")), "")
    of_menu = dict.fromkeys(name.partition("@")[0] for name in menu()["defaults"])
    for group in [*of_menu, "hydra/launcher", "hydra/sweeper"]:
        files = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        if not files:
            continue
        yield f"\n## {group}\n"
        yield from (["| choice | |", "|---|---|"])
        yield from (f"| `{group}={name}` | {cell(about(conf_text(*group.split('/'), name)))} |" for name in files)
        for name in files:
            yield from of_choice(group, name)


def of_choice(group: str, name: str) -> Iterator[str]:
    """Yield the lines on a choice that has options: their table, or what an experiment sets."""
    text = conf_text(*group.split("/"), name).replace("hydra_plugins.choosy", "choosy.sweeper")  # as Hydra finds it
    node = {key: value for key, value in (load_yaml(text) or {}).items() if key != "defaults"}
    if "# @package _global_" in text:
        yield f'\n??? note "What `{group}={name}` sets"\n\n    ```yaml\n'
        yield from (f"    {line}" for line in text.splitlines())
        yield "    ```\n"
        return
    place = "callbacks." if "# @package callbacks" in text or group == "callbacks" else f"{group.replace('/', '.')}."
    rows = [*table(node, {f"{place}{key}": said for key, said in comments(text).items()}, place)]
    if len(rows) > 2:
        yield f"\n### {group}={name} {{ data-toc-label='{name}' }}\n"
        yield from rows


def table(node: dict[str, Any], said: dict[str, str], place: str) -> Iterator[str]:
    """Yield a table of options."""
    yield from ("| option | default | |", "|---|---|---|")
    for option in listing(node, said, place):
        value = "" if option.value is None else f"`{cell(option.value, code=True)}`" if option.value else "`''`"
        yield f"| `{option.name}` | {value} | {cell(option.said)} |"


def cell(text: str, *, code: bool = False) -> str:
    r"""Return a text for a cell of a table, in which nothing is Markdown.

    Example:
        >>> cell("all | [q_proj]"), cell("a | b", code=True)
        ('all \\| \\[q\\_proj\\]', 'a \\| b')
    """
    return text.replace("|", r"\|") if code else re.sub(r"([\\`*_\[\]<>|{}])", r"\\\1", text)


# -- names of others -----------------------------------------------------------------------------------------------


def of_others() -> str:
    """Return the table of what others call an option."""
    rows = ["| elsewhere | here |", "|---|---|"]
    rows += [f"| {code(theirs)} | {plain(ours)} |" for ours, theirs in names.ELSEWHERE.items()]
    return "\n".join(rows)


def without_option() -> str:
    """Return the table of the names that no option answers to, and why."""
    rows = ["| elsewhere | here |", "|---|---|"]
    return "\n".join(rows + [f"| {code(theirs)} | {cell(why)} |" for why, theirs in names.NONE.items()])


def choices_of_others() -> str:
    """Return the table of what others call a choice of a group, or a command."""
    rows = ["| elsewhere | here |", "|---|---|"]
    for group, known in names.CHOICES.items():
        for ours in dict.fromkeys(known.values()):
            rows.append(f"| {code(' '.join(name for name in known if known[name] == ours))} | `{group}={ours}` |")
    commands = dict.fromkeys(names.COMMANDS_OF_OTHERS.values())
    for ours in commands:
        theirs = [name for name, known in names.COMMANDS_OF_OTHERS.items() if known == ours]
        rows.append(f"| the commands {code(' '.join(theirs))} | {plain(ours)} |")
    return "\n".join(rows)


def code(words: str) -> str:
    """Return words as code, each by itself."""
    return " ".join(f"`{word}`" for word in words.split())


def plain(ours: str) -> str:
    """Return what is typed as code, and what is said of it as text."""
    typed, said = re.fullmatch(r"(.*?)((?:, | \(| or | on | and ).*)?", ours, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"`{typed}`{cell(said or '')}"


def of_trl(config: str) -> str:
    """Return the options of a class of TRL beside ours."""
    rows = [f"| TRL's `{config}` | here |", "|---|---|"]
    for name in TRL[config].split():
        ours = names.OURS.get(name) or (name if name in menu() else None)
        rows.append(f"| `{name}` | {plain(ours) if ours else cell(names.WHY_NONE[name])} |")
    return "\n".join(rows)


TRL = {  # the options of TRL 1.16's classes, with those of TrainingArguments that are often set
    "DPOConfig": "learning_rate per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps "
    "lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio max_grad_norm optim weight_decay "
    "adam_beta1 adam_epsilon bf16 fp16 gradient_checkpointing use_liger_kernel logging_steps eval_steps "
    "save_steps save_total_limit output_dir run_name report_to seed resume_from_checkpoint push_to_hub "
    "model_init_kwargs trust_remote_code disable_dropout dataset_num_proc max_length truncation_mode "
    "padding_free pad_to_multiple_of pad_token precompute_ref_log_probs precompute_ref_batch_size "
    "loss_type loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing beta "
    "use_weighting discopop_tau activation_offloading sync_ref_model ref_model_mixup_alpha "
    "ref_model_sync_steps",
    "OnlineDPOConfig": "reward_model_path reward_weights max_new_tokens max_length temperature top_p top_k min_p "
    "repetition_penalty generation_kwargs cache_implementation missing_eos_penalty beta loss_type "
    "disable_dropout use_vllm vllm_mode vllm_model_impl vllm_structured_outputs_regex "
    "vllm_gpu_memory_utilization vllm_server_base_url vllm_server_host vllm_server_port "
    "vllm_server_timeout vllm_group_port vllm_tensor_parallel_size vllm_enable_sleep_mode "
    "ds3_gather_for_generation remove_unused_columns",
    "KTOConfig": "loss_type beta desirable_weight undesirable_weight train_sampling_strategy precompute_ref_log_probs "
    "max_length pad_to_multiple_of activation_offloading sync_ref_model",
    "ModelConfig": "model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha "
    "lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save use_rslora use_dora load_in_8bit "
    "load_in_4bit bnb_4bit_quant_type",
}
TABLES = {
    **{f"<!-- {config} -->": partial(of_trl, config) for config in TRL},
    "<!-- names of options -->": of_others,
    "<!-- names without an option -->": without_option,
    "<!-- names of choices -->": choices_of_others,
}
