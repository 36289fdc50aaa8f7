"""Names the parts of a configuration as they are typed: selector=certainty where it holds the class of a callback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from choosy.options.menu import chosen
from choosy.options.signatures import has_method
from choosy.options.yaml_text import load_yaml

CLASS = "_target_"  # how the setting of a part that is its class ends
COLLECTIONS = {"selector": "callbacks", "logger": "logger"}  # groups whose options are several parts, and their place
PARTS = (*COLLECTIONS, "callbacks")
OBJECT = "choosy.api.given"  # stands for an object that choosy.tune was given, and has its name as `shown`
CHOOSES = ("prompt_utilities", "pair_utilities")  # methods of a selector
ONLY = (".lora", ".training", ".reader")  # settings of the only class that there is

Settings = Mapping[str, Any]


class Option(NamedTuple):
    """An option of a group of the menu, with its settings as they are written."""

    name: str
    settings: Settings


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting of Hydra's or LightningCLI's configuration with its dotted name.

    A part's class is the setting `_target_`; a callback or logger in a list has the menu's name for it.

    Example:
        >>> dict(leaves({"loss": {"class_path": "my.Loss", "init_args": {"beta": 0.1}}}))
        {'loss._target_': 'my.Loss', 'loss.beta': 0.1}
    """
    if isinstance(node, list) and all(isinstance(item, Mapping) for item in node):
        node = {part_names().get(cls := class_of(item), cls.rpartition(".")[2]): item for item in node}
    if not isinstance(node, Mapping):
        yield name, node
        return
    prefix = f"{name}." if name else ""
    if class_of(node) and not name.endswith(ONLY):  # which LightningCLI writes without a class: there is but one
        yield prefix + CLASS, class_of(node)
    for key, value in node.items():
        if key == "init_args":
            yield from leaves(value, name)
        elif key not in (CLASS, "class_path", "_partial_"):
            yield from leaves(value, prefix + key)


def class_of(node: Mapping[str, Any]) -> str:
    """The dotted name of a part's class; "" if it has none."""
    return str(node.get(CLASS) or node.get("class_path") or "")


@cache
def options_of(group: str) -> dict[str, dict[str, Any]]:
    """Return each option of a group of the menu, with its settings as they are written."""
    names = (file.name.removesuffix(".yaml") for file in files("choosy.conf").joinpath(group).iterdir())
    return {name: dict(leaves(_merged(group, name))) for name in sorted(names)}


def _merged(group: str, option: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for text in reversed([*chosen(group, option)]):
        for key, value in (load_yaml(text) or {}).items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **value} if both else value
    merged.pop("defaults", None)
    return merged


@cache
def groups() -> tuple[str, ...]:
    """The groups of the menu whose options are one part."""
    places = files("choosy.conf").iterdir()
    return tuple(sorted({place.name for place in places if place.is_dir()} - {*PARTS, "experiment", "hydra"}))


@cache
def part_names() -> dict[str, str]:
    """The menu's names of callbacks and loggers, by their classes."""
    return {
        cls: name.removesuffix(f".{CLASS}")
        for group in PARTS
        for option in options_of(group).values()
        for name, cls in classes(option).items()
    }


def choices_with(name: str) -> list[str]:
    """Return the choices of groups that have an option.

    Example:
        >>> choices_with("labeler.path"), choices_with("callbacks.optune.count"), choices_with("labeler.nosuch")
        (['labeler=function'], ['selector=optune', 'selector=optune_certainty', 'selector=optune_dissimilarity'], [])
    """
    place, _, option = name.partition(".")
    of_place = {group: group for group in groups()} | COLLECTIONS
    choices = [(group, choice) for group, its in of_place.items() if its == place for choice in options_of(group)]
    return [f"{g}={c}" for g, c in choices if any(f"{each}.".startswith(f"{option}.") for each in options_of(g)[c])]


def typed_for(part: object) -> str:
    """Return what is typed for a loss, a weighting, a selector or another part; its class if the menu has none like it.

    Example:
        >>> from choosy.methods.losses import SigmoidLoss
        >>> typed_for(SigmoidLoss(beta=0.3)), typed_for([])
        ('loss=sigmoid', 'list')
    """
    settings = dict(leaves(_built_by(part)))
    for group in (*groups(), "selector"):
        options = options_of(group)
        if group in COLLECTIONS:  # an option of one part, without the name that the part has in it
            alone = {name: option for name, option in options.items() if len(classes(option)) == 1}
            options = {name: {key.partition(".")[2]: v for key, v in own.items()} for name, own in alone.items()}
        if alike := {name: option for name, option in options.items() if option.get(CLASS) == settings[CLASS]}:
            return f"{group}={_nearest(alike, settings, '').name}"
    return type(part).__name__


def _built_by(part: object) -> dict[str, Any]:
    """Return the configuration that builds a part, as far as its attributes are named as its arguments are."""

    def configured(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: configured(each) for name, each in value.items()}
        return _built_by(value) if type(value).__module__.startswith("choosy.methods.") else value

    cls, attributes = type(part), getattr(part, "__dict__", {})
    return {CLASS: f"{cls.__module__}.{cls.__qualname__}", **configured(attributes)}


def classes(settings: Settings) -> dict[str, str]:
    """The parts of a collection, each with its class.

    Example:
        >>> classes({"optune._target_": "a.OPTune", "optune.count": 1, "optune.sampler._target_": "a.S"})
        {'optune._target_': 'a.OPTune'}
    """
    return {name: value for name, value in settings.items() if name.count(".") == 1 and name.endswith(CLASS)}


def option_of_part(settings: Settings) -> Option:
    """Return the option that a part is, by its class and then by its settings; its class if it is none.

    Example:
        >>> option_of_part({"_target_": "choosy.methods.pair_losses.PairLoss", "formula": "ipo", "beta": 0.3}).name
        'ipo'
    """
    cls = settings.get(CLASS)
    if cls == OBJECT:
        return Option(str(settings.get("shown")), {})
    alike = {n: o for group in groups() for n, o in options_of(group).items() if o.get(CLASS) == cls}
    return _nearest(alike, settings, str(cls))


def option_of_collection(group: str, settings: Settings) -> Option:
    """Return the option that the parts of a collection make together; the names of these if they make none.

    Example:
        >>> option_of_collection("selector", {"random_pairs._target_": "callbacks.random.RandomPairs"}).name
        'random_pairs'
    """
    wanted = {*classes(settings).values()}
    alike = {n: option for n, option in options_of(group).items() if {*classes(option).values()} == wanted}
    return _nearest(alike, settings, "+".join(name.removesuffix(f".{CLASS}") for name in classes(settings)) or "none")


def collection(group: str, settings: Settings) -> Settings:
    """The settings of those callbacks, or loggers, that options of a group have; of a selector of the user's too."""
    inside = within(COLLECTIONS[group], settings)
    known = {cls for option in options_of(group).values() for cls in classes(option).values()}

    def belongs(cls: str) -> bool:
        is_own = cls not in part_names() and group == "selector"
        return cls in known or (is_own and (cls == OBJECT or has_method(cls, CHOOSES)))

    names = tuple(name.removesuffix(CLASS) for name, cls in classes(inside).items() if belongs(cls))
    return {name: value for name, value in inside.items() if name.startswith(names)} if names else {}


def within(part: str, settings: Settings) -> Settings:
    """The settings of a part, by their names in it.

    Example:
        >>> within("loss", {"loss.beta": 0.1, "lr": 1})
        {'beta': 0.1}
    """
    return {name.removeprefix(f"{part}."): v for name, v in settings.items() if name.startswith(f"{part}.")}


def _nearest(options: Mapping[str, Settings], settings: Settings, otherwise: str) -> Option:
    """The option that agrees with most of the settings; a name, such as a formula, must agree."""

    def agreed(option: str) -> tuple[bool, int]:
        named = [key for key, value in options[option].items() if isinstance(value, str) and "${" not in value]
        equal = {key for key, value in options[option].items() if settings.get(key) == value}
        return equal.issuperset(named), len(equal)

    name = max(options, key=agreed, default=otherwise)
    return Option(name, options.get(name, {}))
