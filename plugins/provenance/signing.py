"""Sign audio files with C2PA manifests, and check such signatures. Imports no torch.

C2PA (Content Credentials, https://spec.c2pa.org) says in a machine-readable form, signed with
somebody's certificate, how a file was made. WAV, FLAC and MP3 files hold it themselves.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile

from segue.core.errors import OutputError, PluginError
from segue.core.files import atomic_path, native
from segue.plugins.provenance.marks import said_of

FORMATS = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg"}
NAMES = {"WAV": ".wav", "WAVEX": ".wav", "FLAC": ".flac", "MP3": ".mp3"}  # soundfile's
ASSERTION = "segue.generation"
#: IPTC's words for how media came to be: all from a model, or from a model and a recording.
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE, JOINED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
#: A certificate that no list of trusted signers vouches for; no such list comes with Segue.
UNKNOWN_SIGNER = "signingCredential.untrusted"


@dataclass(frozen=True)
class Signature:
    """The C2PA manifest of a file."""

    signer: str  # organisation and name in the certificate; its maker chose them
    tool: str  # the program that wrote the manifest, with its version
    # Codes of what does not hold, such as ``assertion.dataHash.mismatch``; none if the file is as
    # it was signed.
    faults: tuple[str, ...]
    said: dict[str, Any] | None  # task, pipeline and seed, if Segue made the file

    @property
    def state(self) -> str:
        """Say whether the file is as it was signed."""
        if not self.faults:
            return "intact"
        return "tampered" if any("mismatch" in fault for fault in self.faults) else "invalid"


class Signer:
    """Sign with a certificate and its private key.

    Args:
        certificate: PEM file: the signer's certificate, then those that vouch for it.
        key: PEM file of the private key, without a password: EC, RSA or Ed25519.

    Raises:
        PluginError: if c2pa-python is not installed.
        OutputError: if they cannot be read or do not sign.
    """

    def __init__(self, certificate: Path | str, key: Path | str) -> None:
        c2pa = _c2pa()
        chain, secret = _content(Path(certificate)), _content(Path(key))
        info = c2pa.C2paSignerInfo(_algorithm(secret, Path(key)), chain, secret, None)
        try:
            self._signer = c2pa.Signer.from_info(info)
            silence, signed = io.BytesIO(), io.BytesIO()
            soundfile.write(silence, [0.0] * 16, 16_000, format="WAV")
            self._sign(FORMATS[".wav"], silence, signed, {})  # now, not after minutes of work
        except c2pa.C2paError as error:
            fix = "give a certificate for signing documents with its chain, and its own key"
            raise OutputError(str(certificate), f"cannot sign: {error}", fix) from error

    def sign(self, path: Path | str, metadata: Mapping[str, Any]) -> None:
        """Write a signed manifest into a file, or raise ``OutputError``; its samples do not change.

        Args:
            metadata: how the audio was made, as in the JSON file beside it.
        """
        path = Path(path)
        check_signable(path)
        with (
            path.open("rb") as source,
            atomic_path(path) as temporary,
            temporary.open("w+b") as signed,
        ):
            self._sign(FORMATS[path.suffix.lower()], source, signed, metadata)

    def signed(self, content: bytes, form: str, metadata: Mapping[str, Any]) -> bytes:
        """Return the content of an audio file with a signed manifest in it.

        Args:
            form: its media type, one of ``FORMATS``.
            metadata: as in ``sign``.
        """
        signed = io.BytesIO()
        self._sign(form, io.BytesIO(content), signed, metadata)
        return signed.getvalue()

    def _sign(self, form: str, source: Any, signed: Any, metadata: Mapping[str, Any]) -> None:
        joined = metadata.get("prompt_seconds") or metadata.get("task") in ("fill", "resynthesize")
        action = {
            "action": "c2pa.created",
            "digitalSourceType": SOURCES + (JOINED if joined else MADE),
        }
        manifest = {
            "claim_generator_info": [{"name": "Segue", "version": version("segue")}],
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
                {"label": ASSERTION, "data": said_of(metadata)},
            ],
        }
        with _c2pa().Builder(manifest) as builder:
            builder.sign(self._signer, form, source, signed)


def check_signable(path: Path) -> None:
    """Raise ``OutputError`` if files of this suffix hold no manifest."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(str(path), "cannot hold a signature", f"use {', '.join(FORMATS)}")


def read_signature(path: Path | str) -> Signature | None:
    """Return the C2PA manifest of a file, checked, or None if it holds none.

    Raises:
        PluginError: if c2pa-python is not installed.
    """
    c2pa, path = _c2pa(), Path(path)
    suffix = NAMES.get(soundfile.info(native(path)).format)
    if suffix is None:
        return None
    try:
        with path.open("rb") as file, c2pa.Reader(FORMATS[suffix], file) as reader:
            manifest = reader.get_active_manifest()
            failures = reader.get_validation_results()["activeManifest"]["failure"]
    except c2pa.C2paError as error:
        if "ManifestNotFound" in type(error).__name__:
            return None
        return Signature("unknown", "unknown", (str(error),), None)
    by = manifest.get("signature_info", {})
    names = [str(by[key]) for key in ("issuer", "common_name") if by.get(key)]
    tool = manifest.get("claim_generator_info", [{}])[0]
    said = [one["data"] for one in manifest.get("assertions", ()) if one["label"] == ASSERTION]
    return Signature(
        signer=", ".join(names),
        tool=" ".join(str(tool[key]) for key in ("name", "version") if key in tool),
        faults=tuple(one["code"] for one in failures if one["code"] != UNKNOWN_SIGNER),
        said=dict(said[0]) if said else None,
    )


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError as error:
        fix = "pip install 'segue[provenance]'"
        raise PluginError("signing", "needs c2pa-python", fix) from error
    return c2pa


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutputError(str(path), f"{error.strerror}", "name a PEM file") from error


def _algorithm(secret: bytes, path: Path) -> bytes:
    """Return C2PA's name of the algorithm that a private key signs with."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(secret, None)
    except (TypeError, ValueError) as error:
        fix = "name a PEM file of a private key without a password"
        raise OutputError(str(path), "is not a private key that can be read", fix) from error
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {256: b"es256", 384: b"es384"}.get(key.curve.key_size, b"es512")
    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    raise OutputError(str(path), "is of an unknown kind", "use an EC, RSA or Ed25519 key")
