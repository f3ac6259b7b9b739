"""Certificates for signing in tests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Credentials:
    """PEM files: a certificate that another vouches for, its key, and the other one."""

    certificate: Path
    key: Path
    root: Path


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Make a root certificate and one that it vouches for, with their keys."""
    pytest.importorskip("c2pa", reason="pip install 'segue[provenance]'")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(text: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test studio")
        return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, text)])

    root, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.now(timezone.utc)

    def certificate(text: str, key: ec.EllipticCurvePrivateKey, is_root: bool) -> bytes:
        usage = x509.KeyUsage(True, False, False, False, False, is_root, is_root, False, False)
        vouched = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(text))
            .issuer_name(name("Root"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(vouched, critical=False)
        )
        if not is_root:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        signed = builder.sign(root, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    folder = tmp_path_factory.mktemp("credentials")
    made = Credentials(*(folder / f"{each}.pem" for each in ("certificate", "key", "root")))
    made.root.write_bytes(certificate("Root", root, True))
    made.certificate.write_bytes(certificate("Signer", leaf, False) + made.root.read_bytes())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    made.key.write_bytes(leaf.private_bytes(*form, serialization.NoEncryption()))
    return made
