"""Which certificates the edge uses: those of the configuration, or those that the cluster makes for itself."""

from pathlib import Path

from radmesh.dicom.stations import Station
from radmesh.runtime.context import Context
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.tls import Certificates, Dialer, dialer


def _own(config: Section, context: Context) -> tuple[Path, Path]:
    if config.tls_certificate:
        return Path(config.tls_certificate), Path(config.tls_key or config.tls_certificate)
    return context.credentials.certificate_paths()


def certificates_of(config: Section, context: Context) -> Certificates:
    """Return the certificates of the port for TLS.

    Raises:
        RadmeshError: CONFIG_INVALID: they cannot be used.
    """
    certificate, key = _own(config, context)
    return Certificates(
        certificate,
        key,
        Path(config.tls_ca) if config.tls_clients != "off" else None,
        required=config.tls_clients == "required",
        log=context.log,
    )


def dialer_of(station: Station, config: Section, context: Context) -> Dialer | None:
    """Return how a station is called over TLS; None = without.

    Raises:
        RadmeshError: CONFIG_INVALID: our certificate, or that of who certifies stations, cannot be used.
    """
    if not station.tls:
        return None
    return dialer(*_own(config, context), Path(config.tls_ca) if config.tls_ca else None, station.certificate)
