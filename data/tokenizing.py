"""Turn recordings into tokens, in this process or in several that were forked off it."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from segue.core.audio import resample
from segue.core.errors import AudioError
from segue.core.interfaces import Tokenizer
from segue.core.spec import ACOUSTIC, common_samples
from segue.data.audio_crops import whole_recordings
from segue.data.audio_files import decoded_blocks, from_16_bit, in_pieces
from segue.data.recordings import Recording
from segue.data.workers import end_with, process_killed
from segue.inference.promises import calling, check_tokens
from segue.inference.threads import survive_forks

MAX_PIECE_SECONDS = 30.0
TRIED_SECONDS = 10.0
RECORDINGS_PER_TASK = 2

#: Ids ``[Q, N]`` by stream of one recording, or why it is left out.
Found = dict[str, Tensor] | str
Tokenize = Callable[[Sequence[Recording]], Iterator[Found]]

_TOKENIZERS: dict[str, Tokenizer] = {}  # of a process that was forked off


@contextmanager
def tokenizing(tokenizers: Mapping[str, Tokenizer], workers: int) -> Iterator[Tokenize]:
    """Provide a function that yields what is found in each recording, in order.

    Args:
        tokenizers: by stream, sealed; on the CPU if there are several workers.
        workers: processes; 1 works in this one.
    """
    if workers == 1:
        yield lambda recordings: (found_in(each, tokenizers) for each in recordings)
        return
    survive_forks()
    # Forked, not spawned: PyTorch and the tokenizers are loaded once, and shared.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _begin, (os.getpid(), tokenizers)) as pool:

        def tokenize(recordings: Sequence[Recording]) -> Iterator[Found]:
            count = RECORDINGS_PER_TASK
            every = list(recordings)
            tasks = [every[at : at + count] for at in range(0, len(every), count)]
            try:
                with warnings.catch_warnings():  # that forks and threads do not mix
                    warnings.simplefilter("ignore", DeprecationWarning)
                    results = pool.map(_found_in_all, tasks)
                for result in results:
                    yield from map(_tensors, result)
            except BrokenProcessPool as error:
                raise process_killed() from error

        yield tokenize


def _begin(parent: int, tokenizers: Mapping[str, Tokenizer]) -> None:
    end_with(parent)
    _TOKENIZERS.update(tokenizers)


def _found_in_all(recordings: Iterable[Recording]) -> list[Any]:
    # Arrays: PyTorch would send a tensor as a file descriptor.
    found = [found_in(recording, _TOKENIZERS) for recording in recordings]
    return [
        ids if isinstance(ids, str) else {name: tensor.numpy() for name, tensor in ids.items()}
        for ids in found
    ]


def _tensors(found: Any) -> Found:
    if isinstance(found, str):
        return found
    return {name: torch.from_numpy(ids) for name, ids in found.items()}


def found_in(recording: Recording, tokenizers: Mapping[str, Tokenizer]) -> Found:
    """Return a recording's ids by stream, or why it is left out."""
    try:
        ids = tokenize_recording(recording, tokenizers)
    except AudioError as error:
        return error.problem
    return "shorter than one frame" if ids is None else ids


@torch.inference_mode()
def tokenize_recording(
    recording: Recording, tokenizers: Mapping[str, Tokenizer]
) -> dict[str, Tensor] | None:
    """Return ids ``[Q, N]`` by stream, cut to whole frames of each, or None if there are none."""
    specs = [tokenizer.spec for tokenizer in tokenizers.values()]
    # At the codec's rate, as in a pipeline: a semantic tokenizer's own may be lower.
    rate = (tokenizers.get(ACOUSTIC) or next(iter(tokenizers.values()))).spec.sample_rate
    unit = common_samples(specs, rate)
    # Pieces of whole frames of every stream: their tokens can be joined as if made at once.
    size = max(1, int(MAX_PIECE_SECONDS * rate) // unit) * unit
    found: dict[str, list[Tensor]] = {name: [] for name in tokenizers}
    for piece in in_pieces(decoded_blocks(recording, rate), size):
        wave = from_16_bit(piece[: piece.shape[0] // unit * unit])
        for name, tokenizer in tokenizers.items() if wave.numel() else ():
            found[name].append(_encode(tokenizer, wave, rate))
    if not all(found.values()):
        return None
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def _encode(tokenizer: Tokenizer, wave: Tensor, rate: int) -> Tensor:
    own_rate = tokenizer.spec.sample_rate
    own = wave if own_rate == rate else resample(wave, rate, own_rate)
    lengths = torch.tensor([own.shape[0]], device=tokenizer.device)
    with calling(tokenizer, "encode"):
        tokens = tokenizer.encode(own[None].to(tokenizer.device), lengths)
    check_tokens(tokenizer, tokens, tokenizer.spec, lengths)
    frames = round(wave.shape[0] / rate * tokenizer.spec.frame_rate)
    return tokens.ids[0, :, :frames].cpu()


@torch.inference_mode()
def check_tokenizer(tokenizer: Tokenizer, recordings: Sequence[Recording]) -> None:
    """Encode some of a recording, or raise ``PluginError``, before anything learns from tokens."""
    rate = tokenizer.spec.sample_rate
    batch = next(iter(whole_recordings(recordings, rate, TRIED_SECONDS)), None)
    if batch is not None:
        _encode(tokenizer.eval(), batch.wave[0], rate)
