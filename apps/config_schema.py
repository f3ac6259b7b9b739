"""Describe YAML configs as a JSON Schema, for editors: every key, component and option."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core.core_schema import ModelSchema

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

#: An entry of a docstring's list of attributes: a name, or several, and what it says of them.
_ATTRIBUTES = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", re.MULTILINE)


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
    references, definitions = models_json_schema(
        found, ref_template="#/$defs/{model}", schema_generator=_Described
    )
    parts: dict[str, Schema] = definitions["$defs"]
    options = {record: references[model, "validation"] for record, model in models.items()}
    for part in parts.values():
        part.pop("required", None)
    for (name, key), kind in SLOTS.items():
        slot = parts[name]["properties"]
        slot[key] = {"$ref": f"#/$defs/{kind}", "description": slot[key]["description"]}
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
    use = {**base["properties"]["use"], "anyOf": [*names, {"type": "string"}]}
    choices = [
        {
            "if": {"properties": {"use": {"const": record.name}}, "required": ["use"]},
            "then": {"properties": {"options": schema}},
        }
        for record, schema in own.items()
    ]
    properties = base["properties"] | {"use": use}
    return {**base, "title": kind.replace("_", " "), "properties": properties, "allOf": choices}


class _Described(GenerateJsonSchema):
    """Describe the keys of a model as its docstring does, or that of the class they come from."""

    def model_schema(self, schema: ModelSchema) -> Schema:
        part = super().model_schema(schema)
        text = part.get("description", "")
        part["description"] = " ".join(text.partition("Attributes:\n")[0].split())
        for base in schema["cls"].__mro__:
            listed = cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
            for names, words in _ATTRIBUTES.findall(listed):
                for name in names.split(", "):
                    if name in part["properties"]:
                        part["properties"][name].setdefault("description", " ".join(words.split()))
        return part
