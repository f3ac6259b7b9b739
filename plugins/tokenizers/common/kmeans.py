"""Cluster features into tokens: normalisation, nearest centroid, fitting.

AudioLM and its predecessors cluster normalised features by k-means (Lakhotia et al., GSLM, arXiv
2102.01192; Borsos et al., arXiv 2209.03143). Subclasses differ in their features only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.errors import CheckpointError, TrainingError
from segue.core.interfaces import Ids, Lengths, SemanticTokenizer, Tokens, Wave, WaveBatch
from segue.plugins.layers.lengths import length_mask, without_padding
from segue.plugins.tokenizers.common.options import ClusterOptions, WindowOptions
from segue.plugins.tokenizers.common.quantizer import nearest
from segue.plugins.tokenizers.common.spectra import in_windows

MOST_SAMPLE_BYTES = 1 << 29  # of the frames that clusters are fitted on
ROWS_AT_ONCE = 1 << 14

Rows = np.ndarray[Any, np.dtype[np.float32]]


class KMeansTokenizer(SemanticTokenizer):
    """Give each frame the number of the centroid nearest to its normalised features.

    Args:
        parts: how many of the features each level clusters, one after the other; all by default.
    """

    needs_training, needs_fitting = False, True
    config: ClusterOptions
    mean: Tensor
    deviation: Tensor
    centroids: Tensor
    fitted: Tensor

    def __init__(
        self, config: ClusterOptions, num_features: int, parts: Sequence[int] = ()
    ) -> None:
        super().__init__(config)
        self.parts = list(parts) or [num_features]
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.register_buffer("centroids", torch.zeros(config.num_clusters, num_features))
        # A buffer, so that a checkpoint says whether its centroids mean anything.
        self.register_buffer("fitted", torch.tensor(False))

    @abstractmethod
    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        """Return the features of each frame, ``N = ceil(T / frame_size)``.

        Args:
            wave: at least one sample long, zero beyond each row's length. It is float64, so that a
                frame close to two centroids goes to the same in every batch (float32 on Apple's
                GPUs, which lack it): layers with float32 weights need ``wave.float()``.
            lengths: samples.

        Returns:
            Features of any floating-point type; those beyond a row's last frame have no meaning.
        """

    def weights(self) -> Float[Tensor, "D"] | None:
        """Return how much each normalised feature counts in a distance; None for all alike."""
        return None

    @property
    def is_fitted(self) -> bool:
        return bool(self.fitted)

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        if not self.fitted:
            raise CheckpointError(
                type(self).__name__,
                "it has not been fitted, so it has no centroids",
                "fit it with `segue train`, or load fitted weights",
            )
        if wave.shape[1] == 0:
            return Tokens.empty(wave.shape[0], len(self.parts), wave.device)
        points = self._normalised(self.features(_precise(wave, lengths), lengths))
        ids = self._nearest(points.flatten(0, 1)).unflatten(1, points.shape[:2])
        tokens = Tokens(ids.transpose(0, 1), -(-lengths // self.spec.frame_size))
        return Tokens(tokens.ids * tokens.mask[:, None], tokens.lengths)

    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"]:
        parts = zip(self.centroids.split(self.parts, 1), ids.unbind(1), strict=False)
        return torch.cat([centroids[chosen] for centroids, chosen in parts], dim=2)

    @torch.no_grad()
    def fit(self, batches: Iterable[WaveBatch]) -> Mapping[str, float]:
        """Learn normalisation and centroids from one pass over ``batches``.

        Returns:
            ``inertia`` (mean squared distance of a frame to its centroid), ``frames`` (seen) and
            ``codes_used``.

        Raises:
            TrainingError: if there are fewer frames than clusters.
        """
        width = self.mean.shape[0]
        most = min(self.config.fit_frames, MOST_SAMPLE_BYTES // (4 * width))
        # One pass over any amount of audio, in bounded memory, with every frame as likely to be
        # kept.
        sample = Reservoir(max(most, self.config.num_clusters), width, self.config.seed)
        for batch in batches:
            sample.add(self._valid_features(batch))
        if len(sample.rows) < self.config.num_clusters:
            raise TrainingError(
                type(self).__name__,
                f"{len(sample.rows)} frames are too few for {self.config.num_clusters} clusters",
                "add audio, lower num_clusters or raise fit_frames",
            )
        # The sample is the only large thing in memory: what follows works on it in place, or part
        # by part.
        points = torch.from_numpy(sample.rows)
        parts = points.split(ROWS_AT_ONCE)
        mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(points)
        squares = torch.stack([(part - mean).square().sum(0) for part in parts]).sum(0)
        deviation = (squares / len(points)).sqrt()
        self.mean.copy_(mean)
        # Leave a feature that never changes as it is instead of amplifying its noise.
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones(())))
        for part in parts:
            part.copy_(self._normalised(part.to(self.device)))
        for part, centroids in zip(
            points.split(self.parts, 1), self.centroids.split(self.parts, 1), strict=True
        ):
            found = _cluster(part.contiguous().numpy(), self.config)
            centroids.copy_(torch.from_numpy(found))
        self.fitted.fill_(True)
        used, inertia = torch.zeros(len(self.parts), len(self.centroids), dtype=torch.bool), 0.0
        for part in parts:
            ids = self._nearest(part.to(self.device))
            distances = (part.to(self.device) - self.vectors(ids.T[..., None])[:, 0]).square()
            used.scatter_(1, ids.cpu(), True)
            inertia += float(distances.sum(1).double().sum())
        return {
            "inertia": inertia / len(points),
            "frames": float(sample.seen),
            "codes_used": float(used.sum()) / len(self.parts),
        }

    def _valid_features(self, batch: WaveBatch) -> Rows:
        wave, lengths = batch.wave.to(self.device), batch.lengths.to(self.device)
        if wave.shape[1] == 0:
            return np.zeros((0, self.mean.shape[0]), dtype=np.float32)
        found = self.features(_precise(wave, lengths), lengths)
        valid = length_mask(-(-lengths // self.spec.frame_size), found.shape[1])
        return found[valid].float().cpu().numpy()

    def _normalised(self, features: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        points = (features - self.mean) / self.deviation
        weights = self.weights()
        return points if weights is None else points * weights

    def _nearest(self, points: Float[Tensor, "M D"]) -> Int64[Tensor, "Q M"]:
        """Return the nearest centroid of each level."""
        centroids = self.centroids.to(points.dtype).split(self.parts, 1)
        pairs = zip(points.split(self.parts, 1), centroids, strict=True)
        return torch.stack([nearest(ours, theirs) for ours, theirs in pairs])

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any
    ) -> None:
        # A checkpoint with another number of centroids counts as not fitted: training may go on
        # from its network, and its clusters are fitted again.
        theirs = state_dict.get(f"{prefix}centroids")
        if theirs is not None and len(theirs) != self.config.num_clusters:
            state_dict[f"{prefix}centroids"] = torch.zeros_like(self.centroids)
            state_dict[f"{prefix}fitted"] = torch.tensor(False)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class WindowedTokenizer(KMeansTokenizer):
    """Cluster what a network makes of each row on its own, a long one in overlapping windows.

    A batched network sums in another order, so that a token close to two centroids could depend
    on the rows beside it.
    """

    config: WindowOptions

    @abstractmethod
    def row_features(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return the features of each frame of one row, ``N = ceil(T / frame_size)``."""

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        size, width, config = self.spec.frame_size, self.mean.shape[0], self.config
        window = config.frames(config.window_seconds)
        margin = min(config.frames(config.margin_seconds), (window - 1) // 2)
        found = wave.new_zeros(wave.shape[0], -(-wave.shape[1] // size), width)
        for row, length in enumerate(lengths.tolist()):
            if length:
                frames = in_windows(self.row_features, wave[row, :length], size, window, margin)
                found[row, : frames.shape[0]] = frames
        return found


class Reservoir:
    """Keep an even sample of all rows that pass, in bounded memory (Vitter's algorithm R)."""

    def __init__(self, capacity: int, width: int, seed: int) -> None:
        self.seen = 0
        self._capacity = capacity
        self._random = np.random.default_rng(seed)
        self._rows: Rows = np.zeros((0, width), dtype=np.float32)

    @property
    def rows(self) -> Rows:
        """Return the kept rows ``[M, D]``."""
        return self._rows[: min(self.seen, self._capacity)]

    def add(self, rows: Rows) -> None:
        """Take further rows: fill the free places, then replace random ones."""
        room = max(0, self._capacity - self.seen)
        first, rest = rows[:room], rows[room:]
        stop = self.seen + len(first)
        if len(first) and stop > len(self._rows):
            # Double the memory, so that copying costs constant time per row.
            larger = min(self._capacity, max(stop, 2 * len(self._rows)))
            self._rows = np.pad(self._rows, ((0, larger - len(self._rows)), (0, 0)))
        self._rows[self.seen : stop] = first
        self.seen = stop
        places = self._random.integers(0, self.seen + 1 + np.arange(len(rest)))
        kept = places < self._capacity
        self._rows[places[kept]] = rest[kept]
        self.seen += len(rest)


def _precise(wave: Wave, lengths: Lengths) -> Wave:
    """Return the wave without padding, in double precision where the device has it.

    In single precision a frame close to two centroids could go to either, depending on the batch.
    """
    dtype = torch.float32 if wave.device.type == "mps" else torch.float64
    return without_padding(wave, lengths).to(dtype)


def _cluster(points: Rows, config: ClusterOptions) -> Rows:
    """Return the centroids ``[V, D]``."""
    try:
        from sklearn.cluster import MiniBatchKMeans  # slow to import, needed for fitting only
    except ImportError as error:
        raise TrainingError(
            "k-means", "scikit-learn is not installed", "pip install 'segue[train]'"
        ) from error
    kmeans = MiniBatchKMeans(
        config.num_clusters,
        batch_size=max(4096, 4 * config.num_clusters),
        max_iter=50,
        n_init=1,
        random_state=config.seed,
    )
    return kmeans.fit(points).cluster_centers_.astype(np.float32)
