"""Test the example package: assembled into both domains by config, and broken in every way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.conftest import TINY, melody

from segue.core.assembly import assemble
from segue.core.checkpoint import load_component, save_component
from segue.core.config_files import load_config
from segue.core.errors import AssemblyError, PluginError
from segue.core.plugins import PluginHost
from segue.inference.pipeline import Pipeline
from segue.training.workspace import Workspace, train_all

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "third_party_plugin"
SWAPS = {
    "semantic_tokenizer.use": "toy_loudness.v1",
    "codec.use": "toy_mdct.v1",
    "stages.semantic.lm.use": "toy_gru.v1",
    "stages.acoustic.lm.use": "toy_gru.v1",
}
COMPONENTS = {
    "toy_loudness.v1": ("semantic_tokenizer", "semantic.py"),
    "toy_mdct.v1": ("codec", "codec.py"),
    "toy_gru.v1": ("stage_lm", "stage_lm.py"),
}
Toy = Callable[..., PluginHost]


@pytest.fixture
def toy(tmp_path: Path, install: Callable[..., None]) -> Toy:
    """A host that sees the example package, with edits: (file, old text, new text)."""

    def build(*edits: tuple[str, str, str], rival: bool = False) -> PluginHost:
        site = tmp_path / "site"
        package = site / "segue_toy"
        shutil.copytree(EXAMPLE / "src" / "segue_toy", package)
        for file, old, new in edits:
            text = (package / file).read_text()
            assert old in text, f"{file} holds no {old!r}"
            (package / file).write_text(text.replace(old, new))
        _describe(site, "segue_toy", "segue_toy.register")
        if rival:
            shutil.copy(package / "register.py", site / "segue_rival.py")
            _describe(site, "segue_rival", "segue_rival")
        install(site)
        return PluginHost.discover()

    return build


def _describe(site: Path, name: str, module: str) -> None:
    info = site / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[segue.plugins]\ntoy = {module}\n")


@pytest.mark.parametrize("domain", ["speech", "piano"])
def test_each_component_enters_each_domain_by_one_line(domain: str, toy: Toy) -> None:
    host = toy()
    for key, name in SWAPS.items():
        config = load_config(f"{domain}/baseline", host, [f"{key}={name}"]).config
        parts = assemble(config, host).parts
        assert parts[key.removesuffix(".use").removesuffix(".lm")].use == name


@pytest.mark.parametrize("domain", ["speech", pytest.param("piano", marks=pytest.mark.slow)])
def test_a_pipeline_of_foreign_parts_trains_and_continues(
    domain: str, toy: Toy, tmp_path: Path, recordings_folder: Path
) -> None:
    host = toy()
    kept = [text for text in TINY if ".options." not in text]
    overrides = [f"{key}={name}" for key, name in SWAPS.items()]
    config = load_config(f"{domain}/baseline", host, [*kept, *overrides]).config
    directory = train_all(Workspace(config, tmp_path / "run", recordings_folder, host))
    pipeline = Pipeline.from_pretrained(directory, host=host)
    result = pipeline.continue_(melody(1.0, seed=1), 16_000, seconds=0.4)
    assert result.continuation().shape[0] == 0.4 * 16_000
    assert torch.isfinite(result.wave).all()


def use_of(host: PluginHost, name: str) -> PluginError:
    """The error when a component is asked for; everything else must still work."""
    kind, _ = COMPONENTS[name]
    load_config("speech/baseline", host)
    with pytest.raises(PluginError) as caught:
        host.load(host.find(kind, name, kind), kind)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("name", COMPONENTS)
def test_an_import_error_in_one_component_is_told_when_it_is_asked_for(name: str, toy: Toy) -> None:
    _, file = COMPONENTS[name]
    host = toy((file, "from segue_toy.config", "import no_such_module\nfrom segue_toy.config"))
    assert {record.name for record in host.records()} >= set(COMPONENTS)
    assert "no_such_module" in str(use_of(host, name))
    for other in set(COMPONENTS) - {name}:
        kind, _ = COMPONENTS[other]
        assert host.load(host.find(kind, other, kind), kind)  # type: ignore[arg-type]


def test_an_import_error_in_the_register_module_is_reported_and_not_fatal(toy: Toy) -> None:
    host = toy(
        ("register.py", "from segue.core.records", "import no_such\nfrom segue.core.records")
    )
    (status,) = [s for s in host.statuses() if s.source == "segue-toy"]
    assert (status.state, "no_such" in status.error) == ("broken", True)
    error = use_of(host, "toy_mdct.v1")
    assert "no_such" in str(error)
    assert "segue-toy" in str(error)


def test_a_missing_plugin_is_named_with_the_package_to_install(
    toy: Toy, tmp_path: Path, tiny_pipelines: dict[str, Path]
) -> None:
    host = toy()
    saved = tmp_path / "codec"
    saved.mkdir()
    codec = host.create("codec", "toy_mdct.v1", {}, place="codec")
    save_component(codec, saved, "codec", "toy_mdct.v1", {})
    text = (saved / "component.json").read_text()
    assert '"distribution": "segue-toy"' in text.replace("_", "-")
    assert '"version": "0.1.0"' in text
    without = PluginHost.discover(entry_points=False)
    used = ["codec.use=toy_mdct.v1", f"codec.checkpoint={saved}"]
    for more in (["codec.options={}"], ["codec.options={num_levels: 6}"]):
        with pytest.raises(PluginError, match=r"segue.toy==0\.1\.0: install that package"):
            config = load_config(tiny_pipelines["speech"], without, [*used, *more]).config
            assemble(config, without)
    with pytest.raises(PluginError, match=r"segue.toy==0\.1\.0"):
        load_component(saved, without, "codec")


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_bad_signature_is_told_with_the_component(name: str, toy: Toy) -> None:
    _, file = COMPONENTS[name]
    edits = {
        "toy_loudness.v1": ("def encode(self, wave: Tensor, lengths: Tensor)", "def encode(self)"),
        "toy_mdct.v1": (
            "def decode(self, codes: Tensor, lengths: Tensor)",
            "def decode(self, codes)",
        ),
        "toy_gru.v1": ("def score(self, batch: StageBatch)", "def score(self)"),
    }
    old, new = edits[name]
    error = use_of(toy((file, old, new)), name)
    assert name in str(error)
    assert error.fix


def test_a_hook_with_a_bad_signature_is_reported_and_not_fatal(toy: Toy) -> None:
    host = toy(
        (
            "register.py",
            "def segue_register()",
            "def segue_register(nonsense)",
        )
    )
    (status,) = [s for s in host.statuses() if s.source == "segue-toy"]
    assert status.state == "broken"
    assert "nonsense" in status.error


@pytest.mark.parametrize("name", COMPONENTS)
def test_another_api_version_is_refused_with_both_numbers(name: str, toy: Toy) -> None:
    host = toy(("register.py", "api_version=1", "api_version=2"))
    assert "needs plugin API 2, this host speaks 1" in str(use_of(host, name))


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_name_clash_names_every_claimant_and_a_pin_settles_it(
    name: str, toy: Toy, tmp_path: Path
) -> None:
    host = toy(rival=True)
    kind, _ = COMPONENTS[name]
    with pytest.raises(PluginError) as caught:
        host.find(kind, name, kind)  # type: ignore[arg-type]
    assert "segue-toy" in str(caught.value)
    assert "segue-rival" in str(caught.value)
    registry = tmp_path / "pins.yaml"
    registry.write_text(f"api_version: 1\npins:\n  {kind}/{name}: segue-rival\n")
    pinned = PluginHost.discover(registry=registry)
    assert pinned.find(kind, name, kind).source == "segue-rival"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edit", "overrides", "words"),
    [
        (("Fraction(25)", "Fraction(20)"), ["semantic_tokenizer.use=toy_loudness.v1"],
         ["semantic_tokenizer 20", "codec emits 50", "no whole ratio"]),
        (("Fraction(50)", "Fraction(40)"), ["codec.use=toy_mdct.v1"],
         ["codec emits 40", "semantic_tokenizer 25", "no whole ratio"]),
        (("Fraction(50)", "Fraction(51)"), ["codec.use=toy_mdct.v1"],
         ["codec", "51 frames/s do not divide"]),
        (("", ""), ["codec.use=toy_mdct.v1", "stages.acoustic.predicts=acoustic[0:30]"],
         ["level 30", "codec emits 6"]),
        (("", ""), ["codec.use=toy_mdct.v1", "stages.acoustic.predicts=acoustic[2:6]"],
         ["no stage predicts level 0 of the 6"]),
    ],
)  # fmt: skip
def test_wrong_rates_and_levels_are_refused(
    edit: tuple[str, str], overrides: list[str], words: list[str], toy: Toy
) -> None:
    host = toy(("config.py", *edit))
    with pytest.raises(AssemblyError) as caught:
        assemble(load_config("speech/baseline", host, overrides).config, host)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("swap", "place"),
    [
        ("semantic_tokenizer.use=toy_loudness.v1", "stages.semantic"),
        ("codec.use=toy_mdct.v1", "stages.acoustic"),
    ],
)
def test_a_wrong_vocabulary_is_refused_before_weights_load(
    swap: str, place: str, toy: Toy, tiny_pipelines: dict[str, Path]
) -> None:
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_pretrained(tiny_pipelines["speech"], overrides=[swap], host=toy())
    assert caught.value.place == place
