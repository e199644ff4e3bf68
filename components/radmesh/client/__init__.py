"""The client: a Python library and the commands of `radmesh`.

>>> from radmesh.client import Cluster
>>> with Cluster.local() as cluster:                      # doctest: +SKIP
...     for study in cluster.find(patient_name="doe*"):
...         print(study.study_instance_uid, study.instance_count)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radmesh.client.cluster import Cluster
    from radmesh.client.model import (
        Admission,
        Domain,
        Instance,
        Merge,
        Message,
        Order,
        Report,
        Series,
        StoreResult,
        Study,
        StudyDetail,
    )

__all__ = [
    "Admission",
    "Cluster",
    "Domain",
    "Instance",
    "Merge",
    "Message",
    "Order",
    "Report",
    "Series",
    "StoreResult",
    "Study",
    "StudyDetail",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for: `radmesh --help` must not wait for gRPC."""
    import importlib  # noqa: PLC0415

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{'cluster' if name == 'Cluster' else 'model'}")
    return getattr(module, name)
