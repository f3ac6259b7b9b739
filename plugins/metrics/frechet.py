"""Fréchet audio distance (Kilgour et al., arXiv 1812.08466) of continuations and recordings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from segue.core.audio import resample
from segue.core.errors import ConfigError, PluginError
from segue.core.metrics import Continuation, ContinuationMetric, Measured, SetFigure
from segue.plugins.metrics.common import of_each
from segue.plugins.metrics.options import FrechetOptions

RATE, PIECE_SECONDS = 16_000, 0.96
BANDS, FLOOR = 32, 1e-4
YAMNET_WIDTH = 1024
FILE_PLACE = "frechet.v1.options.weights"


def pieces(wave: Float[Tensor, "T"], sample_rate: int) -> Float[Tensor, "P S"]:
    """Cut audio into pieces of 0.96 s at 16 kHz that overlap by half; an incomplete last one is
    left out."""
    wave = resample(wave, sample_rate, RATE)
    size = round(PIECE_SECONDS * RATE)
    return wave.unfold(0, size, size // 2) if wave.shape[0] >= size else wave.new_zeros(0, size)


class MelStatistics:
    """Mean and standard deviation over time of log10 mel magnitudes: 64 numbers."""

    def __init__(self) -> None:
        self._mel = MelSpectrogram(RATE, n_fft=512, hop_length=160, n_mels=BANDS, power=1)

    def __call__(self, batch: Float[Tensor, "P S"]) -> Float[Tensor, "P D"]:
        if not len(batch):
            return torch.zeros(0, 2 * BANDS, dtype=torch.float64)
        spectra = self._mel(batch).clamp_min(FLOOR).log10()
        return torch.cat([spectra.mean(2), spectra.std(2)], dim=1).double()


class Yamnet:
    """The layer before the classes of YAMNet, a MobileNet trained on AudioSet.

    Raises:
        ConfigError: if the file is not a tflite model with this layer.
        PluginError: if LiteRT is not installed.
    """

    def __init__(self, weights: Path) -> None:
        try:
            runtime = import_module("ai_edge_litert.interpreter")
        except ImportError as error:
            raise PluginError(
                "frechet.v1", "embedding=yamnet needs LiteRT", "pip install 'segue[yamnet]'"
            ) from error
        if not weights.is_file():
            raise ConfigError(FILE_PLACE, f"{weights} does not exist", "name YAMNet's tflite")
        try:
            self._interpreter: Any = runtime.Interpreter(
                str(weights), experimental_preserve_all_tensors=True
            )
            self._interpreter.allocate_tensors()
            self._input = self._interpreter.get_input_details()[0]
        except ValueError as error:
            raise ConfigError(FILE_PLACE, "is not a tflite model", "name YAMNet's") from error
        self._output = self._embedding()

    def _embedding(self) -> int:
        """Return the last layer of 1024 numbers in the order of computing."""
        wide = [
            tensor["index"]
            for tensor in self._interpreter.get_tensor_details()
            if len(tensor["shape"]) and tensor["shape"][-1] == YAMNET_WIDTH
            and tensor["shape"].prod() == YAMNET_WIDTH and "Mean" in tensor["name"]
        ]  # fmt: skip
        if not wide:
            raise ConfigError(FILE_PLACE, "has no layer of 1024 numbers", "name YAMNet's tflite")
        return int(wide[-1])

    def __call__(self, batch: Float[Tensor, "P S"]) -> Float[Tensor, "P D"]:
        rows = []
        size = int(self._input["shape"][-1])
        for piece in batch:
            wave = torch.nn.functional.pad(piece, (0, max(0, size - len(piece))))[:size]
            self._interpreter.set_tensor(
                self._input["index"], wave.reshape(tuple(self._input["shape"])).numpy()
            )
            self._interpreter.invoke()
            found = self._interpreter.get_tensor(self._output)
            rows.append(torch.from_numpy(found.copy()).flatten().double())
        return torch.stack(rows) if rows else torch.zeros(0, YAMNET_WIDTH, dtype=torch.float64)


class Frechet(ContinuationMetric):
    """Distance of two clouds of embeddings, each taken as a Gaussian.

    ``distance`` is that of continuations to true continuations; ``prompt_distance`` that of the
    prompts to them, real audio of the same speakers or pieces: what is the least to be had. Of few
    pieces the distance is too large, of both; compare figures of like sets and one embedding only.
    The figure of each file is the number of its ``pieces``.
    """

    def __init__(self, options: FrechetOptions) -> None:
        yamnet = options.embedding == "yamnet"
        self._embed = Yamnet(Path(options.weights)) if yamnet else MelStatistics()

    def measure(self, records: Sequence[Continuation]) -> Measured:
        prompts, made, truth = of_each(records, lambda wave, rate: self._embed(pieces(wave, rate)))
        overall = {"distance": _between(made, truth), "prompt_distance": _between(prompts, truth)}
        return Measured([{"pieces": float(len(rows))} for rows in made], overall)


def _between(
    ours: Sequence[Float[Tensor, "P D"]], theirs: Sequence[Float[Tensor, "P D"]]
) -> SetFigure:
    """Return the distance of two sets of files, given how often each file counts."""
    sets = [
        (torch.cat(list(files)), torch.tensor([len(rows) for rows in files]))
        for files in (ours, theirs)
    ]

    def distance(weights: Float[Tensor, "B"]) -> float:
        weighted = [(rows, weights.repeat_interleave(counts)) for rows, counts in sets]
        if any(float(weight.sum()) < 2 for _, weight in weighted):
            return math.nan
        return frechet_distance(*weighted[0], *weighted[1])

    return distance


def frechet_distance(
    a: Float[Tensor, "P D"],
    a_weights: Float[Tensor, "P"],
    b: Float[Tensor, "R D"],
    b_weights: Float[Tensor, "R"],
) -> float:
    """Return the squared distance of means plus tr(A + B - 2 (A B)^½) of covariances.

    With A = X'X and B = Y'Y the last trace is the sum of the singular values of X Y', which needs
    no root of a matrix that has no full rank.
    """
    (first, x), (second, y) = _root(a, a_weights), _root(b, b_weights)
    cross = torch.linalg.svdvals(x @ y.T).sum()
    spread = x.square().sum() + y.square().sum() - 2 * cross
    return max(0.0, float((first - second).square().sum() + spread))


def _root(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean, and X such that X'X is the covariance; X has no more rows than columns."""
    total = weights.sum()
    mean = weights @ rows / total
    centred = (rows - mean) * (weights / (total - 1)).sqrt()[:, None]
    if centred.shape[0] > centred.shape[1]:
        centred = torch.linalg.qr(centred, mode="r").R
    return mean, centred
