"""Read grants: local clients read a study from an archive, past this door (CORRECTNESS rule 18)."""

import hashlib
from collections import Counter
from datetime import timedelta
from typing import Any, Final

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.audit import Audit
from radmesh.application_server.ris import may_reconcile
from radmesh.runtime.addresses import is_loopback
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call

GRANT_SECONDS: Final = 60
# A study is at one archive, or at few: this many instances say at which.
_LOOKED_AT: Final = 1000
_IN_CACHE: Final = (common_pb2.RESIDENCE_CACHE, common_pb2.RESIDENCE_CACHE_AND_PERMANENT)


class ReadGrants:
    """ImageService.GetReadGrant.

    Args:
        context: signs.
        queries: calls of QueryService.
        registry: calls of RegistryService.
        audit: of the door.
    """

    def __init__(self, context: Context, queries: Any, registry: Any, audit: Audit) -> None:
        self._context, self._queries, self._registry, self._audit = context, queries, registry, audit

    def GetReadGrant(self, request: pb.GetReadGrantRequest, call: Call) -> pb.ReadGrant:
        """Let the caller read a study at the archive that has most of it in its cache.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, NO_LOCAL_READ.
        """
        assert call.person is not None
        store = self._best(request.study_instance_uid, call)
        self._audit.access("STUDY_GRANT", call, request.study_instance_uid)
        grant = archive_pb2.Grant(
            issuer=self._context.component,
            store_id=store.store_id,
            epoch=store.epoch,
            study_instance_uid=request.study_instance_uid,
            user=call.person.name,
            session_digest=hashlib.sha256(call.person.token.encode()).digest(),
        )
        grant.expire_time.FromDatetime(self._context.clock.now() + timedelta(seconds=GRANT_SECONDS))
        payload = grant.SerializeToString()
        try:
            signature = self._context.credentials.grant_sign(payload)
        except FileNotFoundError as error:
            raise RadmeshError("NO_LOCAL_READ", "this Application Server has no key to sign grants with") from error
        return pb.ReadGrant(
            grant=archive_pb2.SignedGrant(payload=payload, signature=signature).SerializeToString(),
            store_id=store.store_id,
            client_url=store.client_url,
            expire_time=grant.expire_time,
        )

    def _best(self, study_instance_uid: str, call: Call) -> database_pb2.Store:
        assert call.person is not None
        wanted = database_pb2.FindInstancesRequest(
            study_instance_uid=study_instance_uid, include_held=may_reconcile(call.person), page_size=_LOOKED_AT
        )
        places = [place for i in self._queries.FindInstances(wanted).instances for place in i.locations]
        cached = Counter(place.object.store_id for place in places if place.residence in _IN_CACHE)
        held = Counter(place.object.store_id for place in places)
        here = is_loopback(call.peer)
        stores = [
            store
            for store in self._registry.ListStores(database_pb2.ListStoresRequest()).stores
            if store.kind == common_pb2.STORE_KIND_ARCHIVE
            and store.alive
            and store.store_id in held
            and _reaches(store.client_url, here=here)
        ]
        if not stores:
            raise RadmeshError("NO_LOCAL_READ", "no archive that has the study serves clients where you are")
        best: database_pb2.Store = max(stores, key=lambda s: (cached[s.store_id], held[s.store_id], s.store_id))
        return best


def _reaches(url: str, *, here: bool) -> bool:
    """Return whether a client can come to `url`; `here`: it is on this machine."""
    host = url.rpartition("://")[2].rpartition(":")[0]
    return bool(host) and (here or not is_loopback(host))
