"""How fast stages are trained: next to audiolm-pytorch and to the speed of matrix products.

    python benchmarks/stage_training.py [--json FILE] [--repeats 5]

One optimisation step (forward, backward, AdamW) of 2 crops of 3 s at equal width, depth and heads,
in fp32. The peer is optional; how to install it is printed when it is missing. About 6 minutes on
two cores, most of it the peer's fine stage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks import stages
from benchmarks.peers.packages import use_packages
from benchmarks.report import Report, reported
from benchmarks.timing import measured_gemm_rate, median_seconds
from segue.core.interfaces import StageBatch, StageLM
from segue.plugins.models.flat_transformer.model import FlatTransformer

SECONDS, BATCH = 3.0, 2


def training_step(lm: StageLM, batch: StageBatch) -> Callable[[], None]:
    """Take one step of the kind that ``segue train`` takes."""
    lm.train()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        lm.training_step(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()

    return step


def step_flops(lm: FlatTransformer, batch: StageBatch) -> float:
    """Count floating-point operations of the matrix products of one step.

    Six for each weight and position (two forward, four backward), those of causal attention (half
    of a full one), and one head per target token.
    """
    target = batch.target.ids[0].numel()
    length = target + 1 + sum(g.ids[0].numel() + 1 for g in batch.given)
    weights = sum(p.numel() for p in lm.transformer.parameters() if p.ndim == 2)
    width, depth = lm.config.width, lm.config.depth
    attention = 6 * depth * length**2 * width
    heads = 6 * target * width * lm.stage.target.codebook_size
    return len(batch.target.lengths) * (6 * weights * length + attention + heads)


def measure(report: Report, repeats: int) -> None:
    gemm = report.note("gemm", measured_gemm_rate(), "GFLOP/s")
    ours: dict[str, float] = {}
    rates = []
    for name in ("semantic", "coarse", "fine"):
        lm = stages.build("flat", name)
        assert isinstance(lm, FlatTransformer)
        batch = stages.batch_of(lm.stage, SECONDS, BATCH)
        took = median_seconds(training_step(lm, batch), repeats)
        ours[name] = report.note(f"flat_{name}", took, "s per step")
        rates.append(
            report.note(f"flat_{name}_rate", step_flops(lm, batch) / took / 1e9, "GFLOP/s")
        )
    # The semantic stage's 76 positions are too few to fill matrix products.
    report.ratio("flat_vs_gemm", min(rates[1:]) / gemm, "GFLOP/s, the lower of coarse and fine")
    for family in ("delay", "depth", "masked"):
        lm = stages.build(family, "all")
        step = training_step(lm, stages.batch_of(lm.stage, SECONDS, BATCH))
        report.note(f"{family}_all_levels", median_seconds(step, repeats), "s per step")
    if use_packages("audiolm_pytorch"):
        against_audiolm_pytorch(report, repeats, ours)


def against_audiolm_pytorch(report: Report, repeats: int, ours: dict[str, float]) -> None:
    from benchmarks.peers import audiolm_pytorch as peer

    sizes = peer.Sizes(semantic_codes=stages.SEMANTIC_CODES)
    for name in ("coarse", "fine"):
        step = peer.training_step(peer.build(name, sizes), BATCH, SECONDS)  # type: ignore[arg-type]
        theirs = report.note(f"audiolm_pytorch_{name}", median_seconds(step, repeats), "s per step")
        report.ratio(f"{name}_vs_audiolm_pytorch", theirs / ours[name], "time per step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    with reported(parser) as (arguments, report):
        measure(report, arguments.repeats)


if __name__ == "__main__":
    main()
