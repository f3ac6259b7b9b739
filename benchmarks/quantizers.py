"""How well residual quantizers learn: Segue's next to those of vector-quantize-pytorch.

    python benchmarks/quantizers.py [--steps 120] [--size 1024] [--levels 12]

Each learns from the same stream of batches of 800 vectors of 32 channels, fewer than a level has
codes, and is then compared with vectors that it has not seen. Printed for each: the share of codes
that the held-out vectors use and its perplexity (over the codebook's size), mean over levels and
worst level; the error after 1, 4 and all levels, relative to the vectors' variance; and CPU
seconds per step. The stream is a mixture whose components are visited with unequal frequency, for
a few frames at a time, and wander slowly, as latents do while an encoder learns. ``--only`` takes
those whose names begin with a word.
The library is optional: ``pip install vector-quantize-pytorch``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from benchmarks.report import Report, reported

ROWS, FRAMES, DIM = 16, 50, 32
HELD_OUT = 20  # batches
STAY = 0.75  # probability that the next frame is of the same component
DECAY, REVIVE = 0.98, 0.1  # as in Segue's codecs


class Learner(Protocol):
    """A quantizer that learns from ``[B, N, D]`` and gives ids ``[B, N, Q]`` and each level's
    reconstruction ``[B, N, D]``."""

    def learn(self, x: Tensor) -> None: ...

    def quantize(self, x: Tensor) -> tuple[Tensor, list[Tensor]]: ...


class Ours:
    """Segue's quantizer."""

    def __init__(self, dim: int, levels: int, size: int, kmeans_vectors: int = 0) -> None:
        from segue.plugins.tokenizers.common.quantizer import ResidualQuantizer

        self.quantizer = ResidualQuantizer(
            levels, size, dim, DECAY, REVIVE, kmeans_vectors=kmeans_vectors
        )

    def learn(self, x: Tensor) -> None:
        self.quantizer.train()(x, torch.ones(x.shape[:2]))

    def quantize(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        ids = self.quantizer.eval().encode(x)
        counts = range(1, ids.shape[1] + 1)
        return ids.transpose(1, 2), [self.quantizer.decode(ids[:, :count]) for count in counts]


class Library:
    """ResidualVQ of vector-quantize-pytorch; projections, if any, learn to give back the input."""

    def __init__(self, dim: int, levels: int, size: int, **options: Any) -> None:
        from vector_quantize_pytorch import ResidualVQ

        self.quantizer = ResidualVQ(dim=dim, num_quantizers=levels, codebook_size=size, **options)
        learnt = [p for p in self.quantizer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, lr=1e-3) if learnt else None

    def learn(self, x: Tensor) -> None:
        made, _, commitment = self.quantizer.train()(x)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            ((made - x).square().mean() + commitment.mean()).backward()
            self.optimizer.step()

    def quantize(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        _, ids, _ = self.quantizer.eval()(x)
        codes = self.quantizer.get_codes_from_indices(ids)
        sums = [self.quantizer.project_out(total) for total in codes.cumsum(dim=0)]
        return ids, sums


def contenders(dim: int, levels: int, size: int) -> dict[str, Callable[[], Learner]]:
    """Return the quantizers to compare, by name."""
    fair = REVIVE * ROWS * FRAMES / size  # uses per batch that are as rare as ours must be

    def library(**options: Any) -> Callable[[], Learner]:
        return lambda: Library(dim, levels, size, **options)

    ours: dict[str, Callable[[], Learner]] = {
        "segue": lambda: Ours(dim, levels, size),
        "segue-kmeans": lambda: Ours(dim, levels, size, kmeans_vectors=4 * size),
    }
    try:
        import vector_quantize_pytorch  # noqa: F401
    except ImportError:
        print("vector-quantize-pytorch skipped: pip install vector-quantize-pytorch")
        return ours
    tuned = {"decay": DECAY, "kmeans_init": True, "threshold_ema_dead_code": fair}
    return ours | {
        "library": library(),
        "library-dead-code-2": library(threshold_ema_dead_code=2),
        "library-kmeans-dead-code-2": library(kmeans_init=True, threshold_ema_dead_code=2),
        "library-tuned": library(**tuned),
        "library-tuned-dim-8": library(codebook_dim=8, **tuned),
        "library-tuned-cosine": library(use_cosine_sim=True, **tuned),
    }


class Mixture:
    """Yield batches of frames that dwell on one of many components for a while.

    Args:
        components: of the mixture; the k-th is visited with a frequency of about 1 / k.
    """

    def __init__(self, components: int = 3000) -> None:
        self.draw = torch.Generator().manual_seed(0)
        spectrum = torch.arange(1, DIM + 1) ** -0.5
        self.centres = torch.randn(components, DIM, generator=self.draw) * spectrum
        self.shares = 1.0 / torch.arange(10, components + 10)
        self.spread = 0.3 * spectrum
        self.pace = 0.01 * spectrum

    def __call__(self) -> Tensor:
        self.centres += torch.randn(self.centres.shape, generator=self.draw) * self.pace
        count = ROWS * FRAMES
        drawn = torch.multinomial(self.shares, count, True, generator=self.draw)
        chosen = drawn.view(ROWS, FRAMES)
        stays = torch.rand(ROWS, FRAMES, generator=self.draw) < STAY
        for frame in range(1, FRAMES):
            before = chosen[:, frame - 1]
            chosen[:, frame] = torch.where(stays[:, frame], before, chosen[:, frame])
        noise = torch.randn(ROWS, FRAMES, DIM, generator=self.draw)
        return self.centres[chosen] + noise * self.spread


def compare(
    report: Report,
    stream: Callable[[], Tensor],
    steps: int,
    levels: int,
    size: int,
    only: str = "",
) -> None:
    """Train every contender on the same batches, and report what became of it."""
    batches = [stream() for _ in range(steps)]
    held_out = torch.cat([stream() for _ in range(HELD_OUT)])
    variance = (held_out - held_out.mean(dim=(0, 1))).square().mean()
    for name, make in contenders(held_out.shape[2], levels, size).items():
        if not name.startswith(only):
            continue
        torch.manual_seed(0)
        learner = make()
        started = time.process_time()
        for batch in batches:
            learner.learn(batch)
        pace = (time.process_time() - started) / steps
        with torch.no_grad():
            ids, sums = learner.quantize(held_out)
        _use(report, name, ids, size)
        for count in sorted({1, min(4, levels), levels}):
            error = (sums[count - 1] - held_out).square().mean() / variance
            report.note(f"{name}: error after {count}", float(error), "of the variance")
        report.note(f"{name}: step", pace, "s of CPU")


def _use(report: Report, name: str, ids: Tensor, size: int) -> None:
    used, perplexity = [], []
    for level in ids.flatten(0, 1).unbind(1):
        shares = torch.bincount(level, minlength=size) / len(level)
        used.append(float((shares > 0).float().mean()))
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
        perplexity.append(float(entropy.exp()) / size)
    for what, values in (("codes used", used), ("perplexity", perplexity)):
        report.note(f"{name}: {what}", sum(values) / len(values), "of V, mean over levels")
        report.note(f"{name}: {what}, worst level", min(values), "of V")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--levels", type=int, default=12)
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=1)
    with reported(parser) as (options, report):
        torch.set_num_threads(options.threads)
        compare(report, Mixture(), options.steps, options.levels, options.size, options.only)


if __name__ == "__main__":
    main()
