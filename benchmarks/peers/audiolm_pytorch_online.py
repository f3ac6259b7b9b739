"""A training step of audiolm-pytorch's coarse transformer as its trainer takes it: on waves.

Each step runs HuBERT with its k-means and the codec's encoder over the batch before the transformer
learns anything. HuBERT is the base model that its README names, in transformers' implementation,
for fairseq no longer installs; the codec is its own SoundStream of AudioLM's size. Weights are
random, which costs the same time. Reading audio files is left out, in the peer's favour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.audiolm_pytorch import Sizes, load

SAMPLE_RATE = 16000
LAYER = 9  # whose features are clustered


def hubert_with_kmeans(package: Any, sizes: Sizes) -> nn.Module:
    """Its tokenizer by its own steps, on HuBERT of transformers.

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
    batch: int, seconds: float, sizes: Sizes | None = None
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Steps of the coarse transformer with AdamW: on waves, and on tokens made before.

    Args:
        batch: crops of a step.
        seconds: of a crop.

    Returns:
        Two functions, each of which takes one step and returns the loss.
    """
    package: Any = load()
    sizes = sizes or Sizes()
    quantizers = sizes.coarse_quantizers + sizes.fine_quantizers
    codec = package.AudioLMSoundStream(
        codebook_size=sizes.codebook_size, rq_num_quantizers=quantizers
    )
    transformer = package.CoarseTransformer(
        dim=sizes.dim,
        depth=sizes.depth,
        heads=sizes.heads,
        cond_dim=sizes.dim,
        has_condition=False,
        flash_attn=False,
        num_semantic_tokens=sizes.semantic_codes,
        codebook_size=sizes.codebook_size,
        num_coarse_quantizers=sizes.coarse_quantizers,
    )
    wrapper = package.CoarseTransformerWrapper(
        transformer=transformer,
        codec=codec,
        wav2vec=hubert_with_kmeans(package, sizes),
        unique_consecutive=False,
    )
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-4)

    def step(**inputs: Tensor) -> float:
        wrapper.train()
        loss = wrapper(**inputs, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    wave = torch.randn(batch, round(seconds * SAMPLE_RATE)) * 0.1
    semantic = torch.randint(sizes.semantic_codes, (batch, round(seconds * sizes.semantic_rate)))
    coarse = torch.randint(
        sizes.codebook_size,
        (batch, round(seconds * sizes.acoustic_rate), sizes.coarse_quantizers),
    )
    return (
        lambda: step(raw_wave=wave),
        lambda: step(semantic_token_ids=semantic, coarse_token_ids=coarse),
    )
