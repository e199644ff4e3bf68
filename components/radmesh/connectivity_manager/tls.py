"""TLS towards a RIS (IHE ITI-19, BCP 195): the certificates of a domain, of ours and of those that it is known by."""

import ssl
from pathlib import Path
from typing import Any, Final

from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger

# hl7_tls of a domain
OFF, MUTUAL = "off", "mutual"
# Without one OpenSSL asks whoever sits at the terminal.
_NO_PASSWORD: Final = ""


class Certificates:
    """The TLS contexts of a domain; `renew` takes files over that were replaced, for connections that begin later.

    An authority that was taken away is trusted until the next start.

    Args:
        domain: a [[domains]] entry.

    Raises:
        RadmeshError: CONFIG_INVALID: a file cannot be used.
    """

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self._loaded: dict[str, float] = {}
        self.listener: ssl.SSLContext | None = None
        self.receiver: ssl.SSLContext | None = None
        if domain.hl7_tls != OFF:
            self.listener = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.listener.verify_mode = ssl.CERT_REQUIRED if domain.hl7_tls == MUTUAL else ssl.CERT_NONE
        if domain.report_to.startswith("mllps://"):
            self.receiver = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if not domain.tls_ca:
                self.receiver.load_default_certs()
        for context in self._contexts():
            context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load()

    def renew(self, log: Logger) -> None:
        """Load what was replaced; what cannot be used changes nothing."""
        if not self._contexts() or self._times() == self._loaded:
            return
        try:
            self._load()
        except RadmeshError as error:
            self._loaded = self._times()
            log.warning("certificates cannot be used", domain=self._domain.name, text=error.message)
        else:
            log.info("certificates loaded", domain=self._domain.name)

    def _contexts(self) -> list[ssl.SSLContext]:
        return [context for context in (self.listener, self.receiver) if context is not None]

    def _times(self) -> dict[str, float]:
        found = {}
        for path in (self._domain.tls_certificate, self._domain.tls_key, self._domain.tls_ca):
            try:
                found[path] = Path(path).stat().st_mtime if path else 0.0
            except OSError:
                found[path] = -1.0
        return found

    def _load(self) -> None:
        domain, times = self._domain, self._times()
        name = "tls_ca"
        try:
            if domain.tls_ca:
                for context in self._contexts():
                    context.load_verify_locations(domain.tls_ca)
            name = "tls_certificate, tls_key"
            if domain.tls_certificate:
                # On a context of its own first: of a pair of which one half is old, none is served.
                for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._contexts()):
                    context.load_cert_chain(domain.tls_certificate, domain.tls_key or None, password=_NO_PASSWORD)
        except (OSError, ValueError) as error:
            what = getattr(error, "reason", "") or getattr(error, "strerror", "") or "no PEM, or an encrypted key"
            remedy = "give PEM files, and a key without a password"
            raise RadmeshError(
                "CONFIG_INVALID", f"{name} of the domain {domain.name} cannot be used ({what}): {remedy}"
            ) from error
        self._loaded = times
