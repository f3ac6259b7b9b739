"""The Hugging Face stage model: conformance, warm start, adapters, refusals."""

# ruff: noqa: E402 (what comes after importorskip needs the extra)

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

from segue.core.assembly import Part, resolve_part
from segue.core.checkpoint import load_component, load_state, save_component
from segue.core.config import ComponentConfig, Slot, TrainingConfig
from segue.core.errors import AssemblyError, ConfigError, SegueError
from segue.core.interfaces import StageBatch, Tokens
from segue.core.options import Decoding, Sampling
from segue.core.plugins import default_host
from segue.core.sampling import row_generators
from segue.core.spec import StageSpec
from segue.plugins.layers.drawing import Drawer
from segue.plugins.models.hf_causal import source
from segue.plugins.models.hf_causal.config import HfCausalOptions
from segue.plugins.models.hf_causal.model import HfCausalLM
from segue.testing import TINY_STAGES, Check, Subject, parametrize_with_checks
from segue.training.adaptation import adapt, adapters, load_plain, plain_state
from segue.training.learner import Learner, make_optimizer

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 16,
    "vocab_size": 50,
    "max_position_embeddings": 128,
}
NEOX = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {"model_type": "gpt_neox"}
ARCHITECTURES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 8},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 6},
    "opt": OPT,
    "gpt_neox": NEOX,
}
LORA = {"rank": 2, "alpha": 8.0}
FIRST, SECOND, THIRD = TINY_STAGES.values()
GREEDY = Sampling(temperature=0)

SUBJECTS = [
    Subject("stage_lm", "hf_causal.v1", {"architecture": values}, stage)
    for values in (LLAMA, GPT2)
    for stage in TINY_STAGES.values()
]
for subject, kind in zip(SUBJECTS, ["llama"] * 3 + ["gpt2"] * 3, strict=True):
    subject.label = f"{kind}-{subject.stage.name}"
#: Llama's layers turn positions, GPT-2's add them.
FAST = [subject for subject in SUBJECTS if subject.label in ("llama-second", "gpt2-first")]
SLOW = [subject for subject in SUBJECTS if subject not in FAST]


@parametrize_with_checks(FAST)
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks(SLOW)
def test_conformance_of_others(subject: Subject, check: Check) -> None:
    check(subject)


def build(stage: StageSpec = SECOND, spread: float = 0.0, **options: Any) -> HfCausalLM:
    torch.manual_seed(0)
    model = HfCausalLM(HfCausalOptions(**options), stage).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def batch_for(stage: StageSpec, *lengths: int, seed: int = 0) -> StageBatch:
    generator = torch.Generator().manual_seed(seed)

    def rows(codes: int, levels: int, counts: list[int]) -> Tokens:
        shape = (len(counts), levels, max(counts))
        return Tokens(torch.randint(codes, shape, generator=generator), torch.tensor(counts))

    given = []
    for index, spec in enumerate(stage.given):
        rate = stage.frames_per_target_frame(index)
        counts = [-(-n * rate.numerator // rate.denominator) for n in lengths]
        given.append(rows(spec.codebook_size, spec.num_levels, counts))
    target = rows(stage.target.codebook_size, stage.target.num_levels, list(lengths))
    return StageBatch(target, tuple(given))


def trained(model: HfCausalLM, batch: StageBatch, steps: int) -> float:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(batch).total
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    model.eval()
    return float(loss.detach())


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """A directory with a text model, as ``save_pretrained`` writes it."""
    torch.manual_seed(1)
    values = {key: value for key, value in LLAMA.items() if key != "model_type"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(5).add_(1)
    model.save_pretrained(tmp_path / "text")
    return tmp_path / "text"


def saved(model: HfCausalLM, directory: Path) -> Path:
    directory.mkdir()
    save_component(model, directory, "stage_lm", "hf_causal.v1", {})
    return directory


def test_a_resolved_config_agrees_with_the_checkpoint_trained_from_it(
    text_model: Path, tmp_path: Path
) -> None:
    directory = saved(build(pretrained=str(text_model)), tmp_path / "saved")
    resolved = HfCausalOptions(pretrained=str(text_model)).model_dump(mode="json")
    assert resolved["pretrained_architecture"] is None

    def part(**options: object) -> Part:
        chosen = {"use": "hf_causal.v1", "options": resolved | options}
        component = ComponentConfig(**chosen, checkpoint=str(directory))
        slot = Slot("stages.it", "stage_lm", "stages.it.lm", component)
        return resolve_part(slot, default_host())

    assert part().options.pretrained_architecture["model_type"] == "llama"  # type: ignore[attr-defined]
    with pytest.raises(AssemblyError, match=r"options\.pretrained: is 'other'"):
        part(pretrained="other")


def loaded(directory: Path) -> HfCausalLM:
    model = load_component(directory, default_host(), "lm")
    assert isinstance(model, HfCausalLM)
    return model


def uncached_logits(model: HfCausalLM, given: tuple[Tokens, ...], target: Tokens) -> torch.Tensor:
    """``[1, N, Q, V]`` of one row, in one pass without padding."""
    levels, frames = target.ids.shape[1:]
    x, _ = model.tokens(given, target, left=False)
    hidden = model.backbone(x)[:, -1 - levels * frames : -1].unflatten(1, (frames, levels))
    return torch.einsum("bnqd,qdv->bnqv", hidden, model.heads.weight)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_cached_logits_equal_uncached_ones(
    kind: str, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(THIRD, 0.1, architecture=ARCHITECTURES[kind], condition_dropout=0.5)
    known, frames = (3, 0, 2), 4
    batch = batch_for(THIRD, *[count + frames for count in known])
    prompt = Tokens(batch.target.ids, torch.tensor(known))
    seen: list[torch.Tensor] = []
    draw = Drawer.draw

    def spy(self: Drawer, logits: torch.Tensor, level: int) -> torch.Tensor:
        seen.append(self.guide(logits))
        return draw(self, logits, level)

    monkeypatch.setattr(Drawer, "draw", spy)
    rows = row_generators(0, len(known))
    new = model.generate(batch.given, prompt, frames, Sampling(guidance=guidance), rows)
    stepwise = torch.stack(seen, dim=1).unflatten(1, (frames, -1))
    whole = prompt.append(new)
    for row, start in enumerate(known):
        target = Tokens.full(whole.row(row)[None])
        given = tuple(Tokens.full(tokens.row(row)[None]) for tokens in batch.given)
        nothing = tuple(Tokens(t.ids[:, :, :0], torch.zeros_like(t.lengths)) for t in given)
        blind = uncached_logits(model, nothing, target)
        logits = blind + guidance * (uncached_logits(model, given, target) - blind)
        torch.testing.assert_close(stepwise[row], logits[0, start:], atol=2e-4, rtol=1e-4)


def test_a_text_model_is_where_it_starts_from(text_model: Path) -> None:
    model = build(pretrained=str(text_model))
    text = transformers.AutoModelForCausalLM.from_pretrained(text_model)
    taken = model.backbone.model.state_dict()
    for name, tensor in text.model.state_dict().items():
        if name != "embed_tokens.weight":
            torch.testing.assert_close(taken[name], tensor, atol=0, rtol=0)
    rows = text.get_input_embeddings().weight.detach()
    codes = model.tokens.target.table.weight.detach()
    assert abs(float(codes.mean() - rows.mean())) < 0.05
    assert abs(float(codes.std() - rows.std())) < 0.05


def test_a_checkpoint_needs_the_text_model_no_more(text_model: Path, tmp_path: Path) -> None:
    model = build(pretrained=str(text_model))
    assert model.config.pretrained == str(text_model)
    again = build(pretrained=str(text_model))
    assert again.config == model.config, "training could not be resumed"
    directory = saved(model, tmp_path / "stage")
    shutil.rmtree(text_model)
    batch = batch_for(SECOND, 5, 3)
    torch.testing.assert_close(loaded(directory).score(batch), model.score(batch))


def older(directory: Path, layer: str, rows_in: int, rows_out: int) -> torch.Tensor:
    """Rewrite a checkpoint as Segue 0.1 saved adapters of a layer; return their update."""
    weights = load_file(directory / "model.safetensors")
    for end in ("weight", "bias"):
        if (value := weights.pop(f"{layer}.{end}", None)) is not None:
            weights[f"{layer}.base_layer.{end}"] = value
    down = weights[f"{layer}.lora_A.default.weight"] = torch.randn(2, rows_in)
    up = weights[f"{layer}.lora_B.default.weight"] = torch.randn(rows_out, 2)
    save_file(weights, directory / "model.safetensors")
    manifest = json.loads((directory / "component.json").read_text())
    manifest["options"]["lora"] = LORA | {"dropout": 0.0, "target_modules": None}
    manifest["weights_digest"] = ""
    (directory / "component.json").write_text(json.dumps(manifest))
    return 4.0 * up @ down  # alpha / rank


@pytest.mark.parametrize(
    ("architecture", "layer", "turned"),
    [(LLAMA, "layers.1.self_attn.v_proj", False), (GPT2, "h.0.attn.c_attn", True)],
    ids=["llama", "gpt2"],
)
def test_adapters_of_older_checkpoints_are_merged(
    architecture: dict[str, Any], layer: str, turned: bool, tmp_path: Path
) -> None:
    options = {"pretrained": "gone", "pretrained_architecture": architecture}
    name = f"backbone.model.{layer}"
    model = build(**options)
    weight = model.get_parameter(f"{name}.weight")
    directory = saved(model, tmp_path / "older")
    update = older(directory, name, 32, weight.numel() // 32)
    with torch.no_grad():
        weight += update.T if turned else update
    back = loaded(directory)
    assert back.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(back.get_parameter(f"{name}.weight"), weight)


def test_adapters_leave_the_text_model_as_it_is(text_model: Path, tmp_path: Path) -> None:
    """The option of Segue 0.1 asks for what ``training.lora`` does."""
    model = build(pretrained=str(text_model), lora=LORA | {"target_modules": ["q_proj"]})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(FutureWarning, match="training.lora replaces options.lora"):
        adapt(model, TrainingConfig(), "training", base=False)
    assert {name.rpartition(".")[2] for name in adapters(model)} == {"q_proj"}
    trained(model, batch_for(SECOND, 6, 4), 3)
    after = plain_state(model, model.state_dict())
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    layers = {f"{name}.weight" for name in adapters(model)}
    assert changed == layers | {n for n in before if n.split(".")[0] in ("tokens", "heads")}
    model = build(pretrained=str(text_model), lora=LORA)
    adapt(model, TrainingConfig(lora={"also_train": ["heads.*"]}), "training", base=False)
    assert any("mlp" in name for name in adapters(model)), "older options won over training.lora"


def test_a_run_with_older_adapters_goes_on_with_new_ones(text_model: Path, tmp_path: Path) -> None:
    directory = saved(build(pretrained=str(text_model)), tmp_path / "older")
    name = "backbone.model.layers.0.self_attn.q_proj"
    update = older(directory, name, 32, 32)
    model = build(pretrained=str(text_model), lora=LORA)
    wanted = model.get_parameter(f"{name}.weight") + update
    with pytest.warns(FutureWarning):
        adapt(model, TrainingConfig(), "training", base=False)
    load_state(model, directory, "hf_causal.v1", load_plain)
    torch.testing.assert_close(plain_state(model, model.state_dict())[f"{name}.weight"], wanted)
    optimizer = make_optimizer(model, TrainingConfig())
    # Moments of adapters that are merged now fit no others.
    Learner(model, optimizer).load({"0.step": torch.tensor(3.0), "0.exp_avg": torch.ones(9)}, {})
    assert not optimizer.state


def test_it_learns_a_toy_set_and_generates_it_again() -> None:
    model = build(SECOND, architecture=GPT2 | {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0})
    batch = batch_for(SECOND, 8, 8)
    assert trained(model, batch, 150) < 0.05
    prompt = Tokens(batch.target.ids[:, :, :2], torch.tensor([2, 1]))
    given = batch.given
    new = model.generate(given, prompt, 6, GREEDY, row_generators(0, 2))
    whole = prompt.append(new)
    for row in range(2):
        ids = whole.row(row)
        assert torch.equal(ids, batch.target.ids[row, :, : ids.shape[1]])


def test_it_learns_where_audio_ends() -> None:
    model = build(FIRST, architecture=LLAMA, end_of_audio=True)
    target = batch_for(FIRST, 6, 6).target
    ends = torch.zeros(2, 6, dtype=torch.bool)
    ends[:, -1] = True
    trained(model, StageBatch(target, ends=ends), 150)
    prompt = Tokens(target.ids[:, :, :2], torch.tensor([2, 1]))
    new = model.generate((), prompt, 9, GREEDY, row_generators(0, 2))
    assert new.lengths.tolist() == [4, 5]
    with pytest.raises(ConfigError, match="turn it on in the first stage only"):
        build(SECOND, architecture=LLAMA, end_of_audio=True)


def test_halves_replace_weights_but_not_the_turning_of_positions() -> None:
    model = build(architecture=LLAMA)
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert any("inv_freq" in name for name in buffers)
    model.decode_with(Decoding(weights="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, tensor in model.named_buffers():
        torch.testing.assert_close(tensor, buffers[name], atol=0, rtol=0)
    batch = batch_for(SECOND, 6)
    prompt = Tokens.empty(1, SECOND.target.num_levels)
    new = model.generate(batch.given, prompt, 6, Sampling(), row_generators(0, 1))
    assert new.lengths.tolist() == [6]


@pytest.mark.parametrize(
    ("decoding", "named"),
    [
        (Decoding(weights="int8"), "decoding.weights: is int8"),
        (Decoding(backend="native"), "decoding.backend: is native"),
        (Decoding(backend="graph"), "decoding.backend: is graph"),
        (Decoding(backend="compile"), "decoding.backend: is compile"),
    ],
)
def test_it_says_which_ways_of_decoding_it_has_not(decoding: Decoding, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(architecture=LLAMA).decode_with(decoding)


def test_sequences_end_where_positions_end() -> None:
    """A separator, a given token for two frames, a start, and two tokens per frame."""
    model = build(architecture=GPT2 | {"n_positions": 64})
    batch = batch_for(SECOND, 40)
    message = r"second.lm.options.architecture: max_position_embeddings is 64, but .* crop_seconds"
    with pytest.raises(ConfigError, match=message):
        model.loss(batch)
    prompt = Tokens(batch.target.ids, torch.tensor([20]))
    with pytest.raises(ConfigError, match=message):
        model.generate(batch.given, prompt, 20, GREEDY, row_generators(0, 1))
    fits = batch_for(SECOND, 24)  # 1 + 12 + 1 + 48 of 64
    assert model.score(fits).isfinite().all()
    prompt = Tokens(fits.target.ids, torch.tensor([10]))
    assert model.generate(fits.given, prompt, 14, GREEDY, row_generators(0, 1)).lengths == 14


BERT = LLAMA | {"model_type": "bert"}
del BERT["num_key_value_heads"]


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (LLAMA | {"model_type": "lama"}, r"architecture.model_type: .*'lama'; did you mean 'llama"),
        (LLAMA | {"hidden_sise": 8}, r"architecture.hidden_sise: unknown .* 'hidden_size'"),
        (LLAMA | {"hidden_size": "wide"}, r"options.architecture: llama cannot be built"),
        ({"model_type": "t5"}, r"no causal language model of type 't5'"),
        ({"model_type": "mamba", "hidden_size": 8}, r"'mamba', which takes no past_key_values"),
        (BERT, r"'bert', which looks ahead unless is_decoder"),
    ],
)
def test_unfit_architectures_are_refused(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(architecture=architecture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither of architecture and pretrained"),
        ({"architecture": LLAMA, "pretrained": "x"}, "both of architecture and pretrained"),
        ({"architecture": {"hidden_size": 8}}, "model_type is missing"),
        ({"architecture": LLAMA, "pretrained_architecture": LLAMA}, "without pretrained"),
        ({"architecture": LLAMA, "lora": LORA}, "random weights; set pretrained"),
        ({"pretrained": "x", "lora": {"rang": 2}}, "lora.rang: unknown key; did you mean 'rank'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SegueError, match=message):
        default_host().options("stage_lm", "hf_causal.v1", options, "lm.options")


def test_unfit_text_models_are_refused(
    text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "is_offline_mode", lambda: True)
    with pytest.raises(ConfigError, match=r"options.pretrained: there is no directory .*/gone"):
        build(pretrained=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"options.pretrained: .*no/such.* cannot be loaded .*"):
        build(pretrained="no/such")
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    config.save_pretrained(tmp_path / "t5")
    with pytest.raises(ConfigError, match="'t5', which is not a causal"):
        build(pretrained=str(tmp_path / "t5"))
    weights = transformers.AutoModelForCausalLM.from_pretrained(text_model).state_dict()
    (text_model / "model.safetensors").unlink()
    torch.save(weights, text_model / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        build(pretrained=str(text_model))


def test_incomplete_text_models_are_refused(text_model: Path) -> None:
    weights = load_file(text_model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, text_model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="up_proj"):
        build(pretrained=str(text_model))


def test_options_are_read_without_transformers() -> None:
    program = (
        "import sys; from segue.plugins.models.hf_causal.config import HfCausalOptions as O;"
        "O(pretrained='x', lora={}); sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
