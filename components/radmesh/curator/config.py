"""Settings of the Curator."""

from dataclasses import dataclass

from radmesh.runtime.config import Duration, Size, setting


@dataclass(frozen=True, slots=True)
class Section:
    """[curator]: the web cache, and how much of the machine making it may take."""

    threads: int = setting(
        0, doc="Instances made at one time, each in a process of its own; 0 = as many as cores.", minimum=0, maximum=256
    )
    size: Size = setting(
        0,
        doc="What a web cache may have on disk; what was not looked at for longest goes first. 0 = all but `reserve`.",
        minimum=0,
    )
    reserve: Size = setting(4 << 30, doc="Room kept free in the web cache's file system.", minimum=0)
    quiet: Duration = setting(
        0.5, doc="Work on a study begins so long after something of it came.", minimum=0, maximum=3600
    )
    busy_pause: Duration = setting(
        0.1,
        doc="While objects come into the cluster, a Curator waits so long before each instance, and up to 20 times as "
        "long while they leave no core free; 0 = it does not.",
        minimum=0,
        maximum=60,
    )
    sweep: Duration = setting(
        30.0, doc="How often a Curator looks for studies that lack pictures and were not told of.", minimum=0.1
    )
    patience: Duration = setting(
        600.0, doc="What a web cache had that is silent for longer is made again by others.", minimum=0
    )
