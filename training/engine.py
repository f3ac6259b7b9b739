"""Run a component under lightning-fabric: number format, ranks, and when gradients are shared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from segue.core.collectives import by_itself, summed
from segue.core.config import TrainingConfig
from segue.core.errors import TrainingError
from segue.core.interfaces import Adversary, Component, StageBatch, StageLM
from segue.data.epochs import Share
from segue.inference.promises import calling, check_losses
from segue.training.adaptation import adapters
from segue.training.prefetch import Batch
from segue.training.ranks import PATIENCE, Ranks, accept_whole_tensors, connect

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class _Opaque:
    """Hold the arguments of a forward pass.

    Fabric looks into containers and data classes and casts what they hold to the number format;
    waves must stay as they are.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values


class _Forward(nn.Module):
    """Make some call of a module its forward pass, which is what DDP and FSDP hook into."""

    def __init__(self, module: nn.Module, call: Callable[..., Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, held: _Opaque) -> dict[str, Tensor]:
        return dict(self.call(*held.values))


class Engine:
    """Run the steps of one part's training on this rank.

    Args:
        component: on its device; its blocks are compiled or checkpointed as ``config`` says.
        teacher: what a stage learns from with ``config.guided``, on the same device.

    Raises:
        TrainingError: if lightning-fabric is missing, or the component cannot be trained that way.
    """

    def __init__(
        self,
        component: Component,
        config: TrainingConfig,
        place: str,
        adversary: Adversary | None = None,
        teacher: StageLM | None = None,
    ) -> None:
        self.ranks = connect(component.device)
        #: False for a part that learns in buffers only, such as counts.
        self.has_gradients = any(p.requires_grad for p in component.parameters())
        _check(component, config, place, adversary is not None, self.ranks)
        self.fabric = _fabric(component, config, place, self.ranks)
        self._component, self._accumulate = component, config.accumulate
        _prepare_blocks(component, config)

        def losses(batch: Batch, opponent: Any) -> Mapping[str, Tensor]:
            if teacher is not None and config.guided is not None:
                assert isinstance(component, StageLM) and isinstance(batch, StageBatch)
                return component.guided_loss(batch, teacher, config.guided).named()
            if opponent is None:
                return component.training_step(batch)
            return component.adversarial_step(batch, opponent)

        step = _Forward(component, losses)
        if config.compile and not component.blocks():
            step.compile()
        # DDP refuses modules that have no gradients.
        self._step: Any = self.fabric.setup_module(step) if self.has_gradients else step
        self._adversary_step: Any = None
        if adversary is not None:
            self._adversary_step = self.fabric.setup_module(_Forward(adversary, adversary.__call__))
        self._optimizers: dict[int, Any] = {}
        if self.ranks.size > 1 and config.strategy == "fsdp":
            accept_whole_tensors(component)

    @property
    def scaler(self) -> Any:
        """The gradient scaler of half precision, if there is one."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    @property
    def shares(self) -> list[Share]:
        """The pieces of each batch that this rank learns from.

        Gradients of ranks can be averaged, buffers cannot: without gradients each rank learns
        from the whole batch, so that all end with the same buffers.
        """
        own = self.ranks if self.has_gradients else Ranks()
        count = own.size * self._accumulate
        return [Share(piece * own.size + own.rank, count) for piece in range(self._accumulate)]

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Let Fabric step an optimizer."""
        if self.has_gradients:
            self._optimizers[id(optimizer)] = self.fabric.setup_optimizers(optimizer)

    def losses(self, batch: Batch, adversarial: bool = False) -> dict[str, Tensor]:
        """Return the losses of one piece, computed in the number format of the training."""

        def opponent(real: Tensor, made: Tensor) -> Any:
            return self._adversary_step(_Opaque(real, made))

        call = "adversarial_step" if adversarial else "training_step"
        with nullcontext() if self.has_gradients else by_itself(), calling(self._component, call):
            found: dict[str, Tensor] = self._step(_Opaque(batch, opponent if adversarial else None))
        needed = ("loss", *(["adversary_loss"] if adversarial else []))
        learning = self.has_gradients and torch.is_grad_enabled()
        check_losses(self._component, found, needed, learning)
        return found

    @contextmanager
    def gradients_kept_local(self, enabled: bool, adversarial: bool) -> Iterator[None]:
        """Do not exchange gradients with other ranks yet, because further pieces follow."""
        with ExitStack() as stack:
            if enabled and self.ranks.size > 1 and self.has_gradients:
                for module in (self._step, *([self._adversary_step] if adversarial else [])):
                    stack.enter_context(self.fabric.no_backward_sync(module))
            yield

    def clip(self, optimizer: torch.optim.Optimizer, largest: float) -> float:
        """Scale an optimizer's gradients down to a norm; return the norm that they had."""
        own = self._optimizers[id(optimizer)]
        norm: Any = self.fabric.clip_gradients(
            self._step, own, max_norm=largest, error_if_nonfinite=False
        )
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizers[id(optimizer)].step()

    def skip_step(self) -> None:
        """Reset the scaler for the next step; its scale stays."""
        if self.scaler is not None:
            self.scaler.update(self.scaler.get_scale())

    def total(self, values: Sequence[float]) -> list[float]:
        """Return sums over all ranks; without gradients, this rank's values stand for all."""
        if not self.has_gradients:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.fabric.device)
        return summed(sums).tolist()


def _check(
    component: Component, config: TrainingConfig, place: str, adversarial: bool, ranks: Ranks
) -> None:
    """Refuse combinations that would fail later, or train wrongly without an error."""

    def refuse(setting: str, problem: str, fix: str) -> NoReturn:
        raise TrainingError(f"{place}.{setting}", problem, fix)

    stages_only = f"is for stage language models, not for {type(component).__name__}"
    if config.precision == "16-mixed" and adversarial:
        problem = "16-mixed cannot scale the gradients of two optimizers"
        refuse("precision", problem, "use bf16-mixed or 32-true")
    if config.precision == "bf16-true" and not isinstance(component, StageLM):
        refuse("precision", f"bf16-true {stages_only}", "use bf16-mixed or 32-true")
    if config.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        problem = f"muon needs torch 2.9 or newer, and this is {torch.__version__}"
        refuse("optimizer", problem, "update torch, or use adamw")
    if config.strategy == "ddp" or ranks.size == 1:
        return
    if config.optimizer == "muon":
        refuse("optimizer", "muon cannot work on shards of a matrix", "use ddp, or adamw")
    if config.precision == "16-mixed":
        refuse("precision", "16-mixed does not work with fsdp", "use bf16-mixed, or ddp")
    if not isinstance(component, StageLM):
        refuse("strategy", f"fsdp {stages_only}", "use ddp")
    if config.guided is not None:
        refuse("guided", "does not work with fsdp", "use ddp")
    if config.lora is not None or adapters(component):
        refuse("strategy", "fsdp cannot shard adapted matrices", "use ddp: adapters need little")


def _fabric(component: Component, config: TrainingConfig, place: str, ranks: Ranks) -> Fabric:
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins import MixedPrecision
    except ImportError as error:
        raise TrainingError(
            place, f"training needs lightning-fabric ({error})", "pip install 'segue[train]'"
        ) from error
    device = component.device
    settings: dict[str, Any] = {"accelerator": device.type, "precision": config.precision}
    if config.precision == "16-mixed":  # Fabric would use bf16-mixed on a CPU instead
        del settings["precision"]
        settings["plugins"] = MixedPrecision("16-mixed", device.type)
    if ranks.size == 1:
        fabric = Fabric(devices=1 if device.type == "cpu" else [device.index or 0], **settings)
    else:
        fabric = Fabric(
            devices=ranks.local_size,
            num_nodes=ranks.size // ranks.local_size,
            strategy=_strategy(config, ranks.size),
            **settings,
        )
    fabric.launch()
    return fabric


def _strategy(config: TrainingConfig, size: int) -> Any:
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if config.strategy == "fsdp":
        return ModelParallelStrategy(_shard, size, 1, timeout=PATIENCE)
    # Some weights are unused in some steps: dropped levels, conditions that are left out. Buffers
    # are not broadcast: codebooks learn from all ranks and stay alike by themselves.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DDPStrategy(find_unused_parameters=True, timeout=PATIENCE, **{name: False})


def _shard(step: Any, mesh: Any) -> Any:
    """Share weights out to the ranks (FSDP2): block by block, and then the rest."""
    from torch.distributed.fsdp import fully_shard

    ranks = mesh["data_parallel"]
    for block in step.module.blocks():
        fully_shard(block, mesh=ranks)
    fully_shard(step, mesh=ranks)
    return step


def _prepare_blocks(component: Component, config: TrainingConfig) -> None:
    """Compile blocks first and checkpoint them around that: a checkpoint inside a compiled block
    would not be compiled."""
    for block in component.blocks():
        if config.compile:
            object.__setattr__(block, "forward", torch.compile(block.forward))
        if config.activation_checkpointing:
            again = partial(checkpoint, block.forward, use_reentrant=False)
            object.__setattr__(block, "forward", again)
