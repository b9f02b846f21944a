"""YAML as strict as JSON is read: what two readers could take for different things is no value, or an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from looptool_jax.data.files import dump_json, parse_json


def parse_yaml(text: str) -> Any:
    """A YAML document as the JSON value that it stands for. Raises ValueError with a short reason.

    Scalars are those of YAML 1.2's core schema: `no`, dates, `12:30` and `1_000` are texts, `010` is ten. Keys that
    occur twice in one mapping and aliases, which can unfold without end, are refused.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.CSafeLoader)):
            raise ValueError("YAML with aliases (*name) is not read; write the parts out")
        return parse_json(dump_json(yaml.load(text, Loader=_Loader)))
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dump_yaml(value: Any) -> str:
    """A JSON value as YAML that `parse_yaml` reads back, and readers of YAML 1.1 too."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Puts texts in quotes that either version of YAML takes for another value."""


class _Loader(yaml.CSafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        key: [(tag, form) for tag, form in pairs if tag.rpartition(":")[2] in ("null", "merge")]
        for key, pairs in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} occurs twice in one mapping", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    if len(text) > 4000:
        raise yaml.constructor.ConstructorError(None, None, "an integer of more than 4000 digits", node.start_mark)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
for _kind, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     "-+.0123456789"),
):  # fmt: skip
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_form})\Z"), list(_first))
