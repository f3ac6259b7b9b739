"""A component under lightning-fabric: its number format, its ranks, where gradients are shared."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from segue.core.collectives import summed
from segue.core.config import TrainingConfig
from segue.core.errors import TrainingError
from segue.core.interfaces import Adversary, Component, StageBatch, StageLM, WaveBatch
from segue.training.ranks import PATIENCE, Ranks, connect
from segue.training.sharding import let_load_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_fabric import Fabric

Batch = WaveBatch | StageBatch


class _Held:
    """What a forward pass is given. Fabric looks into containers and data classes to cast what
    they hold to the number format; waves must stay as they are."""

    def __init__(self, *values: Any) -> None:
        self.values = values


class _Step(nn.Module):
    """A training step as a forward pass, which is what is wrapped."""

    def __init__(self, component: Component) -> None:
        super().__init__()
        self.component = component

    def forward(self, held: _Held) -> dict[str, Tensor]:
        batch, adversary = held.values
        if adversary is None:
            return dict(self.component.training_step(batch))
        return dict(self.component.adversarial_step(batch, adversary))


class _Judge(nn.Module):
    """An adversary, the same way."""

    def __init__(self, adversary: Adversary) -> None:
        super().__init__()
        self.adversary = adversary

    def forward(self, held: _Held) -> dict[str, Tensor]:
        return dict(self.adversary(*held.values))


class Engine:
    """Runs the steps of one part's training on this rank.

    Args:
        component: on its device; its blocks are prepared as ``config`` says.
        config: of the training.
        place: of that config, for messages.
        adversary: what the component is trained against, if anything.

    Raises:
        TrainingError: if lightning-fabric is missing, or the component cannot be trained that way.
    """

    def __init__(
        self,
        component: Component,
        config: TrainingConfig,
        place: str,
        adversary: Adversary | None = None,
    ) -> None:
        self.ranks = connect(component.device)
        _check(component, config, place, adversary, self.ranks)
        self.fabric = _fabric(component, config, place, self.ranks)
        _prepare_blocks(component, config)
        step = _Step(component)
        if config.compile and not component.blocks():
            step.compile()
        self._step = self.fabric.setup_module(step)
        self._judge = None if adversary is None else self.fabric.setup_module(_Judge(adversary))
        self._steppers: dict[int, Any] = {}
        if self.ranks.size > 1 and config.strategy == "fsdp":
            let_load_whole(component)

    @property
    def scaler(self) -> Any:
        """What keeps gradients in the range of half precision, if anything does."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def take(self, *optimizers: torch.optim.Optimizer) -> None:
        """Let Fabric step these."""
        for optimizer in optimizers:
            self._steppers[id(optimizer)] = self.fabric.setup_optimizers(optimizer)

    def losses(self, batch: Batch, adversary: bool = False) -> dict[str, Tensor]:
        """Of one piece, in the number format of the training."""
        opponent = cast("Adversary", self._ask) if adversary else None
        return cast("dict[str, Tensor]", self._step(_Held(batch, opponent)))

    def _ask(self, real: Tensor, made: Tensor) -> Mapping[str, Tensor]:
        assert self._judge is not None
        return cast("Mapping[str, Tensor]", self._judge(_Held(real, made)))

    def backward(self, loss: Tensor, **options: Any) -> None:
        """``loss.backward(**options)``, scaled if need be."""
        self.fabric.backward(loss, **options)

    @contextmanager
    def kept_to_itself(self, enabled: bool, adversary: bool) -> Iterator[None]:
        """Gradients are not shared with the other ranks yet: further pieces follow."""
        with ExitStack() as stack:
            if enabled and self.ranks.size > 1:
                modules = [self._step, *([self._judge] if adversary else [])]
                for module in modules:
                    stack.enter_context(self.fabric.no_backward_sync(module))
            yield

    def clip(self, optimizer: torch.optim.Optimizer, largest: float) -> float:
        """Scale the gradients that an optimizer steps by down to a norm; what it was."""
        norm = self.fabric.clip_gradients(
            self._step, self._steppers[id(optimizer)], max_norm=largest, error_if_nonfinite=False
        )
        assert norm is not None
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self._steppers[id(optimizer)].step()

    def pass_over(self) -> None:
        """No optimizer steps this time: the scaler forgets what it saw and keeps its scale."""
        if self.scaler is not None:
            self.scaler.update(self.scaler.get_scale())

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.fabric.device)
        return cast("list[float]", summed(sums).tolist())


def _check(
    component: Component,
    config: TrainingConfig,
    place: str,
    adversary: Adversary | None,
    ranks: Ranks,
) -> None:
    """Refuse what would go wrong later, or quietly."""
    if adversary is not None and config.precision == "16-mixed":
        problem = "16-mixed cannot serve two optimizers: each would undo the other's scale"
        raise TrainingError(f"{place}.precision", problem, "take bf16-mixed or 32-true")
    if config.precision == "bf16-true" and not isinstance(component, StageLM):
        problem = f"bf16-true is for stage language models, not for {type(component).__name__}"
        raise TrainingError(f"{place}.precision", problem, "take bf16-mixed or 32-true")
    if config.strategy == "fsdp" and ranks.size > 1:
        if config.precision == "16-mixed":
            problem = "16-mixed cannot be had with fsdp"
            raise TrainingError(f"{place}.precision", problem, "take bf16-mixed, or ddp")
        if not isinstance(component, StageLM):
            problem = f"fsdp is for stage language models, not for {type(component).__name__}"
            raise TrainingError(f"{place}.strategy", problem, "take ddp")
        if config.lora is not None:
            problem = "fsdp cannot shard adapted matrices"
            raise TrainingError(f"{place}.strategy", problem, "take ddp: adapters need little")


def _fabric(component: Component, config: TrainingConfig, place: str, ranks: Ranks) -> Fabric:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise TrainingError(
            place, f"training needs lightning-fabric ({error})", "pip install 'segue[train]'"
        ) from error
    device = component.device
    fabric: Any = partial(Fabric, accelerator=device.type, **_format(config, device))
    if ranks.size == 1:
        made = fabric(devices=1 if device.type == "cpu" else [device.index or 0])
    else:
        nodes = ranks.size // ranks.local_size
        strategy = _strategy(config, ranks.size)
        made = fabric(devices=ranks.local_size, num_nodes=nodes, strategy=strategy)
    made.launch()
    return cast("Fabric", made)


def _format(config: TrainingConfig, device: torch.device) -> dict[str, Any]:
    """Fabric by itself would train in bf16-mixed where CPUs are asked for 16-mixed."""
    from lightning_fabric.plugins import MixedPrecision

    if config.precision == "16-mixed":
        return {"plugins": MixedPrecision("16-mixed", device.type)}
    return {"precision": config.precision}


def _strategy(config: TrainingConfig, size: int) -> Any:
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if config.strategy == "fsdp":
        return ModelParallelStrategy(_shard, size, 1, timeout=PATIENCE)
    # Some weights are not used in some steps: dropped levels, conditions that are left out.
    # Buffers are kept alike by those who change them: codebooks learn from all ranks.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DDPStrategy(find_unused_parameters=True, timeout=PATIENCE, **{name: False})


def _shard(step: _Step, mesh: Any) -> _Step:
    """Share the weights out to the ranks (FSDP2): block by block, and then the rest."""
    from torch.distributed.fsdp import fully_shard

    ranks = mesh["data_parallel"]
    for block in step.component.blocks():
        fully_shard(block, mesh=ranks)
    fully_shard(step, mesh=ranks)
    return step


def _prepare_blocks(component: Component, config: TrainingConfig) -> None:
    """What is computed again is what was compiled: a checkpoint inside would not be compiled."""
    for block in component.blocks():
        if config.compile:
            object.__setattr__(block, "forward", torch.compile(block.forward))
        if config.activation_checkpointing:
            again = partial(checkpoint, block.forward, use_reentrant=False)
            object.__setattr__(block, "forward", again)
