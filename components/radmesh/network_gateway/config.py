"""Settings of the Network Gateway."""

from dataclasses import dataclass

from radmesh.runtime.config import Duration, Size, setting


@dataclass(frozen=True, slots=True)
class Section:
    """[gateway]: admission, spool and rejects."""

    reserve: Size = setting(
        1 << 30, doc="Room kept free in the spool's file system: below it the spool takes nothing more.", minimum=0
    )
    place_timeout: Duration = setting(
        0.2,
        doc="How long the Database Server has to place a study before the last known placement is used.",
        minimum=0.05,
        maximum=5,
    )
    start_patience: Duration = setting(
        5.0,
        doc="For so long after the start, studies wait a moment for the first archive before they go to the spool.",
        minimum=0,
        maximum=60,
    )
    verify_timeout: Duration = setting(
        0.2,
        doc="How long an admission waits for the RIS; after that it is PENDING, and the verdict follows.",
        minimum=0,
        maximum=0.2,
    )
    verify_deadline: Duration = setting(
        5.0, doc="How long a Connectivity Manager has for an answer.", minimum=0.1, maximum=60
    )
    verify_threads: int = setting(8, doc="Verifications under way at one time.", minimum=1, maximum=64)
    verify_again: Duration = setting(
        60.0,
        doc="How often studies that are not verified are looked at again, beside what orders and patients bring about.",
        minimum=0.1,
    )
    route_quiet: Duration = setting(
        60.0,
        doc="A study that nothing came for so long is complete, and is routed; one whose performed procedure steps "
        "have ended is so at once. What comes later is sent when it is quiet again.",
        minimum=0,
        maximum=86_400,
    )
    route_attempts: int = setting(
        100,
        doc="Tries of a send that a route began; then it has failed, and waits for a person.",
        minimum=1,
        maximum=1000,
    )
    rejects_size: Size = setting(
        1 << 30, doc="Bytes that the rejects store keeps; the oldest rejects give way.", minimum=1 << 20
    )
    rejects_count: int = setting(
        10_000, doc="Rejects that are kept; the oldest give way.", minimum=1, maximum=1_000_000
    )
    reject_size: Size = setting(
        64 << 20, doc="Bytes kept of one reject; what is longer is cut, and marked so.", minimum=1 << 16
    )
    max_streams: int = setting(
        192, doc="Calls served at one time; each association that spools or rejects holds one.", minimum=8, maximum=4096
    )
