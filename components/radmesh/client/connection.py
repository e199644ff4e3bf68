"""Channels of a client: whom a certificate has to name, and what a target is."""

from typing import Any, Final

import grpc

from radmesh.runtime.addresses import is_loopback
from radmesh.runtime.errors import RadmeshError

_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)


def open_channel(target: str, ca_certificate: bytes | None, component: str) -> grpc.Channel:
    """Open a channel to `component` at `target` ("host:port"), over TLS if there is an authority to check it by.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    if ca_certificate is None:
        return grpc.insecure_channel(target, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(ca_certificate)
    options: tuple[tuple[str, Any], ...] = (*_OPTIONS, *_name(ca_certificate, component))
    return grpc.secure_channel(target, credentials, options=options)


def _name(ca_certificate: bytes, component: str) -> tuple[tuple[str, str], ...]:
    """Return channel options: whom the certificate has to name.

    The cluster's own authority names components, not the machines they run on: so that a certificate is good under
    every address that its component has. Under any other authority the certificate has to name the host.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    from cryptography import x509  # noqa: PLC0415 - only where there is TLS

    if ca_certificate.count(b"-----BEGIN CERTIFICATE-----") > 1:
        return ()
    try:
        subject = x509.load_pem_x509_certificate(ca_certificate).subject
    except ValueError as error:
        raise RadmeshError(
            "FIELD_INVALID", "the authority is no certificate in PEM", metadata={"field": "ca_certificate"}
        ) from error
    names = [str(name.value) for name in subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    own = any(name.startswith("radmesh ") for name in names)
    return (("grpc.ssl_target_name_override", component),) if own else ()


def target_of(url: str) -> str:
    """Return "host:port" of a URL of a door, such as "grpcs://pacs.example:50051", or of "host:port" itself.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    scheme, sign, target = url.rpartition("://")
    if (sign and scheme not in ("grpc", "grpcs")) or not target.rpartition(":")[0] or "/" in target:
        raise RadmeshError(
            "FIELD_INVALID",
            'a cluster is named "grpc://host:port", "grpcs://host:port" or "host:port"',
            metadata={"field": "url"},
        )
    return target


def on_this_machine(target: str) -> bool:
    """Return whether a target is reached without leaving this machine."""
    return target.startswith("unix:") or is_loopback(target.rpartition(":")[0])
