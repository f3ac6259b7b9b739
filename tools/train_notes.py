"""Teach the network of note_kmeans.v1 to transcribe, from recordings whose scores are known.

    python tools/train_notes.py DATA TARGET [--steps 400]      (data/ notes/)

DATA is what tools/render_piano.py writes: manifest.csv with the columns path, split and midi. Only
pieces to train on are learnt from; of those held out, the figures are printed. TARGET becomes a
tokenizer that is still to be fitted: `segue train semantic_tokenizer
--set semantic_tokenizer.checkpoint=TARGET` fits the clusters.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from segue.core.checkpoint import save_component
from segue.core.files import atomic_directory
from segue.core.plugins import default_host
from segue.evaluation.pitches import read_notes
from segue.plugins.tokenizers.common.options import HOP, KEYS, LOWEST, RATE

USE = "note_kmeans.v1"
LEARNING_RATE = 4e-3
CROP = 200  # frames
ROWS = 6
Table = np.ndarray[Any, Any]
Scores = dict[str, tuple[Table, Table]]
Crop = tuple[Table, Table, Table]
STRUCK = 4.0  # weight of a frame in which a key is struck


def labels(midi: Path, frames: int) -> tuple[Table, Table]:
    """Return whether each key is struck in a frame, and whether it sounds, ``[frames, keys]``."""
    struck, sounding = (np.zeros((frames, KEYS), dtype=bool) for _ in range(2))
    for note in read_notes(midi):
        key, first = note.pitch - LOWEST, int(note.start * RATE / HOP)
        if 0 <= key < KEYS and first < frames:
            struck[first, key] = True
            sounding[first : max(first + 1, int(note.end * RATE / HOP)), key] = True
    return struck, sounding


def crop(row: dict[str, str], data: Path, random: np.random.Generator, scores: Scores) -> Crop:
    """Return a random crop of a piece, made louder or softer, with its labels."""
    path = data / row["path"]
    if row["path"] not in scores:
        scores[row["path"]] = labels(data / row["midi"], soundfile.info(path).frames // HOP)
    struck, sounding = scores[row["path"]]
    first = int(random.integers(max(1, len(struck) - CROP)))
    found, _ = soundfile.read(path, CROP * HOP, first * HOP, dtype="float32")
    wave = np.zeros(CROP * HOP, dtype=np.float32)
    wave[: len(found)] = found * np.exp(random.normal(0, 0.4))
    wave += random.standard_normal(len(wave)) * 10 ** random.uniform(-5, -3)
    shown = []
    for table in (struck, sounding):
        whole = np.zeros((CROP, KEYS), dtype=np.float32)
        whole[: len(table[first : first + CROP])] = table[first : first + CROP]
        shown.append(whole)
    return wave, shown[0], shown[1]


def batch(
    rows: list[dict[str, str]], data: Path, random: np.random.Generator, scores: Scores
) -> list[Tensor]:
    parts = [crop(rows[random.integers(len(rows))], data, random, scores) for _ in range(ROWS)]
    return [torch.from_numpy(np.stack(column)) for column in zip(*parts, strict=True)]


def losses(network: torch.nn.Module, wave: Tensor, struck: Tensor, sounding: Tensor) -> Tensor:
    first, second = network(wave)
    return binary_cross_entropy_with_logits(
        first, struck, pos_weight=torch.tensor(STRUCK)
    ) + 0.3 * binary_cross_entropy_with_logits(second, sounding)


@torch.no_grad()
def figures(network: torch.nn.Module, batches: list[list[Tensor]]) -> str:
    """Return F1 of onsets (one frame off is right) and of sounding keys."""
    counts = np.zeros(6)
    for wave, struck, sounding in batches:
        first, second = network(wave)
        peak = torch.nn.functional.max_pool2d(first, (3, 1), 1, (1, 0))
        found = (first > 0) & (first == peak)
        near = torch.nn.functional.max_pool2d(struck, (3, 1), 1, (1, 0)) > 0
        counts[:3] += [(found & near).sum(), found.sum(), struck.sum()]
        on = second > 0
        counts[3:] += [(on & (sounding > 0)).sum(), on.sum(), sounding.sum()]
    return " ".join(
        f"{name} F1 {2 * hit / max(1, made + true):.3f}"
        for name, (hit, made, true) in (("onset", counts[:3]), ("sounding", counts[3:]))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    with (arguments.data / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    split = {name: [r for r in rows if r["split"] == name] for name in ("train", "valid")}
    tokenizer = default_host().create("semantic_tokenizer", USE, {}, place="tokenizer")
    network = tokenizer.network.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    scores: Scores = {}
    fixed = np.random.default_rng(1)
    held_out = [batch(split["valid"], arguments.data, fixed, scores) for _ in range(8)]
    mean = 0.0
    for step in range(1, arguments.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = (
                LEARNING_RATE
                * min(1, step / 30)
                * 0.5
                * (1 + np.cos(np.pi * step / arguments.steps))
            )
        loss = losses(network, *batch(split["train"], arguments.data, random, scores))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        mean += (float(loss.detach()) - mean) / min(50, step)
        if step % 50 == 0 or step == arguments.steps:
            network.eval()
            print(f"step {step} loss {mean:.4f} {figures(network, held_out)}", flush=True)
            network.train()
    network.eval().requires_grad_(False)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half().float()
    with atomic_directory(arguments.target) as temporary:
        save_component(tokenizer, temporary, "semantic_tokenizer", USE, {}, torch.float16, None)


if __name__ == "__main__":
    main()
