"""An authority of a test's own, and the certificates that it gives a server on this machine."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFE: Final = timedelta(days=30)


class Authority:
    """Signs certificates; who trusts ``file`` trusts them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        self.file = folder / "authority.pem"
        itself = self._certificate(self._name, self._key.public_key(), datetime.now(UTC) + _LIFE).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file.write_bytes(itself.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def equip(self, server: ssl.SSLContext, *, address: str = "127.0.0.1", expired: bool = False) -> None:
        """Give a server a new certificate for ``address``, which it shows from its next connection on."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = datetime.now(UTC) + (-timedelta(hours=1) if expired else _LIFE)
        certificate = self._certificate(x509.Name([]), key.public_key(), until).add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=True
        )
        file = self._folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        server.load_cert_chain(file)

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(until - 2 * _LIFE)
            .not_valid_after(until)
        )
