"""Promises of every tokenizer about its weights and its fingerprint."""

from __future__ import annotations

import torch

from segue.core.interfaces import Tokenizer
from segue.core.options import FINGERPRINT_DIGITS, options_digest
from segue.testing.check import NotApplicable, require
from segue.testing.compare import require_same_tokens, through_safetensors
from segue.testing.subject import Subject
from segue.testing.tokenizer_checks import audio_for, encode, tokenizer_of

_NAME = "conformance.v1"


def check_state_round_trip(subject: Subject) -> None:
    """Saved and loaded into a new instance, it gives the same tokens and the same fingerprint."""
    saved, loaded = tokenizer_of(subject), subject.blank(seed=99)
    assert isinstance(loaded, Tokenizer)
    loaded.load_state_dict(through_safetensors(saved.state_dict()), strict=True)
    loaded.eval()
    same = saved.seal(_NAME) == loaded.seal(_NAME)
    require(same, "another fingerprint after loading: the state dict does not hold all of it")
    audio = audio_for(saved.spec)
    require_same_tokens(encode(loaded, audio), encode(saved, audio), "after loading")


def check_seal_fills_the_fingerprint(subject: Subject) -> None:
    """There is no fingerprint before ``seal``; after it the spec carries the one returned."""
    tokenizer = tokenizer_of(subject)
    require(tokenizer.spec.fingerprint == "", "a fingerprint before seal()")
    sealed = tokenizer.seal(_NAME)
    carried = tokenizer.spec.fingerprint
    require(bool(sealed), "seal() returns no fingerprint")
    require(carried == sealed, f"seal() returns {sealed!r}, the spec carries {carried!r}")
    require(tokenizer.seal(_NAME) == sealed, "a second seal() gives another fingerprint")


def check_fingerprint_follows_weights(subject: Subject) -> None:
    """Other weights have another fingerprint."""
    tokenizer = tokenizer_of(subject)
    weights = [t for t in tokenizer.state_dict().values() if t.is_floating_point() and t.numel()]
    if not weights:
        raise NotApplicable("it has no weights")
    before = tokenizer.seal(_NAME)
    with torch.no_grad():
        for tensor in weights:
            tensor.add_(1.0)
    require(tokenizer.seal(_NAME) != before, "the fingerprint stays when all weights change")


def check_fingerprint_follows_options(subject: Subject) -> None:
    """Another name or other options have another fingerprint."""
    tokenizer = tokenizer_of(subject)
    before = tokenizer.seal(_NAME)
    require(tokenizer.seal("other.v1") != before, "the fingerprint stays under another name")
    for name, value in tokenizer.config:
        if isinstance(value, int | float):
            # Not validated: only the fingerprint is asked for.
            tokenizer.config = tokenizer.config.model_copy(update={name: value + 1})
            changed = tokenizer.seal(_NAME) != before
            require(changed, f"the fingerprint stays when the option {name} changes")
            return


def check_fingerprint_without_weights_is_known_early(subject: Subject) -> None:
    """With nothing to learn, name and options determine the fingerprint, as assembly takes it."""
    tokenizer = tokenizer_of(subject)
    if tokenizer.learns:
        raise NotApplicable("it has weights that are learnt")
    early = options_digest(_NAME, tokenizer.config).hexdigest()[:FINGERPRINT_DIGITS]
    require(
        tokenizer.seal(_NAME) == early,
        "the fingerprint is not that of name and options; keep constant tables in buffers with "
        "persistent=False",
    )


CHECKS = (
    check_state_round_trip,
    check_seal_fills_the_fingerprint,
    check_fingerprint_follows_weights,
    check_fingerprint_follows_options,
    check_fingerprint_without_weights_is_known_early,
)
