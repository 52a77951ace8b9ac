"""Reading of settings: YAML files and ``KEY=VALUE`` overrides become checked dataclasses.

All kinds of settings are read by these functions, so that they have the same syntax and the same error messages in a
YAML file, on the command line, in an HTTP request and in a worker. An unknown key is an error: a misspelt setting must
not fall back to its default silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from service import storage
from service.errors import UsageError

Settings = TypeVar("Settings")

EXPECTED = {
    "bool": "true or false",
    "dataclass": "a group of settings",
    "dict": "a group of settings",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "string": "a text",
    "tuple": "a list",
}
"""What a value must be, by the first word of pydantic's error type."""


class SettingsError(UsageError):
    """Settings are unknown or out of range. The user must correct them; a retry does not help."""


def read_values(config_uri: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Read a YAML file and apply overrides to it, without checking keys or values.

    Args:
        config_uri: path or URI of a YAML file; None for no file.
        overrides: texts of the form ``KEY=VALUE``, where nested keys are joined by dots and the value is YAML.

    Raises:
        SettingsError: if the file or an override has the wrong form.
    """
    values = _read_yaml(config_uri) if config_uri else {}
    for override in overrides:
        _apply_override(values, override)
    return values


def parse(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Convert nested values to settings and check them.

    Args:
        kind: dataclass of the settings.
        values: settings as YAML or JSON holds them.
        where: source of the values, for error messages.

    Raises:
        SettingsError: with one line for each wrong key or value.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [f"  {_describe(details, kind)}" for details in error.errors()]
        noun = "wrong setting" if len(lines) == 1 else "wrong settings"
        raise SettingsError("\n".join([f"{where}: {len(lines)} {noun}", *lines])) from error


def to_dict(settings: object) -> dict[str, Any]:
    """Convert settings to plain values that JSON and YAML can hold; `parse` reads them back."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys. Lists become texts such as "3,2", as MLflow's parameters need them."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return result


def merge_settings(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `base` with `changes` applied, group by group."""
    result = deepcopy(dict(base))
    for key, value in changes.items():
        both_are_groups = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge_settings(result[key], value) if both_are_groups else value
    return result


class _Yaml(yaml.SafeLoader):
    """Loader that reads on, off, yes and no as texts, as YAML 1.2 does: some settings have the values on and off."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(uri: str) -> dict[str, Any]:
    try:
        values = yaml.load(storage.read_bytes(uri), _Yaml)
    except yaml.YAMLError as error:
        raise SettingsError(f"{uri}: is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{uri}: holds a {type(values).__name__}; write one setting per line, as KEY: VALUE")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"override {override!r}: write KEY=VALUE, for example recipe.epochs=5")
    *groups, last = key.split(".")
    for depth, name in enumerate(groups, start=1):
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            group = ".".join(groups[:depth])
            raise SettingsError(f"override {override!r}: {group} is a single value, not a group of settings")
    try:
        values[last] = yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise SettingsError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _describe(details: Any, kind: type) -> str:
    """Return one line that says which setting is wrong, why, and what to write instead."""
    key = ".".join(map(str, details["loc"]))
    error, message = details["type"], str(details["msg"]).removeprefix("Value error, ")
    value = "null" if details["input"] is None else repr(details["input"])
    if error == "unexpected_keyword_argument":
        return f"{key}: unknown setting{_suggest(key, kind)}"
    if error == "value_error":
        # The checks of a dataclass name their field first ("epochs = 0: ..."): add the group before it.
        separator = "." if " = " in message.partition(":")[0] else ": "
        return f"{key}{separator}{message}" if key else message
    if error.startswith("missing"):
        return f"{key}: is required"
    if error == "literal_error":
        return f"{key} = {value}: must be {details['ctx']['expected']}"
    expected = EXPECTED.get(error.partition("_")[0])
    return f"{key or 'settings'} = {value}: {f'must be {expected}' if expected else message}"


def _suggest(key: str, kind: type) -> str:
    """Return a hint at the setting that a user probably meant; empty if none is similar."""
    known = list(_list_keys(kind))
    # Numbers are positions in a list, which the list of known keys does not have.
    plain = ".".join(part for part in key.split(".") if not part.isdigit())
    # A frequent mistake is the right name in the wrong group, such as epochs in place of recipe.epochs.
    name = plain.rpartition(".")[2]
    similar = [k for k in known if k.rpartition(".")[2] == name] or get_close_matches(plain, known, n=1, cutoff=0.75)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def _list_keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all settings of a dataclass, those of nested dataclasses included."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        yield f"{prefix}{field.name}"
        for part in (hints[field.name], *get_args(hints[field.name])):
            if is_dataclass(part):
                yield from _list_keys(part, f"{prefix}{field.name}.")
