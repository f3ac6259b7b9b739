"""Test that wrong values are reported under their full path, with a fix."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from segue.core.errors import ConfigError, PluginError
from segue.core.options import Options
from segue.core.validation import refusal, suggestion, validate


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Model(Strict):
    depth: int = Field(default=2, ge=1, le=64)
    rate: float = 0.5
    norm: Literal["layer", "rms"] = "layer"
    label: str | int = "a"


class Stage(Strict):
    name: str = Field(min_length=2)
    lm: Model = Model()
    given: tuple[str, ...] = ()

    @field_validator("given")
    @classmethod
    def _given_is_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "future" in value:
            raise ValueError("'future' is not known yet; give the past")
        return value


class Config(Strict):
    title: str
    model: Model | None = None
    stages: tuple[Stage, ...] = ()
    by_name: dict[str, Model] = {}
    betas: tuple[float, float] = (0.0, 1.0)

    @field_validator("title")
    @classmethod
    def _title_is_allowed(cls, value: str) -> str:
        with refusal():
            if value == "forbidden":
                raise PluginError("ignored", "the title is taken", "choose another")
        if value == "raises":
            raise PluginError("title", "the title is taken", "choose another")
        return value


def complaint(values: dict[str, object], place: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Config, {"title": "t"} | values, place)
    return str(caught.value)


def test_right_values_give_the_model() -> None:
    config = validate(Config, {"title": "t", "stages": [{"name": "coarse"}]}, "")
    assert config == Config(title="t", stages=(Stage(name="coarse"),))


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"modle": {}}, "modle: unknown key; did you mean 'model'?"),
        ({"model": {"depht": 3}}, "model.depht: unknown key; did you mean 'depth'?"),
        ({"by_name": {"a": {"depht": 3}}}, "by_name.a.depht: unknown key; did you mean 'depth'?"),
        ({"model": {"zzz": 3}}, "model.zzz: unknown key; use one of depth, label, norm, rate"),
        (
            {"stages": [{"name": "ab"}, {"name": "cd", "lm": {"rat": 1}}]},
            "stages.cd.lm.rat: unknown key; did you mean 'rate'?",
        ),
        ({"stages": [{"lm": {}}]}, "stages.0.name: is missing"),
        (
            {"model": {"depth": 65}},
            "model.depth: 65 is out of range; it should be less than or equal to 64",
        ),
        ({"model": {"depth": "deep"}}, "model.depth: is 'deep'; it should be a valid integer"),
        ({"model": {"rate": []}}, "model.rate: is []; it should be a valid number"),
        ({"model": {"norm": "rmss"}}, "model.norm: is 'rmss'; did you mean 'rms'? it should be "),
        ({"model": {"label": []}}, "model.label: is []; it should be a valid string"),
        ({"model": 3}, "model: is 3; write a mapping of keys to values"),
        ({"betas": [1, "x"]}, "betas.1: is 'x'; it should be a valid number"),
        ({"betas": [1]}, "betas.1: is missing; add it"),
        ({"betas": [1, 2, 3]}, "betas: is [1, 2, 3]; it should have at most 2 items"),
        ({"stages": [{"name": "a"}]}, "stages.a.name: is 'a'; "),
        (
            {"stages": [{"name": "ab", "given": ["future"]}]},
            "stages.ab.given: 'future' is not known yet; give the past",
        ),
        ({"title": None}, "title: is empty; it should be a valid string"),
        ({"title": "forbidden"}, "title: the title is taken; choose another"),
    ],
)
def test_a_wrong_value_is_reported_with_path_and_fix(values: dict[str, object], start: str) -> None:
    assert complaint(values).startswith(start)


def test_the_place_goes_in_front() -> None:
    assert complaint({"modle": 1}, "codec.options").startswith("codec.options.modle: unknown")


def test_all_wrong_values_are_listed_unknown_keys_first() -> None:
    text = complaint({"model": {"depth": 0, "rate": "x", "nrom": "rms"}})
    assert [part.split(":")[0] for part in text.split(" | also ")] == [
        "model.nrom",
        "model.depth",
        "model.rate",
    ]


@pytest.mark.parametrize("values", [None, [], "speech", 3])
def test_values_that_are_no_mapping_are_refused(values: object) -> None:
    with pytest.raises(ConfigError, match=r"config: is .*mapping"):
        validate(Config, values, "")


def test_an_error_of_segue_keeps_its_class() -> None:
    with pytest.raises(PluginError, match=r"^pipeline\.title: the title is taken"):
        validate(Config, {"title": "raises"}, "pipeline")


def test_suggestion_without_anything_known() -> None:
    assert suggestion("a", []) == "take it out"


def test_defaults_of_options_are_checked_as_values_are() -> None:
    """An author's slip is named where the options are read, not deep in the network."""

    class Wrong(Options):
        width: int = Field(default=0, ge=1)

    with pytest.raises(ConfigError) as caught:
        validate(Wrong, {}, "lm.options")
    assert str(caught.value).startswith("lm.options.width: 0 is out of range")
    assert validate(Wrong, {"width": 2}, "lm.options").width == 2
