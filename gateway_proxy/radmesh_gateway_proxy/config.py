"""Settings of the DICOM edge."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from radmesh.runtime.config import Duration, Size, setting
from radmesh_gateway_proxy.tls import CLIENTS

_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")


def _ae_title(value: str) -> str | None:
    good = 0 < len(value) <= 16 and value.isascii() and value.isprintable() and "\\" not in value
    return None if good and value == value.strip() else "must be 1 to 16 printable ASCII characters (PS3.5 table 6.2-1)"


def _path(value: str) -> str | None:
    return None if not value or (value.startswith("/") and "\0" not in value) else "must be an absolute path"


def _uid(value: str) -> str | None:
    return None if len(value) <= 64 and _UID.fullmatch(value) else "must be a UID of at most 64 characters (PS3.5 9.1)"


@dataclass(frozen=True)
class Section:
    """[dicom]: how modalities and stations reach the cluster."""

    port: int = setting(
        11112,
        doc="TCP port for DICOM associations; 0 = any free one.",
        env="RADMESH_DICOM_PORT",
        minimum=0,
        maximum=65535,
    )
    tls_port: int = setting(
        2762,
        doc="TCP port for DICOM associations over TLS 1.2 or later; 0 = any free one.",
        env="RADMESH_DICOM_TLS_PORT",
        minimum=0,
        maximum=65535,
    )
    tls: bool = setting(
        default=True,
        doc="Whether the port for TLS is served. If it is taken, and `tls_certificate` is empty, it is not.",
    )
    tls_certificate: str = setting(
        "",
        doc="PEM file of our certificate and its chain; empty = the gateway proxy's own, which stations can check with "
        "the cluster's ca.pem. Files that are replaced are loaded, without a restart.",
        rule=_path,
    )
    tls_key: str = setting("", doc="PEM file of its key, without a password; empty = in tls_certificate.", rule=_path)
    tls_ca: str = setting("", doc="PEM file of the authorities that certify stations.", rule=_path)
    tls_clients: str = setting(
        "off",
        doc="Whether stations are asked for a certificate of `tls_ca`, and whether it is required. One that is named "
        "under [[stations]] is always required.",
        choices=CLIENTS,
    )
    bind: str = setting("127.0.0.1", doc="Address to listen on; 0.0.0.0 or :: = all.", env="RADMESH_BIND")
    ae_title: str = setting("RADMESH", doc="AE title of the cluster.", env="RADMESH_AE_TITLE", rule=_ae_title)
    require_called_ae: bool = setting(default=False, doc="Whether a caller must name `ae_title` to be let in.")
    check_stations: str = setting(
        "auto",
        doc="Whether only stations of [[stations]] may connect: on, off, or auto = all but callers from loopback.",
        choices=("auto", "on", "off"),
    )
    private_sop_classes: tuple[str, ...] = setting(
        (), doc="Private SOP Class UIDs to be taken as storage classes, beside all standard ones.", rule=_uid
    )
    max_pdu: Size = setting(131_072, doc="Longest P-DATA-TF PDU taken, in bytes.", minimum=4_096, maximum=1_048_576)
    processes: int = setting(0, doc="Acceptor processes; 0 = one a core, two at least.", minimum=0, maximum=256)
    max_associations: int = setting(
        400,
        doc="Associations open at once, over all processes; more are refused as transient.",
        minimum=1,
        maximum=20_000,
    )
    streams: int = setting(
        48, doc="Objects on their way to stores at once, over all processes; more wait.", minimum=1, maximum=4096
    )
    artim_timeout: Duration = setting(
        30.0,
        doc="Time for a caller's A-ASSOCIATE-RQ, and for its closing of the connection.",
        minimum=0.05,
        maximum=3600,
    )
    idle_timeout: Duration = setting(
        600.0, doc="Time without a PDU after which an association is aborted.", minimum=0.05, maximum=86_400
    )
    pdu_timeout: Duration = setting(
        60.0,
        doc="Time within which a PDU that has begun must be whole, and a peer must read a response.",
        minimum=0.05,
        maximum=3600,
    )
    release_wait: Duration = setting(
        2.0, doc="Longest wait, before a release is answered, for what was sent to be found by a query.", maximum=30
    )
    send_pause: Duration = setting(
        5.0, doc="Until a send that failed is tried again; doubled with each try.", minimum=0.1, maximum=3600
    )
    send_longest_pause: Duration = setting(3600.0, doc="Longest such pause.", minimum=0.1, maximum=86_400)
    find_limit: int = setting(
        100_000,
        doc="Most rows of a C-FIND; a query with more ends with 0xA700 behind them, and says so.",
        minimum=1,
        maximum=100_000,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between settings."""
        if 0 < self.port == self.tls_port:
            yield "tls_port", "must differ from dicom.port"
        if self.tls_clients != "off" and not self.tls_ca:
            yield (
                "tls_ca",
                f"is needed for tls_clients = {self.tls_clients}: name the PEM file of who certifies stations",
            )
