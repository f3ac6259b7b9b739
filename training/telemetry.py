"""Measure how a training uses its machine: throughput, waiting, memory, share of the peak."""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn

from segue.core.interfaces import Component, StageLM, Tokenizer

#: Peak dense TFLOP/s from the makers' data sheets: in half precision, and in single precision as
#: PyTorch computes it by default (without TF32).
PEAK_TFLOPS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Return the peak of a known GPU; None for other GPUs and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (half, single) in PEAK_TFLOPS.items():
        if known in name:
            return single if precision == "32-true" else half
    return None


def flops_per_token(component: nn.Module) -> float:
    """Return operations of one training step per token (Kaplan et al., arXiv 2001.08361, 2.1).

    The forward pass takes two per weight; the backward pass two for what flows through each
    weight, and two more for each weight that is trained. Embeddings are looked up, not
    multiplied by; attention over positions is left out.
    """
    tables = {id(part.weight) for part in component.modules() if isinstance(part, nn.Embedding)}
    weights = [p for p in component.parameters() if id(p) not in tables]
    trained = sum(p.numel() for p in weights if p.requires_grad)
    return 4.0 * sum(p.numel() for p in weights) + 2.0 * trained


class Telemetry:
    """Collect figures of the steps since ``figures`` was called last.

    Args:
        peak: TFLOP/s of one rank's device; None leaves ``mfu`` out.
    """

    def __init__(
        self, component: Component, device: torch.device, num_ranks: int, peak: float | None
    ) -> None:
        self._device = device
        self._flops = None  # share of the peak that one token per second takes
        if isinstance(component, StageLM):
            self._unit, self._per_second = float(component.stage.target.num_levels), "tokens"
            if peak is not None:
                self._flops = flops_per_token(component) / (peak * 1e12 * num_ranks)
        else:
            rate = component.spec.sample_rate if isinstance(component, Tokenizer) else 1
            self._unit, self._per_second = 1 / rate, "audio_seconds"
        self._reset()

    def _reset(self) -> None:
        self._steps, self._seconds, self._waited, self._amount = 0, 0.0, 0.0, 0.0

    def note(self, seconds: float, waited: float, weight: float) -> None:
        """Add one step.

        Args:
            waited: seconds of these that it waited for its batch.
            weight: frames or samples that all ranks learnt from.
        """
        self._steps += 1
        self._seconds += seconds
        self._waited += waited
        self._amount += weight * self._unit

    def figures(self) -> dict[str, float]:
        """Return means of ``seconds`` and ``data_seconds``, throughput, ``peak_memory_gib``, and
        ``mfu``: the share of the peak that the model's arithmetic reaches."""
        steps, seconds = max(1, self._steps), max(self._seconds, 1e-9)
        found = {
            "seconds": self._seconds / steps,
            "data_seconds": self._waited / steps,
            f"{self._per_second}_per_second": self._amount / seconds,
            "peak_memory_gib": self._peak_memory() / 2**30,
        }
        if self._flops is not None:
            found["mfu"] = self._flops * self._amount / seconds
        self._reset()
        return found

    def _peak_memory(self) -> int:
        """Return bytes; on a CPU, those of the process."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
