"""Settings of the Connectivity Manager."""

from dataclasses import dataclass

from radmesh.runtime.config import Duration, Size, setting


@dataclass(frozen=True)
class Section:
    """[connectivity]: HL7 with the HIS/RIS. What differs from RIS to RIS is under [[domains]]."""

    bind: str = setting(
        "127.0.0.1",
        doc="Address that HL7 listeners take; 0.0.0.0 = all of IPv4, :: = all.",
        env="RADMESH_HL7_BIND",
    )
    hl7_port: int = setting(
        2575,
        doc="Port of the first domain's listener (MLLP); 0 = any free one.",
        env="RADMESH_HL7_PORT",
        minimum=0,
        maximum=65535,
    )
    url: str = setting(
        "",
        doc="SQLAlchemy URL of the manager's own database; empty = an SQLite file in its data folder.",
        env="RADMESH_CONNECTIVITY_URL",
        secret=True,
    )
    max_connections: int = setting(
        256, doc="Connections of a listener at once; the one idle longest gives way.", minimum=1, maximum=10_000
    )
    idle_timeout: Duration = setting(
        3600.0, doc="A connection without a message for so long is closed.", minimum=5, maximum=7 * 86400
    )
    message_size: Size = setting(16 << 20, doc="Bytes of a message; a longer one is answered with AR.", minimum=4096)
    keep: Duration = setting(
        90 * 86400.0,
        doc="Messages that took effect are kept in the log for so long; dead letters until they are replayed.",
        minimum=7 * 86400,
    )
    ack_timeout: Duration = setting(
        30.0, doc="A RIS has so long to acknowledge a report before it is sent again.", minimum=1, maximum=600
    )
