"""Strong spectral lines of each frame: each level adds the strongest one left in its band."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from segue.core.interfaces import AcousticCodec, Tokens
from segue_toy.codec_config import MdctOptions

STARTS = (0, 32, 0, 64, 0, 96, 32, 0)  # first line of each level's band of 32; 25 Hz a line


class MdctCodec(AcousticCodec):
    """Lines of a modified discrete cosine transform, one of 32 values each: 4 dB a step, or 0."""

    needs_training = False
    decode_context = (1, 0)  # half of each frame's window lies in the frame after it

    def __init__(self, config: MdctOptions) -> None:
        super().__init__(config)
        size = self.spec.frame_size
        time, line = torch.arange(2 * size)[:, None] + 0.5, torch.arange(128) + 0.5
        window = torch.sin(math.pi * time / (2 * size)) * math.sqrt(2 / size)
        self.basis = torch.nn.Buffer(  # [2 * size, 128]
            window * torch.cos(math.pi / size * (time + size / 2) * line), persistent=False
        )
        steps = torch.tensor([0.0, *(2 ** (4 - 2 / 3 * step) for step in range(15))])
        self.values = torch.nn.Buffer(torch.cat([steps, -steps]), persistent=False)

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        size, levels = self.spec.frame_size, []
        beyond = torch.arange(wave.shape[1], device=wave.device) >= lengths[:, None]
        wave = pad(wave.masked_fill(beyond, 0.0), (0, -wave.shape[1] % size + size))
        lines = wave.unfold(1, 2 * size, size) @ self.basis  # [B, N, 128]
        for start in STARTS[: self.spec.num_levels]:
            place = lines[..., start : start + 32].abs().argmax(dim=-1, keepdim=True)
            value = (lines.gather(-1, place + start) - self.values).abs().argmin(-1, keepdim=True)
            lines = lines.scatter_add(-1, place + start, -self.values[value])
            levels.append((place * 32 + value).squeeze(-1))
        return Tokens(torch.stack(levels, dim=1), -(-lengths // size))

    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        valid, codes = Tokens(codes, lengths).mask[..., None], codes.transpose(1, 2)
        place = codes // 32 + torch.tensor(STARTS, device=codes.device)[: codes.shape[2]]
        lines = self.basis.new_zeros(*codes.shape[:2], self.basis.shape[1])
        lines = lines.scatter_add(-1, place, self.values[codes % 32] * valid)
        first, second = (lines @ self.basis.T).chunk(2, dim=-1)  # [B, N, size] each
        return ((first + pad(second, (0, 0, 1, -1))) * valid).flatten(1)
