"""Describe YAML configs as a JSON Schema, for editors: every key, component and option."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Any

from pydantic.json_schema import models_json_schema

from segue.core.config import PipelineConfig
from segue.core.config_files import DROP
from segue.core.plugins import PluginHost
from segue.core.records import PluginRecord

Schema = dict[str, Any]

#: The key that holds a component, by the schema it lies in → the component's kind.
SLOTS = {
    ("PipelineConfig", "semantic_tokenizer"): "semantic_tokenizer",
    ("PipelineConfig", "codec"): "codec",
    ("StageConfig", "lm"): "stage_lm",
}


def config_schema(host: PluginHost) -> Schema:
    """Return the JSON Schema (draft 2020-12) of a pipeline's YAML file.

    A file may extend another one and name only what differs, so nothing is required here; what a
    whole config needs is checked by `segue config validate`.

    Raises:
        PluginError: if the options of a component cannot be imported.
    """
    records = [record for record in host.records() if record.kind in SLOTS.values()]
    models = {record: host.options_model(record) for record in records}
    found: list[Any] = [(PipelineConfig, "validation")]
    found += [(model, "validation") for model in dict.fromkeys(models.values())]
    references, definitions = models_json_schema(found, ref_template="#/$defs/{model}")
    parts: dict[str, Schema] = definitions["$defs"]
    options = {record: references[model, "validation"] for record, model in models.items()}
    for part in parts.values():
        part.pop("required", None)
        _describe(part)
    for record, model in models.items():
        for base in model.__mro__:
            _describe_attributes(parts[options[record]["$ref"].rpartition("/")[2]], base.__doc__)
    for (name, key), kind in SLOTS.items():
        parts[name]["properties"][key] = {"$ref": f"#/$defs/{kind}"}
        parts[kind] = _component(parts["ComponentConfig"], kind, options)
    parts["StageConfig"]["properties"][DROP] = {
        "type": "boolean", "description": "Take this stage out of the config that is extended."
    }  # fmt: skip
    pipeline = parts.pop("PipelineConfig")
    pipeline["properties"]["extends"] = {
        "type": "string", "description": "A domain, DOMAIN/VARIANT or file that this one changes."
    }  # fmt: skip
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A pipeline of Segue",
        **{key: value for key, value in pipeline.items() if key != "title"},
        "$defs": parts,
    }


def _component(base: Schema, kind: str, options: dict[PluginRecord, Schema]) -> Schema:
    """Return the schema of a component: the options that fit depend on ``use``."""
    own = {record: schema for record, schema in options.items() if record.kind == kind}
    names = [
        {"const": record.name, "description": record.summary}
        for record in sorted(own, key=lambda record: record.name)
    ]
    # Any string is allowed: earlier names of components go on working.
    use = {"anyOf": [*names, {"type": "string"}], "description": "The name of a component."}
    choices = [
        {
            "if": {"properties": {"use": {"const": record.name}}, "required": ["use"]},
            "then": {"properties": {"options": schema}},
        }
        for record, schema in own.items()
    ]
    properties = base["properties"] | {"use": use, "options": {"type": "object"}}
    return {**base, "title": kind.replace("_", " "), "properties": properties, "allOf": choices}


def _describe(part: Schema) -> None:
    """Move what a docstring says of its attributes to the attributes."""
    text = part.get("description", "")
    part["description"] = " ".join(text.partition("Attributes:\n")[0].split())
    _describe_attributes(part, text)


def _describe_attributes(part: Schema, docstring: str | None) -> None:
    """Describe the attributes that a docstring lists, but those that are described already."""
    listed = cleandoc(docstring or "").partition("Attributes:\n")[2]
    for name, words in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE):
        if name in part.get("properties", {}):
            part["properties"][name].setdefault("description", " ".join(words.split()))
