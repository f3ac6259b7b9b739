"""Run a training step on shapes alone: count its arithmetic and what it keeps, without memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from segue.core.interfaces import Adversary, Component, StageBatch, WaveBatch

ATEN = torch.ops.aten


@contextmanager
def weightless() -> Iterator[None]:
    """Build modules whose parameters have shapes but no values.

    Buffers are real: constructors compute filters and tables, and look at them.
    """

    def hook(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    # The declared type leaves out that a hook may return another parameter.
    handle = register_module_parameter_registration_hook(cast(Any, hook))
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class StepCounts:
    """The cost of one training step on a batch."""

    flops: float  # floating-point operations, forwards and backwards
    kept: float  # bytes that the forward pass keeps for the backward pass
    checkpointed: float  # the same with activation checkpointing of ``component.blocks()``
    # Whether the step ran to its end. If not, ``flops`` is three times those of the forward pass as
    # far as it ran: a backward pass takes about twice the forward one.
    whole: bool


def count_step(
    component: Component, adversary: Adversary | None, batch: WaveBatch | StageBatch
) -> StepCounts:
    """Count one training step on shapes, up to where the component asks for unknown values.

    Args:
        component: built within ``weightless``.
        adversary: built the same way, if the component has one.
        batch: token ids and lengths with values; a wave on the ``meta`` device.
    """
    modules: list[nn.Module] = [component] if adversary is None else [component, adversary]
    for module in modules:
        _prepare_buffers(module.train())
    kept = _KeptBytes(component, modules)
    forward = 0.0
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        stack.enter_context(_ShapesOfUnknowns())  # type: ignore[no-untyped-call]
        counter = stack.enter_context(FlopCounterMode(display=False))
        try:
            with saved_tensors_hooks(kept.add, lambda tensor: tensor):
                if adversary is None:
                    losses = component.training_step(batch)
                else:
                    losses = component.adversarial_step(batch, adversary)
            forward = float(counter.get_total_flops())
            if adversary is None and losses["loss"].requires_grad:  # False for counts in buffers
                losses["loss"].backward()
            elif adversary is not None:  # as in the training loop
                theirs = list(adversary.parameters())
                losses["adversary_loss"].backward(retain_graph=True, inputs=theirs)
                own = [p for p in component.parameters() if p.requires_grad]
                losses["loss"].backward(inputs=own)
        except Exception:  # plugin code fails in any way on values that are not there
            flops = 3 * (forward or float(counter.get_total_flops()))
            return StepCounts(flops, kept.total, kept.checkpointed, whole=False)
        flops = float(counter.get_total_flops())
    return StepCounts(flops, kept.total, kept.checkpointed, whole=True)


class _ShapesOfUnknowns(TorchDispatchMode):
    """Compute shapes of what depends on weights or audio, and values of everything else.

    Weights and audio lie on the ``meta`` device, and so does whatever is computed with them.
    Lengths, positions and masks stay real, so that code may branch on them or count them. Unknown
    values look healthy: ``all`` is true, ``any`` false, and no single number equals a constant.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.is_meta for tensor in tensors):
            if kwargs.get("device") is not None:
                kwargs["device"] = torch.device("cpu")
            return func(*args, **kwargs)
        if func._schema.is_mutable and not args[0].is_meta:
            return args[0]  # a real buffer takes in unknown values: it stays as it was
        if func is ATEN.index.Tensor:
            args = (args[0], [place for index in args[1] for place in _positions(index)])
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        if func is ATEN.bincount.default:  # PyTorch has no shape rule for it
            size = kwargs.get("minlength", args[2] if len(args) > 2 else 1)
            return torch.empty(size, dtype=torch.long, device="meta")
        if func is ATEN.nonzero.default:  # masks without values are true everywhere
            mask = args[0]
            return torch.empty(mask.numel(), mask.ndim, dtype=torch.long, device="meta")
        if func is ATEN._unique2.default:  # as if all values differed
            flat = args[0].reshape(-1)
            return flat, flat.long(), flat.long()
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        if func is ATEN._weight_norm_interface_backward.default:  # no shape rule in 2.6
            return torch.empty_like(args[1]), torch.empty_like(args[2])
        out = func(*args, **kwargs)
        if func in (ATEN.all.default, ATEN.any.default, ATEN.eq.Scalar) and out.ndim == 0:
            return torch.tensor(func is ATEN.all.default)
        return out


class _KeptBytes:
    """Count the bytes that a forward pass keeps, within blocks and in all."""

    def __init__(self, component: Component, modules: list[nn.Module]) -> None:
        weights = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        self._seen: set[Any] = {t.untyped_storage()._cdata for t in weights}
        self._storages: list[Any] = []  # held, so that no address is used again
        self.total, self._inside, self._largest, self._inputs = 0.0, 0.0, 0.0, 0.0
        for block in component.blocks():
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    @property
    def checkpointed(self) -> float:
        """Bytes if blocks keep their inputs only, and one at a time all that it needs."""
        return self.total - self._inside + self._inputs + self._largest

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._storages.append(storage)
            self.total += storage.nbytes()
        return tensor

    def _enter(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._before = self.total
        first = next((value for value in inputs if isinstance(value, Tensor)), None)
        self._inputs += 0 if first is None else first.numel() * first.element_size()

    def _leave(self, block: nn.Module, inputs: Any, output: Any) -> None:
        own = self.total - self._before
        self._inside += own
        self._largest = max(self._largest, own)


def _prepare_buffers(module: nn.Module) -> None:
    """Set flags and counts as in the middle of a training, when codebooks are initialised.

    Windows, filters and codebooks become shapes: PyTorch wants them on the device of the audio.
    """
    for part in module.modules():
        for name, value in part._buffers.items():
            if value is None or value.is_meta:
                continue
            if value.ndim > 0 and (value.is_floating_point() or value.is_complex()):
                part._buffers[name] = value.to("meta")
            elif value.is_floating_point() or value.dtype == torch.bool:
                part._buffers[name] = torch.ones_like(value)


def _positions(index: Tensor | None) -> list[Tensor | None]:
    """Return a real mask as the places where it is true, one tensor for each dimension."""
    if index is None or index.is_meta or index.dtype != torch.bool:
        return [index]
    return list(index.nonzero().unbind(1))
