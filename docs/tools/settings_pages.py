"""Reference pages of the settings, from the dataclasses that check them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from docs.tools.markdown import prose, table
from magnet.presets import PRESETS
from service.settings.field_docstrings import read_field_docstrings
from service.settings.score import ScoreSettings
from service.settings.service import ServiceSettings
from service.settings.train import TrainSettings
from service.settings.tune import SearchSettings

PAGES: dict[str, tuple[str, type, str]] = {
    "settings-training": (
        "Training settings",
        TrainSettings,
        "Keys of the YAML file of `--config`, and of `--set KEY=VALUE`, for training, tuning, pretraining "
        "and planning. "
        "`model` and `recipe` start from a [preset](../explanation/presets.md). The first default is that of the "
        "default preset, `evidence`; where `paper` differs, its value follows.",
    ),
    "settings-search": (
        "Search settings",
        SearchSettings,
        "Keys of the YAML file of `tune.py --search`, and of `--search-set KEY=VALUE`.",
    ),
    "settings-scoring": (
        "Scoring settings",
        ScoreSettings,
        "Keys of the YAML file of `score.py --config`, and of `--set KEY=VALUE`.",
    ),
    "settings-service": (
        "Service settings",
        ServiceSettings,
        "Keys of `service.yaml`, which `magnet serve` keeps in its storage folder and `magnet api` and `magnet "
        "dispatch` take with `--config`; `--set KEY=VALUE` changes a setting.",
    ),
}
"""Title, root dataclass and introduction of each page, by the page's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting as its page shows it."""

    key: str
    """Dotted key, as it is written after ``--set``."""
    kind: str
    """Type, in the words of YAML."""
    default: Any
    """Default value; `dataclasses.MISSING` where a value is required."""
    meaning: str
    """Docstring of the field."""


def settings_page(name: str) -> str:
    """Return the page of one group of settings, with one table for each dataclass.

    Args:
        name: Key of `PAGES`.
    """
    title, root, introduction = PAGES[name]
    overrides = _flat(PRESETS["evidence"]) if root is TrainSettings else {}
    lines = [
        f"# {title}",
        "",
        introduction,
        "",
        "Unknown keys and values out of range are refused before anything runs.",
    ]
    for key, kind in groups(root):
        rows = [(f"`{s.key}`", s.kind, _shown(s, overrides), prose(s.meaning)) for s in own_settings(kind, key)]
        if rows:
            lines += ["", f"## {key or 'Top level'}", "", _first_paragraph(kind), ""]
            lines += table(("setting", "type", "default", "meaning"), rows)
    return "\n".join(lines) + "\n"


def groups(root: type, key: str = "") -> Iterator[tuple[str, type]]:
    """Yield the dataclasses of a settings tree with their dotted keys, the root first."""
    yield key, root
    hints = typing.get_type_hints(root)
    for field in dataclasses.fields(root):
        for kind, suffix in _dataclasses_in(hints[field.name]):
            yield from groups(kind, f"{key}.{field.name}{suffix}".lstrip("."))


def own_settings(kind: type, key: str) -> list[Setting]:
    """Return the settings of one dataclass, without those of the dataclasses in its fields.

    Args:
        kind: The dataclass.
        key: Its dotted key, empty for the root.
    """
    hints, docs = typing.get_type_hints(kind), read_field_docstrings(kind)
    prefix = f"{key}." if key else ""
    return [
        Setting(
            key=prefix + field.name,
            kind=_type_name(hints[field.name]),
            default=field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
            meaning=docs.get(field.name, ""),
        )
        for field in dataclasses.fields(kind)
        if not (dataclasses.is_dataclass(hints[field.name]) and field.default_factory is not dataclasses.MISSING)
    ]


def _dataclasses_in(hint: Any) -> Iterator[tuple[type, str]]:
    """Yield the dataclasses that a field's type names, with what their keys have more than the field's name."""
    if dataclasses.is_dataclass(hint):
        yield typing.cast(type, hint), ""
        return
    suffix = {tuple: "[]", dict: ".NAME"}.get(typing.get_origin(hint), "")
    for argument in typing.get_args(hint):
        if dataclasses.is_dataclass(argument):
            yield typing.cast(type, argument), suffix


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else _type_name(argument) for argument in arguments)
    if origin is tuple:
        variable = arguments[-1] is Ellipsis
        return f"list of {_type_name(arguments[0])}" if variable else f"{len(arguments)} of {_type_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(hint) or "settings below"


def _shown(setting: Setting, overrides: Mapping[str, Any]) -> str:
    if setting.default is dataclasses.MISSING:
        return "required"
    if setting.key in overrides and overrides[setting.key] != setting.default:
        return f"{_value(overrides[setting.key])}; paper {_value(setting.default)}"
    return _value(setting.default)


def _value(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    if dataclasses.is_dataclass(value):
        return "see below"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value != {} else "`{}`"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _first_paragraph(kind: type) -> str:
    return prose(re.split(r"\n\s*\n", inspect.getdoc(kind) or "")[0])
