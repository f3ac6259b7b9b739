"""Store a trained tokenizer in half precision, to be shipped before stages are trained on it.

    python tools/ship_tokenizer.py PART TRAINED TARGET [LEVELS]   (codec runs/speech/codec codec/ 8)

LEVELS keeps the first levels of a codec only, which are a codec too: fewer tokens for the stages.
What only training needs is left out.
Weights are rounded first and the fingerprint is taken of the rounded ones, so what is shipped is a
tokenizer of its own: tokens that the unrounded one made are refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from segue.core.checkpoint import load_component, save_component
from segue.core.checkpoint_files import WEIGHTS, newest_checkpoint, read_manifest
from segue.core.files import atomic_directory
from segue.core.interfaces import Component
from segue.core.plugins import default_host


def main(part: str, source: str, target: str, levels: str = "") -> None:
    directory = newest_checkpoint(Path(source)) or Path(source)
    manifest = read_manifest(directory)
    component = load_component(directory, default_host(), part)
    if levels:
        component = with_levels(component, manifest.use, int(levels))
    if not component.is_fitted:
        sys.exit(f"{directory} was trained but not fitted: run `segue train {part}` to its end")
    for tensor in (*component.parameters(), *component.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half().float()
            if not tensor.isfinite().all():
                sys.exit(f"{directory} holds numbers that half precision cannot")
    # A semantic tokenizer leaves out what only its training needed; a codec has to decode, too.
    state = component.token_state() if part == "semantic_tokenizer" else None
    with atomic_directory(Path(target)) as temporary:
        trained = manifest.trained
        save_component(
            component, temporary, manifest.kind, manifest.use, trained, torch.float16, state
        )
    load_component(Path(target), default_host(), part)  # its fingerprint is that of what was stored
    print(f"{target}: {(Path(target) / WEIGHTS).stat().st_size / 1e6:.1f} MB from {directory}")


def with_levels(codec: Component, use: str, levels: int) -> Component:
    """Return the codec with its first levels only."""
    options = codec.config.model_dump(mode="json") | {"num_levels": levels}
    smaller = default_host().create("codec", use, options, place="codec")
    kept = smaller.state_dict()
    smaller.load_state_dict({k: v for k, v in codec.state_dict().items() if k in kept})
    return smaller.eval()


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
