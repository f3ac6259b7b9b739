"""`segue config schema`: what editors are told agrees with what Segue accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.apps.conftest import Segue

from segue.apps.config_schema import config_schema
from segue.core.plugins import PluginHost

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "plugins" / "domains").glob("*/*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = config_schema(PluginHost.discover(entry_points=False))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_config_of_ours_is_valid(validator: Any) -> None:
    assert len(CONFIGS) > 10
    for path in CONFIGS:
        validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text, place",
    [
        ("nane: x", []),
        ("codec: {use: spectral_codec.v1, options: {depht: 3}}", ["codec", "options"]),
        ("codec: {use: spectral_codec.v1, options: {num_levels: many}}",
         ["codec", "options", "num_levels"]),
        ("stages: [{name: a, lm: {use: flat_transformer.v1, options: {widht: 3}}}]",
         ["stages", 0, "lm", "options"]),
        ("stages: [{name: a, lm: {use: flat_transformer.v1, options: {size: huge}}}]",
         ["stages", 0, "lm", "options", "size"]),
        ("codec: {training: {steps: -1}}", ["codec", "training", "steps"]),
        ("prompt: {max_seconds: long}", ["prompt", "max_seconds"]),
    ],
)  # fmt: skip
def test_mistakes_are_found_where_they_are(validator: Any, text: str, place: list[Any]) -> None:
    (error,) = validator.iter_errors(yaml.safe_load(text))
    assert list(error.absolute_path) == place


def test_options_of_unknown_components_and_layers_are_left_alone(validator: Any) -> None:
    for text in (
        "codec: {use: mine.v1, options: {anything: 1}}",
        "extends: speech\nstages: [{name: fine, drop: true}]",
    ):
        validator.validate(yaml.safe_load(text))


def test_the_schema_describes_keys_and_components(validator: Any) -> None:
    parts = validator.schema["$defs"]
    assert "peak of the schedule" in str(parts["TrainingConfig"]["properties"]["learning_rate"])
    # An option that several components inherit is described by the class that has it.
    assert "channels of the residual" in str(parts["FlatTransformerOptions"]["properties"]["width"])
    # A docstring may describe several keys at once, and a class inside an option's own.
    assert "training.lora" in str(parts["LoraOptions"]["properties"]["alpha"])
    assert "discriminators" in str(parts["SpectralLossWeights"]["properties"]["adversarial"])
    named = parts["stage_lm"]["properties"]["use"]["anyOf"]
    assert {"flat_transformer.v1", "delay_transformer.v1"} <= {one.get("const") for one in named}
    assert all(one["description"] for one in named if "const" in one)


def test_every_key_is_described(validator: Any) -> None:
    parts = {"PipelineConfig": validator.schema, **validator.schema["$defs"]}
    keys = [(name, *one) for name, part in parts.items() for one in part["properties"].items()]
    assert [(name, key) for name, key, schema in keys if not schema.get("description")] == []


def test_the_command_prints_or_writes_it(segue: Segue) -> None:
    assert segue("config", "schema").json["title"] == "A pipeline of Segue"
    done = segue("config", "schema", "-o", "s.json")
    assert (done.code, done.out, done.new) == (0, "s.json\n", ["s.json"])
