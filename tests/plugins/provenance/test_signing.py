"""C2PA manifests: written, read, and found broken after a change."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import soundfile
from tests.plugins.provenance.conftest import Credentials

from segue.core.errors import OutputError
from segue.plugins.provenance.signing import Signer, read_signature

MADE = {"task": "continue", "seed": 3, "pipeline": "speech", "prompt_seconds": 1.0, "config": {}}


@pytest.fixture
def signer(credentials: Credentials) -> Signer:
    return Signer(credentials.certificate, credentials.key)


def test_paths_may_be_text(tmp_path: Path, credentials: Credentials) -> None:
    path = str(tmp_path / "a.wav")
    soundfile.write(path, numpy.zeros(800), 16_000)
    Signer(str(credentials.certificate), str(credentials.key)).sign(path, MADE)
    found = read_signature(path)
    assert found is not None and found.state == "intact"


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_a_signature_names_signer_and_tool_and_notices_a_change(
    tmp_path: Path, signer: Signer, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.3 * numpy.sin(numpy.arange(8000) / 9), 16_000)
    size, before = path.stat().st_size, soundfile.read(path)[0]
    assert read_signature(path) is None
    signer.sign(path, MADE)
    assert numpy.array_equal(soundfile.read(path)[0], before)
    found = read_signature(path)
    assert found is not None
    assert (found.signer, found.state, found.faults) == ("Test studio, Signer", "intact", ())
    assert found.tool.startswith("Segue ")
    assert found.said == {key: MADE[key] for key in MADE if key != "config"}
    # WAV keeps the manifest behind the samples, the others before them.
    flip(path, size // 2 if suffix == "wav" else -100)
    found = read_signature(path)
    assert found is not None and found.state == "tampered"
    assert found.faults == ("assertion.dataHash.mismatch",)


@pytest.mark.parametrize(
    "task, prompt, source",
    [
        ("generate", 0.0, "trainedAlgorithmicMedia"),
        ("continue", 1.5, "compositeWithTrainedAlgorithmicMedia"),
        ("fill", 0.0, "compositeWithTrainedAlgorithmicMedia"),
    ],
)
def test_a_manifest_says_whether_a_recording_is_in_it(
    tmp_path: Path, signer: Signer, task: str, prompt: float, source: str
) -> None:
    import c2pa

    path = tmp_path / "a.wav"
    soundfile.write(path, numpy.zeros(800), 16_000)
    signer.sign(path, {"task": task, "prompt_seconds": prompt})
    with c2pa.Reader(str(path)) as reader:
        (actions,) = (
            one["data"]["actions"]
            for one in reader.get_active_manifest()["assertions"]
            if one["label"].startswith("c2pa.actions")
        )
    assert actions[0]["action"] == "c2pa.created"
    assert actions[0]["digitalSourceType"].endswith(f"/{source}")


def test_credentials_that_cannot_sign_are_refused_at_once(
    tmp_path: Path, credentials: Credentials
) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    stranger = ec.generate_private_key(ec.SECP256R1())
    form = (Encoding.PEM, PrivateFormat.PKCS8)
    other, locked = tmp_path / "other.pem", tmp_path / "locked.pem"
    other.write_bytes(stranger.private_bytes(*form, NoEncryption()))
    locked.write_bytes(stranger.private_bytes(*form, BestAvailableEncryption(b"x")))
    good = credentials.certificate, credentials.key
    for certificate, key, problem in (
        (credentials.root, good[1], "self-signed"),
        (good[1], good[1], "cannot sign"),
        (good[0], other, "cannot sign"),
        (good[0], locked, "without a password"),
        (good[0], good[0], "not a private key"),
        (tmp_path / "none.pem", good[1], "No such file"),
    ):
        with pytest.raises(OutputError, match=problem):
            Signer(certificate, key)


def test_a_format_without_room_for_a_manifest_is_refused(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, numpy.zeros(800), 16_000)
    with pytest.raises(OutputError, match="cannot hold a signature; use"):
        signer.sign(path, {})
    assert read_signature(path) is None
