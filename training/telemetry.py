"""What a training makes of its machine: throughput, waiting, memory, arithmetic used."""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn

from segue.core.interfaces import Component, StageLM, Tokenizer

#: Peak dense TFLOP/s from the makers' data sheets: in half precision, and in single precision as
#: PyTorch computes it unless told otherwise (without TF32).
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
    """Of one GPU that is known here; None of others and of CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (half, single) in PEAK_TFLOPS.items():
        if known in name:
            return single if precision == "32-true" else half
    return None


def flops_per_token(component: nn.Module) -> float:
    """Of one training step: twice the weights forwards, and backwards as much again for what goes
    through them and for each weight that is trained (Kaplan et al., arXiv 2001.08361, section 2.1).

    Tables are looked up in, not multiplied by; attention over positions is left out.
    """
    tables = {id(part.weight) for part in component.modules() if isinstance(part, nn.Embedding)}
    weights = [p for p in component.parameters() if id(p) not in tables]
    every = sum(p.numel() for p in weights)
    return 4.0 * every + 2.0 * sum(p.numel() for p in weights if p.requires_grad)


class Telemetry:
    """Figures of the steps since the last time they were asked for.

    Args:
        component: that is trained.
        device: of this rank.
        num_ranks: that train together.
        peak: TFLOP/s of one rank's device; None leaves ``mfu`` out.
    """

    def __init__(
        self, component: Component, device: torch.device, num_ranks: int, peak: float | None
    ) -> None:
        self._device = device
        self._flops = None
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
        """One step.

        Args:
            seconds: that it took.
            waited: seconds of these that the batch was waited for.
            weight: frames or samples that all ranks learnt from.
        """
        self._steps += 1
        self._seconds += seconds
        self._waited += waited
        self._amount += weight * self._unit

    def figures(self) -> dict[str, float]:
        """Of the steps since the last call: means of ``seconds`` and ``data_seconds``; throughput;
        ``mfu``, the share of the peak that the model's arithmetic is; ``peak_memory_gib``."""
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
        """Bytes; of the process where the device is a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
