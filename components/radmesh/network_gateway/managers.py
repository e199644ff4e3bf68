"""The Connectivity Managers, as the gateway asks them: with a deadline, and never twice in vain."""

import threading
from typing import Any, Final

from radmesh.api.connectivity.v1 import connectivity_pb2 as pb
from radmesh.dicom.domains import Domains
from radmesh.dicom.stations import Station
from radmesh.network_gateway.policy import AMBIGUOUS, MATCH, MISMATCH, NO_ORDER, TIMEOUT, UNAVAILABLE, Answer, Facts
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Client
from radmesh.transfer.model import key_message

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["ConnectivityService"]
_COMPONENT: Final = "connectivity-manager"
_PROBE_SECONDS: Final = 1.0
_OUTCOMES: Final = {
    pb.VERIFY_OUTCOME_MATCH: MATCH,
    pb.VERIFY_OUTCOME_NO_ORDER: NO_ORDER,
    pb.VERIFY_OUTCOME_PATIENT_MISMATCH: MISMATCH,
    pb.VERIFY_OUTCOME_AMBIGUOUS: AMBIGUOUS,
}


class Managers:
    """Asks the manager that serves a domain. Thread-safe.

    One that did not answer is not asked again until `returned` finds it: not every study has to wait for it.

    Args:
        context: of the gateway.
        domains: the configured domains.
    """

    def __init__(self, context: Context, domains: Domains) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}
        self._down: dict[str, str] = {}
        self._returned: set[str] = set()
        self._outcomes = context.metrics.counter("radmesh_verifications")
        for domain in domains.names:
            manager = domains.manager_of(domain)
            # The first instance also has the component's name: that is how it is reached from another machine.
            names = [n for n in (manager, _COMPONENT if manager.endswith("-0") else "") if n in context.addresses]
            if names:
                self._clients[domain] = context.client(_SERVICE, names[0])

    def exists(self, domain: str) -> bool:
        """Whether the mesh has a manager for the domain."""
        return domain in self._clients

    def down(self, domain: str) -> bool:
        """Whether the domain could not be asked last time."""
        return domain in self._down

    def ask(self, domain: str, facts: Facts, station: Station, timeout: float) -> Answer:
        """Ask; a manager that does not answer in `timeout` seconds, or not sensibly, counts as down."""
        answer = self._ask(domain, facts, station, timeout)
        self._outcomes.labels(answer.outcome).inc()
        return answer

    def _ask(self, domain: str, facts: Facts, station: Station, timeout: float) -> Answer:
        client = self._clients.get(domain)
        if client is None:
            return Answer(UNAVAILABLE)
        request = pb.VerifyStudyRequest(
            domain=domain,
            keys=key_message(facts.key),
            study_date=facts.study_date,
            modality=facts.modality,
            patient_sex=facts.patient_sex,
            study_key=station.study_key,
            patient_key=station.patient_key,
            accession_identifies_patient=station.accession_identifies_patient,
        )
        try:
            found = _answer(domain, client.VerifyStudy(request, timeout=timeout))
        except RadmeshError as error:
            self._failed(domain, error.reason)
            return Answer(TIMEOUT if error.reason == "PEER_TIMEOUT" else UNAVAILABLE)
        self._answered([domain])
        return found

    def _failed(self, domain: str, reason: str) -> None:
        with self._lock:
            new = domain not in self._down
            self._down[domain] = reason
        if new:
            self._context.log.warning("a RIS domain cannot be asked", domain=domain, reason=reason)
        self._tell()

    def _answered(self, domains: list[str]) -> None:
        if not self._down:
            return
        with self._lock:
            back = [domain for domain in domains if self._down.pop(domain, None) is not None]
        if back:
            self._context.log.info("a RIS domain can be asked again", domains=back)
            self._returned.update(back)
            self._tell()

    def _tell(self) -> None:
        down = sorted(self._down)
        if down:
            self._context.status.raise_alarm(
                UNAVAILABLE, f"these RIS domains cannot be asked: {', '.join(down)}; their studies are verified later"
            )
        else:
            self._context.status.clear_alarm(UNAVAILABLE)

    def returned(self) -> list[str]:
        """Return the domains that can be asked again, each once; looks whether those that are down are back."""
        self._probe()
        with self._lock:
            back, self._returned = sorted(self._returned), set()
        return back

    def _probe(self) -> None:
        for domain in list(self._down):
            client = self._clients[domain]
            try:
                answer = client.ListDomains(pb.ListDomainsRequest(), timeout=_PROBE_SECONDS)
            except RadmeshError:
                continue
            self._answered([d.name for d in answer.domains if d.name == domain and d.available])


def _answer(domain: str, response: Any) -> Answer:
    """Return what a response says.

    Raises:
        RadmeshError: INTERNAL: it makes no sense: believed, it would release a study for no reason.
    """
    outcome = _OUTCOMES.get(response.outcome)
    orders = list(response.orders)
    if outcome is None or (
        outcome == MATCH and (len(orders) != 1 or orders[0].domain != domain or not orders[0].order_id)
    ):
        raise RadmeshError("INTERNAL", "the Connectivity Manager's answer makes no sense")
    if outcome == MATCH:
        return Answer(MATCH, orders[0])
    return Answer(
        outcome,
        candidates=tuple(order.order_id for order in orders[:10]),
        mismatched=tuple(keyword[:64] for keyword in response.mismatched_keywords[:16]),
    )
