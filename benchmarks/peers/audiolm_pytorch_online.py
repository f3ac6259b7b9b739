"""audiolm-pytorch's training steps as its trainers take them: on waves.

Each step runs HuBERT with its k-means and the codec's encoder, whichever the stage needs, over the
batch before the transformer learns anything. HuBERT is the base model that its README names, in
transformers' implementation, for fairseq no longer installs; the codec is its own SoundStream of
AudioLM's size. Weights are random, which costs the same time. Reading audio files is left out, in
the peer's favour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.audiolm_pytorch import Name, Sizes, build, load, training_step

SAMPLE_RATE = 16000
LAYER = 9  # whose features are clustered


def hubert_with_kmeans(package: Any, sizes: Sizes) -> nn.Module:
    """Return its tokenizer by its own steps, on HuBERT of transformers.

    Of 50 units a second as many stay as Segue's stage is given.
    """
    from transformers import HubertConfig, HubertModel

    class Units(package.HubertWithKmeans):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.hubert = HubertModel(HubertConfig(num_hidden_layers=LAYER)).eval()
            width = self.hubert.config.hidden_size
            self.register_buffer("cluster_centers", torch.randn(sizes.semantic_codes, width))

        @torch.inference_mode()
        def forward(self, wav_input: Tensor, flatten: bool = True, **_: object) -> Tensor:
            embed = self.hubert(wav_input).last_hidden_state
            centers = self.cluster_centers.expand(embed.shape[0], -1, -1)
            units = torch.cdist(embed, centers).argmin(dim=-1)
            return units[:, :: 50 // sizes.semantic_rate]  # type: ignore[no-any-return]

    return Units()


def training_steps(
    name: Name, batch: int, seconds: float, sizes: Sizes
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return steps of a stage with AdamW: on waves, and on tokens made before.

    Args:
        batch: crops of a step.
        seconds: of a crop.

    Returns:
        Two functions, each of which takes one step and returns the loss.
    """
    package: Any = load()
    stage = build(name, sizes)
    if name != "fine":
        stage.wrapper.wav2vec = hubert_with_kmeans(package, sizes)
    if name != "semantic":
        stage.wrapper.codec = package.AudioLMSoundStream(
            codebook_size=sizes.codebook_size,
            rq_num_quantizers=sizes.coarse_quantizers + sizes.fine_quantizers,
        )
    wave = torch.randn(batch, round(seconds * SAMPLE_RATE)) * 0.1
    return (
        training_step(stage, batch, seconds, wave),
        training_step(stage, batch, seconds),
    )
