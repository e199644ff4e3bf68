"""Who is who in the mesh: an embedded certificate authority, certificates, tokens and ticket keys.

One folder holds them, 0700, made at the first start of `radmesh up`; in Kubernetes the same files are mounted.

    ca.pem  ca.key                  the authority (the key is needed only where certificates are made)
    <instance>.pem  <instance>.key  certificate and key of an instance
    token.<instance>                its secret on a unix socket
    tokens.json                     SHA-256 of every token, which is all that a server needs
    ticket.<issuer>.key  .pub       Ed25519 pairs that sign tickets
    grant.<issuer>.key   .pub       others that sign read grants: whoever may let read must not be able to let store
"""

import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import time
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import write_atomic

TICKET_ISSUERS = ("database-server", "network-gateway")
GRANT_ISSUERS = ("application-server",)
_PAIRS = (*(f"ticket.{issuer}" for issuer in TICKET_ISSUERS), *(f"grant.{issuer}" for issuer in GRANT_ISSUERS))
_CA_LIFE, _LIFE = timedelta(days=3650), timedelta(days=365)
_SKEW = timedelta(minutes=5)
# Key and certificate are two files: who reads between the two replacements looks again.
_PAIR_TRIES, _PAIR_SECONDS = 20, 0.05


def component_of(instance: str) -> str:
    """Return the component of an instance: "archive-server" of "archive-server-0"."""
    return re.sub(r"-\d+$", "", instance)


class Authority:
    """The cluster's own certificate authority; what it issues is valid for `life`."""

    def __init__(self, folder: Path, clock: Clock, life: timedelta = _LIFE) -> None:
        """Open the authority in `folder`, or make it: durably, before anything relies on it."""
        self._folder = folder
        self._clock = clock
        self._life = life
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        # The key is written first: a certificate without a key could never be used.
        if not (folder / "ca.pem").exists():
            self._make()
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock.now()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"radmesh {secrets.token_hex(4)}")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_atomic(self._folder / "ca.key", _private_pem(key))
        write_atomic(self._folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)

    def issue(self, instances: list[str]) -> list[str]:
        """Make what is missing of every instance: certificate, token, keys of tickets and grants.

        A certificate of which a sixth of its life is left is made anew. Returns whose were made.
        """
        made = []
        tokens = self._folder / "tokens.json"
        digests: dict[str, str] = json.loads(tokens.read_bytes()) if tokens.exists() else {}
        for instance in instances:
            if not self._still_good(instance):
                self._issue_certificate(instance)
                made.append(instance)
            token = self._folder / f"token.{instance}"
            if not token.exists():
                write_atomic(token, secrets.token_hex(32).encode())
            digests[instance] = hashlib.sha256(token.read_bytes()).hexdigest()
        write_atomic(tokens, json.dumps(digests, sort_keys=True).encode())
        for pair in _PAIRS:
            public = self._folder / f"{pair}.pub"
            if not public.exists():
                key = Ed25519PrivateKey.generate()
                write_atomic(self._folder / f"{pair}.key", key.private_bytes_raw())
                write_atomic(public, key.public_key().public_bytes_raw(), mode=0o644)
        return made

    def _still_good(self, instance: str) -> bool:
        path = self._folder / f"{instance}.pem"
        if not path.exists() or not (self._folder / f"{instance}.key").exists():
            return False
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        now = self._clock.now()
        return (
            certificate.not_valid_after_utc - now > self._life / 6
            and certificate.not_valid_before_utc <= now
            and certificate.issuer == self._certificate.subject
        )

    def _issue_certificate(self, instance: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock.now()
        component = component_of(instance)
        # As a StatefulSet's pod is found: <pod>.<service>.
        hosts = dict.fromkeys((component, instance, f"{instance}.{component}", "localhost"))
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        names += [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1")]
        names.append(x509.UniformResourceIdentifier(f"spiffe://radmesh/{component}/{instance}"))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, instance)]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + self._life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        write_atomic(self._folder / f"{instance}.key", _private_pem(key))
        pem = serialization.Encoding.PEM
        write_atomic(
            self._folder / f"{instance}.pem",
            certificate.public_bytes(pem) + self._certificate.public_bytes(pem),
            mode=0o644,
        )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _belong_together(key: bytes, chain: bytes) -> bool:
    private = serialization.load_pem_private_key(key, None)
    return private.public_key() == x509.load_pem_x509_certificate(chain).public_key()


def _version(path: Path) -> tuple[int, int]:
    # Files are replaced, not written over: the inode tells two apart that are as old as the clock can tell.
    status = os.stat(path)  # noqa: PTH116 - called for every rpc
    return status.st_mtime_ns, status.st_ino


class Credentials:
    """What one instance has of the folder. Files are read when they are needed: a renewed certificate is seen.

    `authority`, `certificate` and `key` are PEM files that are elsewhere, as where Kubernetes mounts a Secret.
    """

    def __init__(
        self,
        folder: Path,
        instance: str,
        *,
        authority: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self._folder = folder
        self.instance = instance
        self.component = component_of(instance)
        self.ca_path = authority or folder / "ca.pem"
        self._certificate = certificate or folder / f"{instance}.pem"
        self._key = key or folder / f"{instance}.key"
        self._digests: tuple[tuple[int, int], dict[str, str]] = ((0, 0), {})
        self._private: dict[str, Ed25519PrivateKey] = {}
        self._public: dict[str, Ed25519PublicKey] = {}

    def certificate(self) -> tuple[bytes, bytes, bytes]:
        """Return (key, certificate chain, authority's certificate), PEM.

        Raises:
            RadmeshError: FILE_UNREADABLE; CERTIFICATE_INVALID: no PEM, or the key is of another certificate.
        """
        try:
            for _ in range(_PAIR_TRIES):
                key, chain = self._key.read_bytes(), self._certificate.read_bytes()
                if _belong_together(key, chain):
                    return key, chain, self.ca_path.read_bytes()
                time.sleep(_PAIR_SECONDS)
        except OSError as error:
            text = f"cannot read {error.filename} ({error.strerror}): mount it, or make it with 'radmesh up'"
            raise RadmeshError("FILE_UNREADABLE", text) from error
        except ValueError as error:
            text = f"{self._certificate} or {self._key} holds no certificate or key in PEM"
            raise RadmeshError("CERTIFICATE_INVALID", text) from error
        raise RadmeshError("CERTIFICATE_INVALID", f"{self._key} is not the key of {self._certificate}: mount its pair")

    def certificate_times(self) -> tuple[datetime, datetime]:
        """Return when the certificate's life begins, and when it, or the authority's, ends.

        Raises:
            RadmeshError: FILE_UNREADABLE, CERTIFICATE_INVALID.
        """
        _, chain, authority = self.certificate()
        own, issuer = map(x509.load_pem_x509_certificate, (chain, authority))
        return own.not_valid_before_utc, min(own.not_valid_after_utc, issuer.not_valid_after_utc)

    def certificate_paths(self) -> tuple[Path, Path]:
        """Return the files of certificate chain and key."""
        return self._certificate, self._key

    def certificate_version(self) -> tuple[int, int]:
        """Return what changes when the certificate file is replaced."""
        return _version(self._certificate)

    def check_certificate(self, now: datetime) -> None:
        """Look whether certificate and authority are valid at `now`.

        Raises:
            RadmeshError: CERTIFICATE_INVALID, FILE_UNREADABLE.
        """
        _, chain, authority = self.certificate()
        for path, pem in ((self._certificate, chain), (self.ca_path, authority)):
            try:
                found = x509.load_pem_x509_certificate(pem)
            except ValueError as error:
                raise RadmeshError("CERTIFICATE_INVALID", f"{path} holds no certificate in PEM") from error
            begin, end = found.not_valid_before_utc, found.not_valid_after_utc
            if not begin <= now <= end:
                what = "is not valid before" if now < begin else "ended at"
                when = (begin if now < begin else end).isoformat(timespec="seconds")
                clock = now.isoformat(timespec="seconds")
                text = f"{path} {what} {when}, and this machine's clock says {clock}: set the clock, or renew it"
                raise RadmeshError("CERTIFICATE_INVALID", text)

    def token(self) -> str:
        """Return this instance's secret."""
        return (self._folder / f"token.{self.instance}").read_text()

    def check_token(self, instance: str, token: str) -> bool:
        """Return whether `token` is the secret of `instance`."""
        path = self._folder / "tokens.json"
        version, digests = self._digests
        if (changed := _version(path)) != version:
            digests = json.loads(path.read_bytes())
            self._digests = (changed, digests)
        expected = digests.get(instance, "")
        return hmac.compare_digest(hashlib.sha256(token.encode()).hexdigest(), expected)

    def ticket_sign(self, payload: bytes) -> bytes:
        """Return the Ed25519 signature of a ticket by this component.

        Raises:
            FileNotFoundError: this component issues no tickets.
        """
        return self._sign("ticket", payload)

    def ticket_verify(self, issuer: str, payload: bytes, signature: bytes) -> bool:
        """Return whether `signature` is the issuer's, of this payload."""
        return issuer in TICKET_ISSUERS and self._verify(f"ticket.{issuer}", payload, signature)

    def grant_sign(self, payload: bytes) -> bytes:
        """Return the Ed25519 signature of a read grant by this component.

        Raises:
            FileNotFoundError: this component issues no grants.
        """
        return self._sign("grant", payload)

    def grant_verify(self, issuer: str, payload: bytes, signature: bytes) -> bool:
        """Return whether `signature` is the issuer's, of this payload.

        Raises:
            FileNotFoundError: the issuer's public key is not here.
        """
        return issuer in GRANT_ISSUERS and self._verify(f"grant.{issuer}", payload, signature)

    def _sign(self, kind: str, payload: bytes) -> bytes:
        if kind not in self._private:
            raw = (self._folder / f"{kind}.{self.component}.key").read_bytes()
            self._private[kind] = Ed25519PrivateKey.from_private_bytes(raw)
        return self._private[kind].sign(payload)

    def _verify(self, pair: str, payload: bytes, signature: bytes) -> bool:
        if pair not in self._public:
            self._public[pair] = Ed25519PublicKey.from_public_bytes((self._folder / f"{pair}.pub").read_bytes())
        try:
            self._public[pair].verify(signature, payload)
        except InvalidSignature:
            return False
        return True
