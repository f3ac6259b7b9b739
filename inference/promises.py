"""Check what plugins return, wherever their contract is called; no result is trusted.

Each check looks at shapes, types and extremes only, which costs far less than the call itself, and
raises one sentence that names the component and the distribution that it comes from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from jaxtyping import Float
from pluggy import HookCaller
from torch import Tensor

from segue.core.discovery import described, distribution_of
from segue.core.errors import PluginError, SegueError
from segue.core.files import as_json
from segue.core.hookspecs import PROJECT
from segue.core.memory import out_of_memory
from segue.core.metrics import Measured
from segue.core.spec import LOUDEST, TokenSpec
from segue.core.tokens import StageBatch, Tokens

if TYPE_CHECKING:
    from segue.core.interfaces import Component, StageLM
    from segue.inference.request import GeneratedAudio

FEW = 64  # codes
MOST_LIKELY = 0.01  # log-likelihood that is still 0, rounded in half precision
MOST_WAITS = 100_000  # pieces without a frame in a row; passes that fill masks yield one each
MOST_DECODED = 1e4  # peak, of full scale 1, that a codec may reach while it is hardly trained


@contextmanager
def calling(component: object, call: str) -> Iterator[None]:
    """Name a component of another package that fails in the block; Segue's own mistakes pass.

    Raises:
        PluginError: also where it would have ended the process.
    """
    try:
        yield
    except (SegueError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit, too
        kind = type(component)
        owner, _ = distribution_of(kind)
        if isinstance(error, Exception) and (owner == PROJECT or out_of_memory(error)):
            raise
        place, fix = f"{kind.__name__} of {owner}", f"report it to {owner}"
        problem = f"{call} failed: {described(error, kind.__module__)}"
        raise PluginError(place, problem, fix) from error


def check_tokens(component: object, tokens: object, spec: TokenSpec, lengths: Tensor) -> Tokens:
    """Raise ``PluginError`` if tokens of audio break the contract of ``Tokenizer.encode``.

    Args:
        lengths: ``[B]`` samples of each row that was encoded.
    """
    if not isinstance(tokens, Tokens):
        _refuse(component, f"encode returned a {type(tokens).__name__}, not Tokens")
    _check_tokens(component, "encode", tokens, len(lengths), spec.num_levels, spec.codebook_size)
    frames = [spec.num_frames(int(length)) for length in lengths]
    found = tokens.lengths.tolist()
    if found != frames:
        _refuse(component, f"encode returned {found} frames, its spec declares {frames}")
    return tokens


def check_wave(component: object, wave: object, rows: int, samples: int | None) -> Tensor:
    """Raise ``PluginError`` if audio breaks the contract of ``AcousticCodec.decode``.

    Args:
        rows: B.
        samples: T, or None where any number is right.
    """
    if not isinstance(wave, Tensor) or not wave.is_floating_point() or wave.itemsize < 2:
        kind = wave.dtype if isinstance(wave, Tensor) else type(wave).__name__
        _refuse(component, f"decode returned {kind}, not floating-point samples")
    _check_dense(component, "decode", wave)
    right = wave.ndim == 2 and wave.shape[0] == rows and samples in (None, wave.shape[-1])
    if not right:
        wanted = f"[{rows}, {'T' if samples is None else samples}]"
        _refuse(component, f"decode returned shape {list(wave.shape)}, not {wanted}")
    low, high = map(float, torch.aminmax(wave.detach())) if wave.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        _refuse(component, "decode returned NaN or infinite samples")
    if (peak := max(high, -low)) > MOST_DECODED:
        _refuse(component, f"decode returned a peak of {peak:.2g}, where full scale is 1")
    return wave.detach()


def check_streamed(component: object, unit: str, owed: int, ended: bool) -> None:
    """Check how much a streaming decoder or encoder gave so far.

    Args:
        component: the codec, for the message.
        unit: samples or frames.
        owed: how many were pushed, less those that came out.
        ended: whether ``finish`` was called.

    Raises:
        PluginError: if more came out than was pushed, or less in the end.
    """
    if owed < 0 or (ended and owed):
        often = "many" if owed < 0 else "few"
        _refuse(component, f"its stream gave {abs(owed)} {unit} too {often}")


def check_codes(component: object, codes: object, levels: int, codebook_size: int) -> Tensor:
    """Raise ``PluginError`` unless codes of a streaming encoder are ``[1, Q, n]`` and legal."""
    if not isinstance(codes, Tensor):
        _refuse(component, f"a streaming encoder returned a {type(codes).__name__}, not codes")
    lengths = torch.zeros(1, dtype=torch.long)
    tokens = Tokens(codes, lengths)
    _check_tokens(component, "a streaming encoder", tokens, 1, levels, codebook_size)
    return codes


def check_scores(
    component: object, scores: object, shape: tuple[int, ...], call: str = "score"
) -> Tensor:
    """Raise ``PluginError`` if scores or log-likelihoods have another shape or NaN."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        _refuse(component, f"{call} returned {kind}, not floating-point numbers")
    _check_dense(component, call, scores)
    if scores.shape != shape:
        _refuse(component, f"{call} returned shape {list(scores.shape)}, not {list(shape)}")
    if scores.isnan().any():
        _refuse(component, f"{call} returned NaN")
    return scores


def scores_of(lm: StageLM, batch: StageBatch) -> Float[Tensor, "B Q N"]:
    """Return ``lm.score`` of a batch, or raise ``PluginError`` where it breaks its contract."""
    with calling(lm, "score"):
        scores = lm.score(batch)
    check_scores(lm, scores, batch.target.ids.shape)
    if scores.numel() and (best := float(scores.detach().max())) > MOST_LIKELY:
        _refuse(lm, f"score returned the log-likelihood {best:.2g}, which is above 0")
    return scores


def check_pieces(component: object, pieces: object) -> Iterator[Tokens]:
    """Raise ``PluginError`` if ``StageLM.stream`` returned nothing to iterate over."""
    if not isinstance(pieces, Iterable):
        _refuse(component, f"stream returned a {type(pieces).__name__}, not an iterator")
    return iter(pieces)


def check_frames(
    component: object,
    piece: object,
    rows: int,
    levels: int,
    codebook_size: int,
    most: int,
    waits: int = 0,
) -> Tokens:
    """Raise ``PluginError`` if drawn frames break the contract of ``StageLM.stream``.

    Args:
        rows, levels, codebook_size: B, Q and V that were asked for.
        most: frames that were still to be drawn.
        waits: pieces without a frame that came right before.
    """
    if not isinstance(piece, Tokens):
        _refuse(component, f"stream yielded a {type(piece).__name__}, not Tokens")
    _check_tokens(component, "stream", piece, rows, levels, codebook_size)
    if piece.ids.shape[2] > most:
        _refuse(component, f"stream yielded {piece.ids.shape[2]} frames where {most} were left")
    if waits >= MOST_WAITS:
        _refuse(component, f"stream yielded {waits} pieces in a row without a frame")
    return piece


def check_losses(
    component: object, losses: Mapping[str, object], needed: Sequence[str], learning: bool
) -> None:
    """Check what a training step returned.

    Args:
        component: what learns, for the message.
        losses: figures by name.
        needed: names of those that are minimised.
        learning: whether gradients are computed from them.

    Raises:
        PluginError: if it breaks the contract of ``Component.training_step``.
    """
    for name, value in losses.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim:
            kind = f"a {type(value).__name__}"
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else kind
            _refuse(component, f"its training step returned {name} as {found}, not as one number")
        _check_dense(component, "its training step", value)
    for name in needed:
        if not isinstance(value := losses.get(name), Tensor):
            _refuse(component, f"its training step returned no {name!r}")
        if learning and not value.requires_grad:
            _refuse(component, f"its training step returned {name!r} without a gradient")


def check_likelihood(lm: StageLM, loss: float) -> None:
    """Raise ``PluginError`` if a loss, a mean of ``-log p`` of tokens, is below 0."""
    if loss < -MOST_LIKELY:
        _refuse(lm, f"loss returned {loss:.2g}, which is below 0")


def check_weight(component: object, weight: object) -> float:
    """Check how much a batch weighs.

    Raises:
        PluginError: if it breaks the contract of ``Component.weight_of``.
    """
    number = check_figure(component, weight)
    if not 0 <= number < math.inf:
        _refuse(component, f"weight_of returned {number:g}")
    return number


def check_fitted(component: Component, figures: object) -> dict[str, float]:
    """Check a component and its figures, now that it was fitted.

    Raises:
        PluginError: if it breaks the contract of ``Component.fit``.
    """
    if not isinstance(figures, Mapping):
        _refuse(component, f"fit returned a {type(figures).__name__}, not figures by name")
    if not component.is_fitted:
        _refuse(component, "is_fitted is false after fit")
    for name, value in component.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            _refuse(component, f"fit left NaN or infinite numbers in {name}")
    return {str(name): check_figure(component, value) for name, value in figures.items()}


def check_figure(component: object, value: object) -> float:
    """Check the figure of a pair, or one that a component gives its log.

    Raises:
        PluginError: if it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        _refuse(component, f"it returned a {type(value).__name__}, not a number")
    return float(value)


def check_measured(metric: object, result: object, records: int) -> Measured:
    """Return the figures of a set of continuations, or raise ``PluginError``."""
    if not isinstance(result, Measured):
        _refuse(metric, f"measure returned a {type(result).__name__}, not Measured")
    if len(result.rows) != records:
        _refuse(metric, f"measure returned {len(result.rows)} rows for {records} records")
    if len({frozenset(row) for row in result.rows}) > 1:
        _refuse(metric, "measure returned rows of unlike names")
    rows = [{key: check_figure(metric, row[key]) for key in row} for row in result.rows]
    return Measured(rows, result.overall)


def check_hooked(hook: HookCaller, audio: GeneratedAudio, before: GeneratedAudio) -> None:
    """Check generated audio after lifecycle hooks had it; keep the number format of its samples.

    Args:
        hook: the hook, for the names of the plugins that implement it.
        audio: as it is after the hooks.
        before: a copy of it from before them.

    Raises:
        PluginError: if a hook left anything but as many finite samples, not far too loud, and
            further metadata that JSON can hold.
    """
    plugins = [str(each.plugin_name) for each in hook.get_hookimpls()]
    if not plugins:
        return
    problem = (
        _wave_problem(getattr(audio, "wave", None), before.wave)
        or _metadata_problem(getattr(audio, "metadata", None), before.metadata)
        or _changed(audio, before)
    )
    if problem:
        fix = "let hooks change samples and add metadata only, or block the plugin"
        raise PluginError(f"{hook.name} of {', '.join(plugins)}", problem, fix)
    audio.wave = audio.wave.detach().to(before.wave.dtype)


def _wave_problem(wave: object, before: Tensor) -> str:
    if not isinstance(wave, Tensor) or not wave.is_floating_point():
        return f"audio.wave became a {type(wave).__name__}, not floating-point samples"
    if wave.shape != before.shape:
        return f"audio.wave changed its shape from {list(before.shape)} to {list(wave.shape)}"
    if wave.device != before.device or wave.layout != before.layout:
        place = f"{before.device}, {before.layout}"
        return f"audio.wave was on {place}; it is on {wave.device}, {wave.layout}"
    if not torch.isfinite(wave).all():
        return "audio.wave has NaN or infinite samples"
    peak = float(wave.detach().abs().max()) if wave.numel() else 0.0
    return f"audio.wave has a peak of {peak:.3g}, where full scale is 1" if peak > LOUDEST else ""


def _metadata_problem(metadata: object, before: Mapping[str, Any]) -> str:
    if not isinstance(metadata, dict):
        return f"audio.metadata became a {type(metadata).__name__}, not a dict"
    if missing := sorted(before.keys() - metadata.keys()):
        return f"audio.metadata lost {', '.join(missing)}"
    try:
        json.dumps(as_json(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        return f"audio.metadata holds what JSON cannot ({error})"
    return ""


def _changed(audio: GeneratedAudio, before: GeneratedAudio) -> str:
    names = {field.name for field in fields(before)} - {"wave", "metadata"}
    changed = [n for n in sorted(names) if getattr(audio, n, None) is not getattr(before, n)]
    return f"audio.{changed[0]} was replaced" if changed else ""


def _check_tokens(
    component: object, call: str, tokens: Tokens, rows: int, levels: int, codebook_size: int
) -> None:
    ids, lengths = tokens.ids, tokens.lengths
    for name, value in (("ids", ids), ("lengths", lengths)):
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        if kind != torch.long:
            _refuse(component, f"{call} returned {name} of {kind}, not int64")
        _check_dense(component, call, value)
    if ids.ndim != 3 or ids.shape[:2] != (rows, levels):
        _refuse(component, f"{call} returned ids {list(ids.shape)}, not [{rows}, {levels}, N]")
    if lengths.shape != (rows,):
        _refuse(component, f"{call} returned lengths {list(lengths.shape)}, not [{rows}]")
    for length in lengths.tolist():
        if not 0 <= length <= ids.shape[2]:
            _refuse(component, f"{call} returned {ids.shape[2]} frames, its lengths say {length}")
    if ids.numel():
        # Stages draw a few codes at a time: a list is faster than a reduction then.
        edges = ids.flatten() if ids.numel() <= FEW else torch.stack(torch.aminmax(ids))
        codes = edges.tolist()
        low, high = min(codes), max(codes)
        if low < 0 or high >= codebook_size:
            worst = low if low < 0 else high
            legal = f"legal are 0 to {codebook_size - 1}"
            _refuse(component, f"{call} returned the code {worst}, {legal}")


def _check_dense(component: object, call: str, value: Tensor) -> None:
    if value.is_meta or value.layout is not torch.strided or value.is_nested:
        _refuse(component, f"{call} returned a tensor that is {value.layout} on {value.device}")


def _refuse(component: object, problem: str) -> NoReturn:
    kind = type(component)
    owner, _ = distribution_of(kind)
    fix = f"report it to {owner}, and see `segue plugins check`"
    raise PluginError(f"{kind.__name__} of {owner}", f"it breaks its contract: {problem}", fix)
