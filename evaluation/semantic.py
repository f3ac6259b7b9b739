"""Measure what tokens reveal of speech: ABX discrimination, and information about labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.errors import AudioError, DataError
from segue.core.progress import Progress
from segue.evaluation.abx import Errors, abx_errors
from segue.evaluation.representations import MFCC, Representation, piece
from segue.evaluation.statistics import entropy, mutual_information, summarise
from segue.evaluation.subjects import Item
from segue.inference.bars import tracked
from segue.sound.reading import read_audio

STRENGTHS = (1, 4, 16, 64, 256)


def evaluate_semantic(
    items: Sequence[Item],
    representations: Sequence[Representation],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure how well each representation separates labelled pieces.

    Args:
        items: labelled pieces; those whose recordings cannot be read are counted and left out.

    Returns:
        ``representations``: by name, ``within`` and ``across`` (see ``Errors``), each also less
        that of MFCC on the same triples, the ``distance`` of frames and the ``frame_rate``; for one
        level of tokens also ``label_bits``, what a frame's token reveals of its label
        (an estimate over speakers), of ``label_entropy`` bits. ``mutual_information``
        is the same by all counts at once, too much by what chance suggests; its share of the
        entropy is the phone-normalised mutual information of HuBERT (arXiv 2106.07447) where labels
        are phones.

    Raises:
        DataError: if no item can be used.
    """
    usable, pieces = _pieces(items, representations, progress)
    if not usable:
        raise DataError("recordings", "none can be used", "check the data")
    found: dict[str, Any] = {}
    errors: dict[str, dict[str, Errors]] = {}
    for representation in tracked(representations, "ABX", progress):
        sequences = pieces[representation.name]
        errors[representation.name] = abx_errors(usable, sequences, representation.distance)
        found[representation.name] = {
            **{side: one.estimate() for side, one in errors[representation.name].items()},
            "distance": representation.distance,
            "frame_rate": representation.frame_rate,
            **_information(usable, sequences, representation),
        }
    for name in errors.keys() - {MFCC}:
        for side, other in errors.get(MFCC, {}).items():
            found[name][f"{side} less {MFCC}"] = errors[name][side].less(other).estimate()
    return {
        "items": len(usable),
        "unusable": len(items) - len(usable),
        "labels": len({item.label for item in usable}),
        "speakers": len({item.speaker for item in usable}),
        "representations": found,
    }


def _pieces(
    items: Sequence[Item], representations: Sequence[Representation], progress: Progress | None
) -> tuple[list[Item], dict[str, list[Tensor]]]:
    """Return the items that can be read, and their frames in each representation."""
    usable: list[Item] = []
    pieces: dict[str, list[Tensor]] = {r.name: [] for r in representations}
    by_path: dict[Path, list[Item]] = {}
    for item in items:
        by_path.setdefault(item.path, []).append(item)
    for path, inside in tracked(list(by_path.items()), "encode", progress):
        try:
            audio = read_audio(path)
        except AudioError:
            continue
        here = [item for item in inside if item.start < audio.seconds]
        usable += here
        for representation in representations:
            frames = representation.frames(audio)
            pieces[representation.name] += [
                piece(frames, representation.frame_rate, item.start, item.end) for item in here
            ]
    return usable, pieces


def _information(
    items: Sequence[Item], sequences: Sequence[Tensor], representation: Representation
) -> dict[str, Any]:
    """Return what one level of tokens reveals of labels, and how much there is to reveal."""
    vocabulary = representation.vocabulary
    if vocabulary is None or representation.levels > 1:
        return {}
    names = sorted({item.label for item in items})
    tables: dict[str, Tensor] = {}  # by speaker [L, V]
    for item, ids in zip(items, sequences, strict=True):
        table = tables.setdefault(item.speaker, torch.zeros(len(names), vocabulary))
        table[names.index(item.label)] += torch.bincount(ids[:, 0], minlength=vocabulary)
    total = torch.stack(list(tables.values())).sum(0)
    found: dict[str, Any] = {
        "label_entropy": entropy(total.sum(1)),
        "mutual_information": mutual_information(total),
        "frames": int(total.sum()),
    }
    if len(tables) > 1:
        rows = [{"bits": bits} for bits in label_bits(list(tables.values()))]
        found["label_bits"] = summarise(rows)["bits"]
    return found


def label_bits(tables: Sequence[Float[Tensor, "L V"]]) -> list[float]:
    """Return the bits per frame that tokens reveal of each speaker's labels, by the counts of all
    others.

    Counts start from the labels' own shares, as if so many frames (``STRENGTHS``) had been seen of
    each token; the best of these numbers is taken. Frames of one word are alike, so that
    counts look surer than they are.
    """
    total = torch.stack(list(tables)).sum(0).double()
    trials = [[_gain(table.double(), total, s) for table in tables] for s in STRENGTHS]
    return max(trials, key=sum)


def _gain(table: Float[Tensor, "L V"], total: Float[Tensor, "L V"], strength: float) -> float:
    known = total - table
    prior = (known.sum(1, keepdim=True) + 1) / (known.sum() + len(known))
    given = (known + strength * prior) / (known.sum(0) + strength)
    return float((table * (given / prior).log2()).sum() / table.sum())
