"""What a training will take, before it is begun: arithmetic, memory, days. Allocates no weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental import _config as experimental
from torch.utils.flop_counter import FlopCounterMode

from segue.core.assembly import Assembly, assemble
from segue.core.config import PipelineConfig, TrainingConfig
from segue.core.errors import ConfigError, DataError, TrainingError
from segue.core.interfaces import (
    Adversary,
    Component,
    StageBatch,
    StageLM,
    Tokenizer,
    Tokens,
    WaveBatch,
)
from segue.core.manager import PluginHost
from segue.core.spec import SliceSpec, StageSpec
from segue.data.places import exists
from segue.data.sources import load_recordings
from segue.data.store_plan import HEADER
from segue.data.token_store import TokenStore
from segue.training.adaptation import adapt
from segue.training.meta import KnownValues, Literals, weightless
from segue.training.telemetry import PEAK_TFLOPS, flops_per_token

ROWS = 2  # of the batch that arithmetic is counted on


@dataclass(frozen=True)
class Hardware:
    """What is trained on.

    Attributes:
        ranks: GPUs.
        gpu: a name in ``PEAK_TFLOPS``; None leaves days out unless ``tflops`` is given.
        tflops: peak of one GPU.
        mfu: the share of the peak that is reached.
    """

    ranks: int = 1
    gpu: str | None = None
    tflops: float | None = None
    mfu: float = 0.4

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ConfigError(f"--ranks {self.ranks}", "is less than one", "give 1 or more")
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu {self.mfu:g}", "is no share", "give one above 0, at most 1")
        if self.tflops is not None and not self.tflops > 0:
            raise ConfigError(f"--gpu-tflops {self.tflops:g}", "is not above 0", "give its peak")
        if self.gpu is not None and self.gpu not in PEAK_TFLOPS:
            known = ", ".join(PEAK_TFLOPS)
            raise ConfigError(
                f"--gpu {self.gpu}", "is not known", f"take one of {known}, or give --gpu-tflops"
            )

    def peak(self, precision: str) -> float | None:
        """TFLOP/s of one GPU in a number format, if known."""
        if self.tflops is not None or self.gpu is None:
            return self.tflops
        half, single = PEAK_TFLOPS[self.gpu]
        return single if precision == "32-true" else half


@dataclass(frozen=True)
class PartEstimate:
    """Of one part.

    Attributes:
        unit: ``token`` (of the target, for stages) or ``second`` of audio.
        parameters, trainable: numbers; the adversary's are ``adversary``.
        flops: of forward and backward, per unit.
        counted: whether they were counted on a whole step; else they are three times those of the
            forward pass as far as it went, or 6 per weight and frame if that is more.
        per_step, in_all: units of one step and of the whole training.
        per_epoch: units of the data, if given.
        memory: GiB per rank under ``ddp`` and ``fsdp``: ``weights``, ``gradients``, ``moments``,
            ``mean``, ``buckets``.
        activations: estimate in GiB per rank, of ``kept`` and of ``checkpointed`` ones.
        days: of the whole training, if the GPU's rate is known.
    """

    part: str
    use: str
    unit: str
    parameters: int
    trainable: int
    adversary: int
    flops: float
    counted: bool
    per_step: float
    in_all: float
    per_epoch: float | None
    memory: Mapping[str, Mapping[str, float]]
    activations: Mapping[str, float] | None
    days: float | None


@dataclass
class _Counts:
    flops: float
    saved: float
    checkpointed: float
    whole: bool


def estimate(
    config: PipelineConfig,
    host: PluginHost,
    part: str,
    hardware: Hardware,
    hours: float | None = None,
) -> list[PartEstimate]:
    """Of one part, or of ``all`` that are trained by gradient.

    Raises:
        TrainingError: if there is no such part, or it is not trained by gradient.
        AssemblyError, ConfigError, PluginError: if a part cannot be built.
    """
    if part != "all" and part not in config.parts:
        known = ", ".join(("all", *config.parts))
        raise TrainingError(part, f"is no part of {config.name}", f"take one of {known}")
    if hours is not None and not hours > 0:
        raise ConfigError(f"--hours-of-audio {hours:g}", "is not above 0", "give the data's hours")
    assembly = assemble(config, host)
    found = []
    for name in config.parts if part == "all" else (part,):
        component = _build(assembly, host, name)
        if component.needs_training:
            found.append(_of_part(assembly, name, component, hardware, hours))
        elif part != "all":
            problem = f"{config.parts[name].use} is not trained by gradient"
            raise TrainingError(name, problem, "plan another part, or all")
    return found


def hours_of_data(data: Path | str | None, output: Path | None) -> float | None:
    """Hours that a training would learn from: of the training split.

    Args:
        data: recordings, as ``read_recordings`` takes them, or a directory of tokens.
        output: a training directory; the tokens in it are counted if no data is named.

    Returns:
        None if there is neither.

    Raises:
        DataError: if there is something that cannot be counted.
    """
    tokens = None if output is None else output / "tokens"
    if data is None and tokens is not None and exists(f"{tokens}/{HEADER}"):
        data = tokens
    if data is None:
        return None
    if exists(f"{data}/{HEADER}"):
        store = TokenStore(data, "train")
        return float(store.frames.sum() / store.streams[store.counted_in].frame_rate) / 3600
    seconds = float(load_recordings(data, "train").seconds.clip(0).sum())
    if not seconds:
        raise DataError(str(data), "holds no audio that can be read", "check its files")
    return seconds / 3600


def _build(assembly: Assembly, host: PluginHost, part: str) -> Component:
    plain, ref = assembly.parts[part], assembly.config.parts[part]
    with weightless(), torch.random.fork_rng(devices=[]):
        component = plain.build(host)
        if component.needs_training:
            place = f"{plain.place}.training"
            adapt(component, ref.training, place, ref.checkpoint is not None)
    return component


def _of_part(
    assembly: Assembly,
    part: str,
    component: Component,
    hardware: Hardware,
    hours: float | None,
) -> PartEstimate:
    config = assembly.config.parts[part].training
    crop, rate = _crop(assembly, part, config), 1.0
    if isinstance(component, StageLM):
        target = component.stage.target
        rate = float(target.frame_rate) * target.num_levels
    with weightless(), torch.random.fork_rng(devices=[]):
        adversary = component.adversary()
    units = crop * rate  # of one crop
    counts = _count(component, adversary, crop)
    flops = counts.flops / (ROWS * units)
    if not counts.whole:
        frames = float(component.spec.frame_rate) if isinstance(component, Tokenizer) else 1.0
        flops = max(flops, flops_per_token(component) * frames)
    per_step = config.batch_size * units
    peak = hardware.peak(config.precision)
    seconds = None
    if peak is not None:
        rates = peak * 1e12 * hardware.mfu * hardware.ranks
        seconds = flops * per_step * config.steps / rates
    own = [p for p in component.parameters() if p.requires_grad]
    theirs = [] if adversary is None else list(adversary.parameters())
    return PartEstimate(
        part,
        assembly.config.parts[part].use,
        "token" if isinstance(component, StageLM) else "second",
        sum(p.numel() for p in component.parameters()),
        sum(p.numel() for p in own),
        sum(p.numel() for p in theirs),
        flops,
        counts.whole,
        per_step,
        per_step * config.steps,
        None if hours is None else hours * 3600 * rate,
        _memory(component, sum(p.numel() for p in theirs), config, hardware.ranks),
        _activations(counts, config, hardware.ranks) if counts.whole else None,
        None if seconds is None else seconds / 86400,
    )


def _crop(assembly: Assembly, part: str, config: TrainingConfig) -> float:
    crops = {f"stages.{stage.name}": stage.crop_seconds for stage in assembly.config.stages}
    return crops.get(part, config.crop_seconds)


def _memory(
    component: Component, theirs: int, config: TrainingConfig, ranks: int
) -> dict[str, dict[str, float]]:
    """GiB of each strategy that the part can be trained with."""
    size = 2 if config.precision == "bf16-true" else 4
    every = sum(p.numel() for p in component.parameters()) + theirs
    own = sum(p.numel() for p in component.parameters() if p.requires_grad)
    trained = own + theirs
    gib = size / 2**30
    plain = {
        "weights": every * gib,
        "gradients": trained * gib,
        "moments": 2 * trained * gib,
        "mean": own * gib if config.ema else 0.0,
    }
    # DDP copies gradients into buckets; FSDP gathers a block's weights when they are needed.
    memory = {"ddp": {**plain, "buckets": trained * gib if ranks > 1 else 0.0}}
    if isinstance(component, StageLM) and config.lora is None:
        sizes = [sum(p.numel() for p in block.parameters()) for block in component.blocks()]
        gathered = 2 * max(sizes, default=every) * gib if ranks > 1 else 0.0
        memory["fsdp"] = {k: v / ranks for k, v in plain.items()} | {"buckets": gathered}
    return memory


def _activations(counts: _Counts, config: TrainingConfig, ranks: int) -> dict[str, float]:
    """GiB; in half precision half of what was counted."""
    rows = -(-config.batch_size // (ranks * config.accumulate))
    factor = rows / ROWS / 2**30 * (1.0 if config.precision == "32-true" else 0.5)
    return {"kept": counts.saved * factor, "checkpointed": counts.checkpointed * factor}


def _count(component: Component, adversary: Adversary | None, crop: float) -> _Counts:
    """Run one step on shapes alone, as far as it goes: to the end, unless the component asks for
    values that these lack. A backward pass takes about twice what the forward one did."""
    known = KnownValues()
    for module in (component, adversary):
        if module is not None:
            known.tell_buffers(module)
            module.to("meta").train()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        patched: Any = experimental
        stack.enter_context(patched.patch(meta_nonzero_assume_all_nonzero=True))
        batch = _batch(component, crop, known)
        saved = _Saved(component, adversary)
        stack.callback(saved.remove)
        stack.enter_context(known)
        counter = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(torch.device("meta"))
        stack.enter_context(Literals(known))
        forward = 0.0
        try:
            with saved_tensors_hooks(saved.add, lambda tensor: tensor):
                losses = _losses(component, adversary, batch)
            forward = float(counter.get_total_flops())
            _backward(component, adversary, losses)
        except Exception:  # whatever code makes of values that are not there
            flops, whole = 3 * (forward or float(counter.get_total_flops())), False
        else:
            flops, whole = float(counter.get_total_flops()), True
        return _Counts(flops, saved.total, saved.checkpointed, whole)


def _losses(
    component: Component, adversary: Adversary | None, batch: WaveBatch | StageBatch
) -> Mapping[str, Tensor]:
    if adversary is None:
        return component.training_step(batch)
    return component.adversarial_step(batch, adversary)


def _backward(
    component: Component, adversary: Adversary | None, losses: Mapping[str, Tensor]
) -> None:
    """As ``steps`` does."""
    if adversary is None:
        losses["loss"].backward()
        return
    own = [p for p in component.parameters() if p.requires_grad]
    losses["adversary_loss"].backward(retain_graph=True, inputs=list(adversary.parameters()))
    losses["loss"].backward(inputs=own)


def _batch(component: Component, crop: float, known: KnownValues) -> WaveBatch | StageBatch:
    if isinstance(component, StageLM):
        return _stage_batch(component.stage, crop, known)
    assert isinstance(component, Tokenizer)
    samples = round(crop * component.spec.sample_rate)
    wave = torch.empty(ROWS, samples, device="meta")
    return WaveBatch(wave, known.tell(torch.full((ROWS,), samples)))


def _stage_batch(stage: StageSpec, crop: float, known: KnownValues) -> StageBatch:
    slowest = min(part.frame_rate for part in (stage.target, *stage.given))
    frames = max(1, int(crop * slowest))

    def tokens(part: SliceSpec) -> Tokens:
        length = int(frames * (part.frame_rate / slowest))
        ids = torch.zeros(ROWS, part.num_levels, length, dtype=torch.long)
        return Tokens(known.tell(ids), known.tell(torch.full((ROWS,), length)))

    return StageBatch(tokens(stage.target), tuple(tokens(part) for part in stage.given))


class _Saved:
    """Bytes that a forward pass keeps for the backward one, in blocks and in all."""

    def __init__(self, component: Component, adversary: Adversary | None) -> None:
        modules: list[nn.Module] = [component, *([] if adversary is None else [adversary])]
        weights = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        self._seen: set[Any] = {t.untyped_storage()._cdata for t in weights}
        self._held: list[Any] = []
        self.total, self._inside, self._largest, self._inputs = 0.0, 0.0, 0.0, 0.0
        self._handles: list[Any] = []
        for block in component.blocks():
            self._handles.append(block.register_forward_pre_hook(self._enter))
            self._handles.append(block.register_forward_hook(self._leave))

    @property
    def checkpointed(self) -> float:
        """If blocks kept their inputs only, and one at a time what it needs."""
        return self.total - self._inside + self._inputs + self._largest

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(storage)
            self.total += storage.nbytes()
        return tensor

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._before = self.total
        first = next((value for value in inputs if isinstance(value, Tensor)), None)
        self._inputs += 0 if first is None else first.numel() * first.element_size()

    def _leave(self, block: nn.Module, inputs: Any, output: Any) -> None:
        own = self.total - self._before
        self._inside += own
        self._largest = max(self._largest, own)
