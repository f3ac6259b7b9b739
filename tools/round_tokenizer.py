"""Round the matrices of a semantic tokenizer or of a codec's decoder to eight bits, to be shipped.

    python tools/round_tokenizer.py TOKENIZER TARGET MANIFEST   (tokenizer/ small/ manifest.csv)

TOKENIZER is a folder of weights. Rounding errors of a column are made up for by the columns after
it, with the inputs that layers see on 40 training recordings (GPTQ, Frantar et al., arXiv
2210.17323). What is shipped is a tokenizer of its own, with its own fingerprint; the share of
tokens of 40 held-out recordings that it makes as before is printed. A codec's encoder stays, so its
tokens and its fingerprint do; printed is how far below its former output the change of it lies.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.core.audio import resample
from segue.core.checkpoint import load_component, save_component
from segue.core.checkpoint_files import WEIGHTS, read_manifest
from segue.core.eight_bits import GROUP, quantize
from segue.core.files import atomic_directory
from segue.core.interfaces import AcousticCodec, SemanticTokenizer, Tokenizer
from segue.core.plugins import default_host
from segue.data.recordings import Split, spread
from segue.data.sources import load_recordings
from segue.sound.reading import read_audio

RECORDINGS, SECONDS = 40, 8.0
DAMPING = 0.01  # of the mean square of an input


def main(source: str, target: str, manifest: str) -> None:
    host = default_host()
    described = read_manifest(Path(source))
    part = "codec" if described.kind == "codec" else "semantic_tokenizer"
    whole, small = (load_component(Path(source), host, part) for _ in range(2))
    assert isinstance(whole, Tokenizer) and isinstance(small, Tokenizer)
    semantic = isinstance(whole, SemanticTokenizer)
    seen = inputs(whole, waves(manifest, "train", whole)) if semantic else {}
    with torch.no_grad():
        for name, module in small.named_modules():
            if name in seen:
                module.weight.copy_(rounded(module.weight, seen[name]))
            elif isinstance(module, nn.Conv1d | nn.Linear) and (semantic or "decoder" in name):
                flat = module.weight.flatten(1)
                module.weight.copy_(rounded(flat, torch.eye(flat.shape[1])).view_as(module.weight))
    held_out = waves(manifest, "valid", whole)
    with atomic_directory(Path(target)) as temporary:
        save_component(
            small, temporary, described.kind, described.use, described.trained, torch.int8
        )
    again = load_component(Path(target), host, part)
    assert isinstance(again, Tokenizer)
    size = (Path(target) / WEIGHTS).stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, {equal(whole, again, held_out):.2%} of tokens stay")
    if isinstance(whole, AcousticCodec) and isinstance(again, AcousticCodec):
        print(f"the output changes at {change_db(whole, again, held_out):.1f} dB of it")


def waves(manifest: str, split: Split, tokenizer: Tokenizer) -> list[Tensor]:
    """Return the beginnings of recordings evenly from all of a split."""
    chosen = spread(load_recordings(Path(manifest), split), RECORDINGS)
    audio = [read_audio(each.path, first_seconds=SECONDS) for each in chosen]
    return [resample(a.wave, a.sample_rate, tokenizer.spec.sample_rate) for a in audio]


def inputs(tokenizer: Tokenizer, audio: list[Tensor]) -> dict[str, Tensor]:
    """Return the products of inputs ``[columns, columns]`` of each linear layer, by its name."""
    found: dict[str, Tensor] = {}

    def keep(name: str, given: Tensor) -> None:
        flat = given.flatten(0, -2).double()
        found[name] = found.get(name, 0) + flat.T @ flat

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: keep(name, given[0]))
        for name, module in tokenizer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    for wave in audio:
        tokenizer.encode(wave[None], torch.tensor([len(wave)]))
    for hook in hooks:
        hook.remove()
    return found


def rounded(weight: Tensor, products: Tensor) -> Tensor:
    """Return a matrix whose values eight-bit codes hold exactly."""
    # Scales of eleven bits: their products with codes are exact in single precision.
    mantissas, exponents = torch.frexp(quantize(weight).scales)
    scales = torch.ldexp((mantissas * 2048).ceil() / 2048, exponents).double()
    products = products.double() + DAMPING * products.diagonal().mean() * torch.eye(len(products))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(products))
    inverse = torch.linalg.cholesky(inverse, upper=True)
    left, made = weight.double().clone(), torch.empty_like(weight, dtype=torch.double)
    for first in range(0, weight.shape[1], GROUP):
        largest = weight[:, first : first + GROUP].abs().argmax(1) + first
        scale = scales[:, first // GROUP]
        for column in range(first, min(first + GROUP, weight.shape[1])):
            codes = (left[:, column] / scale).round().clamp(-127, 127)
            # A group's largest code stays 127: it says what the scale is.
            codes = torch.where(largest == column, 127 * weight[:, column].double().sign(), codes)
            made[:, column] = codes * scale + 0.0  # codes know no -0.0
            error = (left[:, column] - made[:, column]) / inverse[column, column]
            left[:, column:] -= error[:, None] * inverse[column, column:]
    return made.to(weight.dtype)


def equal(one: Tokenizer, other: Tokenizer, audio: list[Tensor]) -> float:
    """Return the share of tokens that both make."""
    same = count = 0
    for wave in audio:
        first, second = (
            each.encode(wave[None], torch.tensor([len(wave)])).ids for each in (one, other)
        )
        same, count = same + int((first == second).sum()), count + first.numel()
    return same / count


@torch.inference_mode()
def change_db(one: AcousticCodec, other: AcousticCodec, audio: list[Tensor]) -> float:
    """Return the level of the change of what is decoded against that of the output before."""
    changed = whole = 0.0
    for wave in audio:
        tokens = one.encode(wave[None], torch.tensor([len(wave)]))
        before, after = (codec.decode(tokens.ids, tokens.lengths) for codec in (one, other))
        changed += float((after - before).square().sum())
        whole += float(before.square().sum())
    return 10 * math.log10(changed / whole)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
