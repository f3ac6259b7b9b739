"""Test the way from a name to a component: options, contracts, failures that name the plugin."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from segue.core import audio
from segue.core.errors import ConfigError, GenerationError, PluginError
from segue.core.hookspecs import hookimpl
from segue.core.options import Options
from segue.core.plugins import PluginHost, default_host, reset_default_host
from segue.core.records import Kind, PluginRecord
from segue.sound import reading

Install = Callable[..., None]
WriteDistribution = Callable[[str, str, str], Path]
WriteRegistry = Callable[[str], Path]


@pytest.fixture
def host(install: Install) -> PluginHost:
    install("good")
    return PluginHost.discover()


@pytest.fixture
def offer(plugin_host: PluginHost, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Register an object as ``kind/offered.v1`` and return what loading it says."""

    def offer(kind: Kind, target: object) -> Any:
        module = ModuleType("segue_offered")
        monkeypatch.setitem(sys.modules, "segue_offered", module)
        module.target = target  # type: ignore[attr-defined]
        record = PluginRecord(kind, "offered.v1", "segue_offered:target", api_version=1)
        return plugin_host.load(record, "part")

    return offer


def test_options_are_validated_without_the_implementation(host: PluginHost) -> None:
    options = host.options("metric", "loudness.v1", {"scale": 2}, "metric.options")
    assert options.model_dump() == {"scale": 2.0, "weights": {}}
    assert "segue_good.model" not in sys.modules


@pytest.mark.parametrize("values", [{"scael": 1}, {"scale": 11}])
def test_wrong_options_are_refused_with_their_path(
    host: PluginHost, values: dict[str, int]
) -> None:
    with pytest.raises(ConfigError) as caught:
        host.options("metric", "loudness.v1", values, "metric.options")
    assert caught.value.place == f"metric.options.{next(iter(values))}"


def test_an_unknown_name_is_refused_at_use(host: PluginHost) -> None:
    with pytest.raises(PluginError) as caught:
        host.options("codec", "x", {}, "codec.options")
    assert caught.value.place == "codec.use"


def test_a_component_without_a_model_takes_no_options(host: PluginHost) -> None:
    assert type(host.options("domain", "speech", {}, "domain.options")) is Options
    with pytest.raises(ConfigError, match=r"^domain\.options\.a: "):
        host.options("domain", "speech", {"a": 1}, "domain.options")


def test_create_builds_from_values_and_from_options(host: PluginHost) -> None:
    built = host.create("metric", "loudness.v1", {"scale": 2}, place="metric")
    assert built.options.scale == 2
    assert host.create("metric", "loudness.v1", built.options, place="m").options is built.options
    with pytest.raises(ConfigError, match=r"^metric\.options\.scael"):
        host.create("metric", "loudness.v1", {"scael": 2}, place="metric")


def test_what_fails_while_building_names_the_plugin(host: PluginHost) -> None:
    with pytest.raises(PluginError) as caught:
        host.create("metric", "loudness.v1", {"weights": {"a": 1}}, place="evaluation")
    assert caught.value.place == "evaluation"
    assert "metric/loudness.v1 of segue-good" in caught.value.problem
    assert "model.py, line " in caught.value.problem
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(PluginError, match="segue-good"):
        host.create("metric", "loudness.v1", {}, 3, place="evaluation")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"target": "no_such_package.model:A"}, "module 'no_such_package'"),
        ({"target": "segue_good.models:A"}, "module 'segue_good.models'"),
        ({"target": "segue_good.model:Loud"}, "report it to dist"),
        ({"target": "segue_broken_import:A", "extra": "w2v"}, "pip install 'dist[w2v]'"),
        (
            {"target": "segue_broken_import:A", "extra": "w2v", "source": "/home/me/registry.yaml"},
            "pip install 'segue[w2v]'",
        ),
        ({"target": "segue_broken_import:A"}, "install what is missing"),
        ({"target": "segue_exits:A"}, "SystemExit: 3"),
    ],
)
def test_what_fails_while_importing_names_the_plugin(
    install: Install, fields: dict[str, str], word: str
) -> None:
    install("good", "broken_import", "exits")
    values: dict[str, Any] = {"source": "dist", "api_version": 1, **fields}
    record = PluginRecord("metric", "a.v1", **values)
    with pytest.raises(PluginError) as caught:
        PluginHost().load(record, "evaluation")
    assert "metric/a.v1 of " in str(caught.value)
    assert word in str(caught.value)
    assert isinstance(caught.value.__cause__, ImportError | AttributeError | SystemExit)


def test_an_options_model_must_be_one(install: Install) -> None:
    install("good")
    record = PluginRecord("codec", "a.v1", "m:A", "segue_good.plugin:STEPS", api_version=1)
    plugin = SimpleNamespace(segue_register=hookimpl(lambda: [record]))
    host = PluginHost()
    host.register(plugin, source="dist")
    with pytest.raises(PluginError, match=r"codec/a\.v1 of dist"):
        host.options("codec", "a.v1", {}, "codec.options")


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("semantic_tokenizer", "SemanticTokenizer"),
        ("codec", "AcousticCodec"),
        ("stage_lm", "StageLM"),
        ("metric", "Metric"),
    ],
)
def test_an_implementation_must_have_its_kinds_base(
    offer: Callable[..., Any], kind: Kind, base: str
) -> None:
    from segue.core import interfaces

    for wrong in (object(), dict, len):
        with pytest.raises(PluginError, match=f"segue.core.interfaces.{base}"):
            offer(kind, wrong)
    with pytest.raises(PluginError, match=r"part: .*does not implement "):
        offer(kind, type("Half", (getattr(interfaces, base),), {}))


def test_a_domain_must_be_a_domain(offer: Callable[..., Any], plugin_host: PluginHost) -> None:
    with pytest.raises(PluginError, match=r"segue\.core\.domain\.Domain"):
        offer("domain", "speech")
    speech = plugin_host.load(plugin_host.find("domain", "speech", "domain"), "domain")
    assert speech.name == "speech"


def test_a_method_must_take_what_the_contract_passes(offer: Callable[..., Any]) -> None:
    from segue.core.interfaces import SemanticTokenizer

    class Deaf(SemanticTokenizer):
        def encode(self, wave):  # type: ignore[no-untyped-def,override]
            return wave

    with pytest.raises(PluginError, match=r"encode\(self, wave, lengths\)"):
        offer("semantic_tokenizer", Deaf)


def test_lifecycle_hooks_are_called_in_the_order_of_registration(plugin_host: PluginHost) -> None:
    calls: list[str] = []

    def plugin(name: str, **marks: bool) -> object:
        mark = hookimpl(**marks)  # type: ignore[call-overload]
        return SimpleNamespace(segue_train_step=mark(lambda step: calls.append(f"{name}{step}")))

    plugin_host.register(plugin("last", trylast=True), source="last")
    for name in ("a", "b", "c"):
        plugin_host.register(plugin(name), source=name)
    plugin_host.register(plugin("first", tryfirst=True), source="first")
    plugin_host.call_hook("segue_train_step", part="codec", step=1, losses={})
    plugin_host.hook.segue_train_step(part="codec", step=2, losses={})
    names = ["first", "a", "b", "c", "last"]
    assert calls == [f"{name}{step}" for step in (1, 2) for name in names]


def test_a_hook_that_fails_names_its_plugin(plugin_host: PluginHost) -> None:
    def stamp(path: Path) -> None:
        raise OSError("disk full")

    quiet = SimpleNamespace(segue_output_written=hookimpl(lambda path: None))
    plugin_host.register(quiet, source="quiet")
    plugin_host.register(SimpleNamespace(segue_output_written=hookimpl(stamp)), source="stamper")
    with pytest.raises(PluginError) as caught:
        plugin_host.call_hook("segue_output_written", path=Path("a.wav"), metadata={})
    assert caught.value.place == "segue_output_written"
    assert "plugin stamper:SimpleNamespace failed: OSError: disk full" in caught.value.problem
    assert f"{__file__}, line " in caught.value.problem


def test_a_hook_may_refuse_on_purpose(plugin_host: PluginHost) -> None:
    def refuse(request: object) -> None:
        raise GenerationError("prompt", "is not allowed", "use another")

    plugin_host.register(SimpleNamespace(segue_before_generate=hookimpl(refuse)))
    with pytest.raises(GenerationError, match="prompt: is not allowed"):
        plugin_host.call_hook("segue_before_generate", pipeline=None, request=None)


def test_a_hook_may_wrap_the_others(plugin_host: PluginHost) -> None:
    calls = []

    @hookimpl(wrapper=True)
    def around(step: int) -> Any:
        calls.append("before")
        result = yield
        calls.append("after")
        return result

    plugin_host.register(SimpleNamespace(segue_train_step=around), source="wrapper")
    inner = hookimpl(lambda step: calls.append("step"))
    plugin_host.register(SimpleNamespace(segue_train_step=inner))
    plugin_host.call_hook("segue_train_step", part="codec", step=1, losses={})
    assert calls == ["before", "step", "after"]


def test_a_hook_that_ends_the_process_is_named(plugin_host: PluginHost) -> None:
    plugin = SimpleNamespace(segue_output_written=hookimpl(lambda path: sys.exit()))
    plugin_host.register(plugin, source="stopper")
    with pytest.raises(PluginError, match="stopper"):
        plugin_host.call_hook("segue_output_written", path=Path("a.wav"), metadata={})


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("segue.core.manager", "PluginHost", "segue.core.plugins"),
        ("segue.core.conformance", "parametrize_with_checks", "segue.testing"),
        ("segue.core.pipeline", "Pipeline", "segue.inference.pipeline"),
        ("segue.core.request", "GenerationRequest", "segue.inference.request"),
    ],
)
def test_old_places_forward_and_warn(old: str, name: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=new) as warned:
        module = import_module(old)
    assert getattr(module, name) is getattr(import_module(new), name)
    assert len(warned) == 1


def test_the_former_reader_of_audio_forwards_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match=r"segue\.sound\.reading"):
        assert audio.read_audio is reading.read_audio


def test_there_is_one_default_host(install: Install) -> None:
    install("good")
    host = default_host()
    assert default_host() is host
    assert [status.source for status in host.statuses()] == ["segue-good"]
    reset_default_host()
    assert default_host() is not host
