"""Run components without memory: weights have shapes only, small known tensors have values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

MOST_KNOWN = 1 << 16  # elements of a tensor whose values are kept

ATEN = torch.ops.aten
CHECKS = (ATEN.all.default, ATEN.any.default, ATEN.eq.Scalar)


@contextmanager
def weightless() -> Iterator[None]:
    """Parameters of modules that are built here have shapes but no values.

    Buffers are real: filters and tables may be computed, and looked at, on the way.
    """

    def hook(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    # A hook may return another parameter, which its declared type leaves out.
    handle = register_module_parameter_registration_hook(cast(Any, hook))
    try:
        yield
    finally:
        handle.remove()


class KnownValues(TorchDispatchMode):
    """Computes, beside shapes, the values of small tensors that depend on known ones alone.

    Lengths, positions and masks are such: code may branch on them, or count them. What depends on
    weights stays unknown; asking for its value raises ``RuntimeError``. But all is as it should be:
    ``all`` of the unknown is true, ``any`` false, one number equals no constant, and masks that are
    unknown are true everywhere.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: Any = WeakIdKeyDictionary()

    def tell(self, value: Tensor) -> Tensor:
        """A tensor without memory whose values are known."""
        told = value.to("meta")
        self._known[told] = value
        return told

    def value_of(self, tensor: Tensor) -> Tensor:
        """The values of a tensor.

        Raises:
            RuntimeError: if they depend on what is unknown.
        """
        if not tensor.is_meta:
            return tensor
        if tensor not in self._known:
            raise RuntimeError("asks for values that only weights would give")
        value: Tensor = self._known[tensor]
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        real_args = self._values(args, kwargs)
        if func is ATEN._local_scalar_dense.default and real_args is not None:
            return func(*real_args[0])
        if func is ATEN.index.Tensor:
            args = (args[0], [place for index in args[1] for place in self._positions(index)])
        if func is ATEN.bincount.default and real_args is None:  # PyTorch has no shapes for it
            size = kwargs.get("minlength", args[2] if len(args) > 2 else 1)
            return torch.empty(size, dtype=torch.long, device="meta")
        if func is ATEN._unique2.default and real_args is None:  # as if all differed
            flat = args[0].reshape(-1)
            return flat, flat.long(), flat.long()
        try:
            out = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):
            if real_args is None:
                raise
            return tree_map(self._told, func(*real_args[0], **real_args[1]))
        if real_args is not None:
            return self._followed(func, real_args, out)
        if func in CHECKS and out.ndim == 0:
            self._known[out] = torch.tensor(func is ATEN.all.default)
        elif args and isinstance(args[0], Tensor) and out is args[0]:
            self._known.pop(out, None)  # changed in place to what is not known
        return out

    def tell_buffers(self, module: nn.Module) -> None:
        """Move buffers; small ones are as in the midst of training, when codebooks are seeded."""
        for part in module.modules():
            for name, value in part._buffers.items():
                if value is None or value.is_meta:
                    continue
                whole = not (value.is_floating_point() or value.dtype == torch.bool)
                small = value.numel() <= MOST_KNOWN and not value.is_complex()
                known = value if whole else torch.ones_like(value)
                part._buffers[name] = self.tell(known) if small else value.to("meta")

    def _followed(self, func: Any, real_args: tuple[Any, Any], out: Any) -> Any:
        """What an operation on known values made, with its values if they are not too many; anew if
        its shape depends on them."""
        made = _tensors(out)
        if any(tensor.numel() > MOST_KNOWN for tensor in made):
            for tensor in made:
                self._known.pop(tensor, None)
            return out
        values = func(*real_args[0], **real_args[1])
        found = _tensors(values)
        if [tensor.shape for tensor in made] != [value.shape for value in found]:
            return tree_map(self._told, values)
        for tensor, value in zip(made, found, strict=True):
            self._known[tensor] = value
        return out

    def _told(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        out = torch.empty_like(value, device="meta")
        self._known[out] = value
        return out

    def _positions(self, index: Tensor | None) -> list[Tensor | None]:
        """A mask as the places where it is true, one tensor for each of its dimensions."""
        if index is None or index.dtype != torch.bool:
            return [index]
        value = self._known.get(index) if index.is_meta else index
        return [index] if value is None else [self._told(p) for p in value.nonzero().unbind(1)]

    def _values(self, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """The arguments with values in place of shapes; None if one is unknown."""
        tensors = _tensors((args, kwargs))
        if any(tensor.is_meta and tensor not in self._known for tensor in tensors):
            return None

        def real(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.is_meta:
                return self._known[leaf]
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        if not tensors and not _small(args):
            return None
        return tree_map(real, args), tree_map(real, kwargs)


class Literals(TorchFunctionMode):
    """Numbers that code writes down become known tensors, and known tensors become lists.

    Neither comes to where ``KnownValues`` looks. To be entered within ``torch.device("meta")``.
    """

    def __init__(self, known: KnownValues) -> None:
        super().__init__()
        self._values = known

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor:
            return self._values.tell(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if func is Tensor.tolist:
            return self._values.value_of(args[0]).tolist()
        return func(*args, **kwargs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _small(args: Any) -> bool:
    """Whether a new tensor of this shape is small enough to be made."""
    size = 1
    for leaf in tree_leaves(args):
        size *= max(1, abs(leaf)) if isinstance(leaf, int) else 1
    return size <= MOST_KNOWN**2 and size <= 1 << 24
