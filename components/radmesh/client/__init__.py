"""The client: a Python library and the commands of `radmesh`.

>>> from radmesh.client import Cluster
>>> with Cluster.local() as cluster:                      # doctest: +SKIP
...     for study in cluster.find(patient_name="doe*"):
...         print(study.study_instance_uid, study.instance_count)
"""

from radmesh.client.cluster import Cluster
from radmesh.client.model import Instance, Series, StoreResult, Study, StudyDetail

__all__ = ["Cluster", "Instance", "Series", "StoreResult", "Study", "StudyDetail"]
