"""Settings of the Database Server."""

from dataclasses import dataclass

from radmesh.runtime.config import Duration, setting


@dataclass(frozen=True)
class Section:
    """[database]: where facts are kept."""

    url: str = setting(
        "",
        doc="SQLAlchemy URL, such as postgresql+psycopg://user:password@host/radmesh; empty = SQLite.",
        env="RADMESH_DATABASE_URL",
        secret=True,
    )
    store_timeout: Duration = setting(
        3.0, doc="A store that is silent for longer is given no new studies.", minimum=0.5, maximum=60
    )
    history: int = setting(
        100_000,
        doc="Changes that the change feed keeps; a watcher that is further behind has to read the tables.",
        minimum=1000,
    )
    session: Duration = setting(
        12 * 3600.0, doc="A session that was not used for so long has ended.", minimum=60, maximum=30 * 86400
    )
