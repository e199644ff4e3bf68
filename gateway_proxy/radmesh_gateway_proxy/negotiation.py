"""What an association may do: presentation contexts, roles and the other things to agree on (PS3.7 annex D, PS3.8).

Pure functions of the request and the policy, so that the answer to the same request bytes is kept and given again:
a modality sends the same A-ASSOCIATE-RQ with every study.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from radmesh.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, VERIFICATION_SOP_CLASS
from radmesh_gateway_proxy.pdus import (
    APPLICATION_CONTEXT_NAME,
    REJECT_APPLICATION_CONTEXT,
    REJECT_CALLED_AE_TITLE,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    ContextReply,
    ContextResult,
    ExtendedNegotiation,
    PduError,
    ProposedContext,
    RoleSelection,
    UserInformation,
    encode_associate_accept,
    parse_associate_request,
)

# PS3.4 table B.3-3: level 2 (every attribute is kept), signatures bit-preserving (level 3), no element is coerced.
STORAGE_EXTENDED_NEGOTIATION = bytes((2, 0, 3, 0, 0, 0))

# Of request bytes; what is kept for them is some ten times that.
_MOST_KEPT = 1 << 20
_LONGEST_KEPT = 128 << 10
# A P-DATA-TF that takes less cannot carry a response in any number of PDUs worth sending.
_LEAST_PDU = 32
MOST_OPERATIONS = 8
"""Requests that a peer may have open at once, if it asks for that."""


@dataclass(frozen=True)
class Policy:
    """What this side agrees to.

    Attributes:
        storage_sop_classes: SOP Class UIDs that C-STORE takes, private ones of the configuration included.
        transfer_syntaxes: Transfer Syntax UIDs in which a data set may come; none is transcoded.
        services: transfer syntaxes by abstract syntax, of all that is served beside storage and verification.
        extended: of those, who answers extended negotiation.
        reported: of those, which a peer may be SCP of, to send us reports.
        ae_title: this side's AE title.
        require_called_ae: whether a caller must name it.
        max_pdu: bytes of a P-DATA-TF behind its header that this side takes.
    """

    storage_sop_classes: Collection[str]
    transfer_syntaxes: Collection[str]
    services: Mapping[str, Collection[str]] = field(default_factory=dict)
    extended: Mapping[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    reported: Collection[str] = frozenset()
    ae_title: str = "RADMESH"
    require_called_ae: bool = False
    max_pdu: int = 131_072


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """A presentation context that both sides agreed on."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """The outcome of a negotiation that did not end in a rejection.

    Attributes:
        contexts: accepted contexts by their id.
        accept: the encoded A-ASSOCIATE-AC.
        peer_max_pdu: bytes of a P-DATA-TF behind its header that the peer takes; 0 = any number.
        operations: requests that the peer may have open at once.
        scp_sop_classes: storage classes of which the peer is SCP too: objects may be sent to it on this association.
    """

    request: AssociateRequest
    contexts: Mapping[int, AcceptedContext]
    accept: bytes
    peer_max_pdu: int
    operations: int = 1
    scp_sop_classes: Collection[str] = frozenset()


def negotiate(request: AssociateRequest, policy: Policy) -> Agreement | AssociateReject:
    """Answer an association request.

    The transfer syntax of a context is the first of the sender's own list that is known here, since objects are kept as
    they come. Protocol version and calling AE title are not looked at: the state machine and the grants do that.

    Raises:
        PduError: a value of the request makes no sense.
    """
    if 0 < request.user.max_length < _LEAST_PDU:
        raise PduError("the maximum length is too short for any message")
    if request.application_context_name != APPLICATION_CONTEXT_NAME:
        return REJECT_APPLICATION_CONTEXT
    if policy.require_called_ae and request.called_ae_title != policy.ae_title:
        return REJECT_CALLED_AE_TITLE
    proposed_roles = {role.sop_class_uid: role for role in request.user.roles}
    replies = tuple(_reply(c, proposed_roles.get(c.abstract_syntax), policy) for c in request.contexts)
    accepted = {
        r.context_id: AcceptedContext(r.context_id, c.abstract_syntax, r.transfer_syntax)
        for c, r in zip(request.contexts, replies, strict=True)
        if r.result is ContextResult.ACCEPTANCE
    }
    answer = AssociateAccept(
        request.called_ae_title,
        request.calling_ae_title,
        replies,
        _user_information(request.user, {c.abstract_syntax for c in accepted.values()}, policy),
    )
    return Agreement(
        request,
        MappingProxyType(accepted),
        encode_associate_accept(answer),
        request.user.max_length,
        answer.user.async_window[0] if answer.user.async_window else 1,
        frozenset(role.sop_class_uid for role in answer.user.roles if role.scp),
    )


def _reply(context: ProposedContext, role: RoleSelection | None, policy: Policy) -> ContextReply:
    first = context.transfer_syntaxes[0] if context.transfer_syntaxes else ""
    uid = context.abstract_syntax
    storage = uid in policy.storage_sop_classes
    if not storage and uid != VERIFICATION_SOP_CLASS and uid not in policy.services:
        return ContextReply(context.context_id, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, first)
    if role is not None and not role.scu and not (role.scp and (storage or uid in policy.reported)):
        # The peer wants to be served only; but objects alone are sent on an association that was not opened here.
        return ContextReply(context.context_id, ContextResult.USER_REJECTION, first)
    known = policy.services.get(uid, policy.transfer_syntaxes)
    for transfer_syntax in context.transfer_syntaxes:
        if transfer_syntax in known:
            return ContextReply(context.context_id, ContextResult.ACCEPTANCE, transfer_syntax)
    return ContextReply(context.context_id, ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED, first)


def _user_information(asked: UserInformation, accepted: Collection[str], policy: Policy) -> UserInformation:
    return UserInformation(
        max_length=policy.max_pdu,
        implementation_class_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version_name=IMPLEMENTATION_VERSION_NAME,
        # Of the requestor's view: what it may invoke, and what it has to perform, for which it is asked one at a time.
        async_window=asked.async_window and (min(asked.async_window[0] or MOST_OPERATIONS, MOST_OPERATIONS), 1),
        roles=tuple(
            RoleSelection(
                r.sop_class_uid,
                scu=r.scu,
                scp=r.scp and (r.sop_class_uid in policy.storage_sop_classes or r.sop_class_uid in policy.reported),
            )
            for r in asked.roles
            if r.sop_class_uid in accepted
        ),
        extended=tuple(
            ExtendedNegotiation(
                e.sop_class_uid,
                policy.extended[e.sop_class_uid](e.information)
                if e.sop_class_uid in policy.extended
                else STORAGE_EXTENDED_NEGOTIATION,
            )
            for e in asked.extended
            if e.sop_class_uid in accepted
            and (e.sop_class_uid in policy.storage_sop_classes or e.sop_class_uid in policy.extended)
        ),
    )


class Negotiator:
    """Negotiates, and keeps the latest answers by the digest of the request's bytes. Thread-safe."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[AssociateRequest, Agreement | AssociateReject, int]] = OrderedDict()
        self._kept_bytes = 0

    def answer(self, body: bytes) -> tuple[AssociateRequest, Agreement | AssociateReject]:
        """Parse and answer the part of an A-ASSOCIATE-RQ behind its six byte header.

        Raises:
            PduError: if it is malformed.
        """
        if len(body) > _LONGEST_KEPT:
            request = parse_associate_request(body)
            return request, negotiate(request, self._policy)
        # A digest that an attacker can find collisions for would give one sender another's name.
        key = hashlib.blake2b(body, digest_size=32).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][:2]
        request = parse_associate_request(body)
        answer = negotiate(request, self._policy)
        if request.user.user_identity is None:  # what may be a password is not kept
            self._keep(key, (request, answer, len(body)))
        return request, answer

    def _keep(self, key: bytes, entry: tuple[AssociateRequest, Agreement | AssociateReject, int]) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = entry
            self._kept_bytes += entry[2]
            while self._kept_bytes > _MOST_KEPT:
                _, (_, _, size) = self._kept.popitem(last=False)
                self._kept_bytes -= size
