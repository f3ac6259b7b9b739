"""Measure what a pipeline's stages find likely: held-out tokens, minimal pairs, true against
spoiled audio.

Pairs and continuations are judged by the first stage, the one that is given nothing: the semantic
stage, or the acoustic stage of a pipeline without semantic tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.audio import Audio
from segue.core.config import StageConfig
from segue.core.errors import AudioError, ConfigError, DataError
from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.progress import Progress
from segue.data.audio_files import read_recording
from segue.data.recipe import read_rows
from segue.data.recordings import Recording
from segue.data.token_crops import TokenCrops
from segue.data.token_store import TokenStore
from segue.evaluation.statistics import grouped_summary, summarise
from segue.inference.bars import tracked
from segue.inference.inputs import prepare
from segue.inference.pipeline import Pipeline
from segue.inference.promises import scores_of
from segue.sound.reading import read_audio

LEAST_SECONDS = 0.1
SHUFFLES = 4  # random orders of each continuation


# --- held-out tokens --------------------------------------------------------------------------


def evaluate_likelihood(
    pipeline: Pipeline, store: TokenStore, batches: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Return the mean negative log-likelihood of held-out tokens, in nats per token, by stage and
    level.

    ``bits_per_second`` is that of all levels of a stage: what is left of the tokens' own rate once
    the model predicts them. It compares codecs of other levels and frame rates.
    """
    found: dict[str, Any] = {}
    for config in tracked(pipeline.config.stages, "likelihood", progress):
        lm = pipeline.stage_lm(config.name)
        crops = TokenCrops(store, lm.stage, config.crop_seconds, batch_size=4, seed=0)
        rows = []
        for index in range(batches):
            batch = crops.batch(index).to(pipeline.device)
            mask = batch.target.mask
            per_level = -(scores_of(lm, batch) * mask[:, None]).sum((0, 2)) / mask.sum()
            row = {f"level_{q}": float(value) for q, value in enumerate(per_level)}
            bits = float(per_level.sum()) / math.log(2)
            row["bits_per_second"] = bits * float(lm.stage.target.frame_rate)
            rows.append(row)
        found[config.name] = summarise(rows)
    return found


class FirstStage:
    """Hold the stage that is given nothing, and make the tokens that it predicts.

    Raises:
        ConfigError: if a pipeline has none.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        found = next((stage for stage in pipeline.config.stages if not stage.given), None)
        if found is None:
            fix = "name a pipeline with a stage whose `given` is empty"
            raise ConfigError("stages", "each is given tokens of another", fix)
        self._pipeline = pipeline
        self.config: StageConfig = found
        self.lm: StageLM = pipeline.stage_lm(found.name)

    def tokens(self, audio: Audio) -> Int64[Tensor, "Q N"]:
        """Return the tokens that the stage would be trained on for this audio, all of it.

        Raises:
            AudioError: if it holds nothing that could be taken.
        """
        transcoder, target = self._pipeline.audio, self.lm.stage.target
        ready = prepare(
            audio, transcoder.sample_rate, min_seconds=LEAST_SECONDS, max_seconds=math.inf,
            place="recording",
        )  # fmt: skip
        tokens = transcoder.encode_stream(target.stream, [ready], transcoder.gains([ready]))
        return tokens.levels(target.start, target.stop).row(0)

    @torch.inference_mode()
    def score(self, ids: Int64[Tensor, "Q N"]) -> Float[Tensor, "N"]:
        """Return the log-likelihood of each frame in nats, given those before it."""
        batch = StageBatch(Tokens.full(ids[None])).to(self._pipeline.device)
        return scores_of(self.lm, batch)[0].sum(0).double().cpu()


def preferred(right: float, wrong: float) -> float:
    """Return 1 if the first is likelier, 0 if the second is, 0.5 for a tie."""
    return 0.5 if right == wrong else float(right > wrong)


# --- minimal pairs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Name two recordings, of which the first is right."""

    right: Path
    wrong: Path
    # Pairs that share it are drawn together, such as one word in several voices.
    group: str
    kind: str = ""  # of the contrast, such as a syntactic phenomenon; empty if there is but one


def read_pairs(table: Path, folder: Path | None = None) -> list[Pair]:
    """Read minimal pairs in the form of the Zero Resource Speech Challenge (arXiv 2011.11588).

    Args:
        table: columns ``id``, ``filename`` (or ``path``) and ``correct`` (1 or 0), optionally
            ``voice`` and ``type``. Rows of one id and voice belong together: one is correct, each
            other one makes a pair with it. Names without a suffix get ``.wav``.

    Raises:
        DataError: if a column is missing or rows make no pairs.
    """
    rows = read_rows(table, ("id", "correct"))
    column = next((name for name in ("filename", "path") if name in rows[0][1]), None)
    if column is None:
        raise DataError(str(table), "lacks the column 'filename'", "check the table")
    together: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line, row in rows:
        if row["correct"] not in ("0", "1"):
            problem = f"'correct' is {row['correct']!r}"
            raise DataError(f"{table}, line {line}", problem, "write 1 or 0")
        together.setdefault((row["id"], row.get("voice") or ""), []).append(row)
    root = folder or table.parent
    pairs = []
    for (identity, voice), members in together.items():
        right = [row for row in members if row["correct"] == "1"]
        if len(right) != 1 or len(members) < 2:
            label = f"{identity} {voice}".strip()
            problem = f"id {label} has {len(right)} correct rows of {len(members)}"
            raise DataError(str(table), problem, "give one that is correct and one that is not")
        for row in members:
            if row["correct"] == "0":
                wrong = _path(root, row[column])
                kind = row.get("type") or ""
                pairs.append(Pair(_path(root, right[0][column]), wrong, identity, kind))
    return pairs


def _path(root: Path, name: str) -> Path:
    path = root / name
    return path if path.suffix else path.with_suffix(".wav")


def evaluate_pairs(
    pipeline: Pipeline, pairs: Sequence[Pair], progress: Progress | None = None
) -> dict[str, Any]:
    """Measure how often the right one of a pair is the likelier.

    Returns:
        ``pairs``, and ``pairs: <kind>`` where there are several kinds: ``by_mean`` compares nats
        per token, ``by_sum`` nats of the whole recording, which favours the shorter; equal ones
        count one half. ``margin`` is the difference of nats per token. Intervals are drawn over
        groups; ``unusable`` counts pairs that cannot be read.

    Raises:
        DataError: if none can be used.
    """
    stage = FirstStage(pipeline)
    rows, kept = [], []
    for pair in tracked(pairs, "pairs", progress):
        try:
            right, wrong = (
                stage.score(stage.tokens(read_audio(p))) for p in (pair.right, pair.wrong)
            )
        except AudioError:
            continue
        rows.append(
            {
                "by_mean": preferred(float(right.mean()), float(wrong.mean())),
                "by_sum": preferred(float(right.sum()), float(wrong.sum())),
                "margin": float(right.mean() - wrong.mean()),
            }
        )
        kept.append(pair)
    if not rows:
        raise DataError("pairs", "none can be used", "check --pairs and --audio")
    found: dict[str, Any] = {"pairs": grouped_summary(rows, [pair.group for pair in kept])}
    found["pairs"]["unusable"] = len(pairs) - len(kept)
    kinds = sorted({pair.kind for pair in kept})
    for kind in kinds if len(kinds) > 1 else ():
        places = [place for place, pair in enumerate(kept) if pair.kind == kind]
        found[f"pairs: {kind or 'other'}"] = grouped_summary(
            [rows[place] for place in places], [kept[place].group for place in places]
        )
    return found


# --- true against spoiled continuations --------------------------------------------------------


@dataclass(frozen=True)
class Spoiling:
    """Say how continuations are spoiled."""

    prompt_seconds: float  # left as they are, and not judged
    seconds: float  # judged
    piece_seconds: float  # length of the pieces that change places
    seed: int = 0  # of the orders


def evaluate_order(
    pipeline: Pipeline,
    recordings: Sequence[Recording],
    order: Spoiling,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure how often the true continuation is likelier than a spoiled one.

    Tokens of each recording are made once, so that no cut can be heard. After the same prompt come
    the true frames; the same in pieces of another order (``shuffled``, the share of ``SHUFFLES``
    orders that are less likely); the same backwards (``reversed``); and as many frames of another
    group's recording at that place (``foreign``).

    The foreign frames may be likelier in themselves, so the true ones are also compared with
    themselves after the other recording's prompt (``foreign_prompt``).

    Returns:
        ``order``: those shares, with intervals over groups, ``..._margin`` in nats per frame, and
        ``nats``, those of the truth.

    Raises:
        ConfigError: if a continuation holds fewer than two pieces.
        DataError: if no recording is long enough.
    """
    stage = FirstStage(pipeline)
    rate = float(stage.lm.stage.target.frame_rate)
    first, count = round(order.prompt_seconds * rate), round(order.seconds * rate)
    piece = max(1, round(order.piece_seconds * rate))
    if count < 2 * piece:
        raise ConfigError("piece_seconds", f"{order.piece_seconds:g} s is too long", "take less")
    found = [(r, _whole(stage, r, first + count)) for r in recordings]
    kept = [(recording.group, ids) for recording, ids in found if ids is not None]
    if not kept:
        least = order.prompt_seconds + order.seconds
        raise DataError("recordings", f"none lasts {least:g} s", "ask for fewer seconds")
    rows = []
    for index, (group, ids) in enumerate(tracked(kept, "order", progress)):
        others = [other for name, other in (*kept[index + 1 :], *kept[:index]) if name != group]
        random = torch.Generator().manual_seed(order.seed * len(kept) + index)
        rows.append(_spoiled(stage, ids, others[0] if others else None, first, piece, random))
    figures = grouped_summary(rows, [group for group, _ in kept])
    return {"order": figures | {"unusable": len(recordings) - len(kept)}}


def _whole(stage: FirstStage, recording: Recording, frames: int) -> Int64[Tensor, "Q N"] | None:
    """Return the first frames of a recording, or None if it is too short or cannot be read."""
    seconds = (frames + 1) / float(stage.lm.stage.target.frame_rate)
    try:
        ids = stage.tokens(read_recording(recording, first_seconds=seconds))
    except AudioError:
        return None
    return ids[:, :frames] if ids.shape[1] >= frames else None


def _spoiled(
    stage: FirstStage,
    ids: Int64[Tensor, "Q N"],
    other: Int64[Tensor, "Q N"] | None,
    first: int,
    piece: int,
    random: torch.Generator,
) -> dict[str, float]:
    """Return shares and margins of one recording; frames from ``first`` on are judged."""
    prompt, truth = ids[:, :first], ids[:, first:]

    def nats(before: Int64[Tensor, "Q M"], after: Int64[Tensor, "Q K"]) -> float:
        return float(stage.score(torch.cat([before, after], dim=1))[first:].mean())

    orders = [nats(prompt, shuffled(truth, piece, random)) for _ in range(SHUFFLES)]
    spoiled = {
        "shuffled": orders,
        "reversed": [nats(prompt, truth.flip(1))],
        "foreign": [] if other is None else [nats(prompt, other[:, first:])],
        "foreign_prompt": [] if other is None else [nats(other[:, :first], truth)],
    }
    own = nats(prompt, truth)
    row = {name: _mean([preferred(own, one) for one in all_]) for name, all_ in spoiled.items()}
    margins = {
        f"{name}_margin": _mean([own - one for one in all_]) for name, all_ in spoiled.items()
    }
    return row | margins | {"nats": -own}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def shuffled(
    ids: Int64[Tensor, "Q N"], piece: int, random: torch.Generator
) -> Int64[Tensor, "Q N"]:
    """Put pieces of ``piece`` frames (the last may be shorter) into another order."""
    pieces = ids.split(piece, dim=1)
    order = list(range(len(pieces)))
    while order == sorted(order):
        order = torch.randperm(len(pieces), generator=random).tolist()
    return torch.cat([pieces[index] for index in order], dim=1)
