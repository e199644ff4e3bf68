"""Prometheus metrics. Every name is declared here, so that docs/metrics.md lists them all."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from radmesh.runtime.errors import RadmeshError

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric: its kind, help and labels."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


DEFINITIONS: dict[str, Definition] = {
    "radmesh_rpc_seconds": Definition("histogram", "Time of an rpc, at the server.", ("method", "code")),
    "radmesh_http_connections": Definition("gauge", "HTTP connections open now."),
    "radmesh_http_seconds": Definition(
        "histogram", "Time of an HTTP request, to the end of its answer.", ("route", "status")
    ),
    "radmesh_associations_open": Definition("gauge", "DICOM associations open now."),
    "radmesh_associations": Definition("counter", "DICOM associations, by how they ended.", ("outcome",)),
    "radmesh_dimse_responses": Definition("counter", "DIMSE responses, by command and status.", ("command", "status")),
    "radmesh_intake_bytes": Definition("counter", "Data set bytes received in C-STORE requests."),
    "radmesh_intake_seconds": Definition("histogram", "Time from the command of a C-STORE to its response."),
    "radmesh_objects_committed": Definition("counter", "Objects committed by the store, by outcome.", ("outcome",)),
    "radmesh_bytes_committed": Definition("counter", "Data set bytes committed by the store."),
    "radmesh_commit_seconds": Definition("histogram", "Time of a durable commit of the store."),
    "radmesh_objects_registered": Definition("counter", "Objects made known to the database."),
    "radmesh_objects_unregistered": Definition("gauge", "Objects committed and not yet known to the database."),
    "radmesh_objects_permanent": Definition("counter", "Objects copied to the permanent tier and verified there."),
    "radmesh_admissions": Definition("counter", "Tickets given, by where they lead.", ("kind",)),
    "radmesh_verifications": Definition(
        "counter", "Studies compared with the orders of a RIS, by outcome.", ("outcome",)
    ),
    "radmesh_rejects": Definition("counter", "Objects that could not be stored as DICOM, by reason.", ("reason",)),
    "radmesh_renditions": Definition(
        "counter", "Instances made for the web cache, by what there is of them.", ("state",)
    ),
    "radmesh_curate_seconds": Definition("histogram", "Time of a job of the Curator: the pictures of a study."),
    "radmesh_curator_read_bytes": Definition("counter", "Data set bytes that the Curator has read."),
    "radmesh_curator_kept_bytes": Definition("counter", "Bytes of frames that the Curator has made."),
    "radmesh_curator_worker_deaths": Definition("counter", "Times a process that decodes ended over a frame."),
    "radmesh_webcache_bytes": Definition("gauge", "Bytes of the web cache on disk."),
    "radmesh_webcache_evictions": Definition("counter", "Studies dropped from the web cache to make room."),
    "radmesh_hl7_connections": Definition("gauge", "HL7 connections open now.", ("domain",)),
    "radmesh_hl7_messages": Definition(
        "counter", "HL7 messages received, by the code that answered them; HALF: cut off.", ("domain", "outcome")
    ),
    "radmesh_hl7_seconds": Definition("histogram", "Time from the end of an HL7 message to its answer.", ("domain",)),
    "radmesh_certificate_end_seconds": Definition(
        "gauge", "When the certificate ends, seconds since 1970 UTC.", ("instance",)
    ),
    "radmesh_instance_starts": Definition("gauge", "Times that `radmesh up` has started the instance.", ("instance",)),
    "radmesh_instance_hangs": Definition(
        "gauge", "Times that `radmesh up` has ended the instance, for it did not answer.", ("instance",)
    ),
    "radmesh_worker_failures": Definition(
        "counter", "Times a background worker failed and was started again.", ("worker",)
    ),
}


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        for name, definition in DEFINITIONS.items():
            if definition.kind == "counter":
                self._made[name] = Counter(name, definition.help, definition.labels, registry=self.registry)
            elif definition.kind == "gauge":
                self._made[name] = Gauge(name, definition.help, definition.labels, registry=self.registry)
            else:
                self._made[name] = Histogram(
                    name, definition.help, definition.labels, registry=self.registry, buckets=_SECONDS
                )

    def counter(self, name: str) -> Counter:
        """Return a declared counter."""
        made = self._made[name]
        assert isinstance(made, Counter)
        return made

    def gauge(self, name: str) -> Gauge:
        """Return a declared gauge."""
        made = self._made[name]
        assert isinstance(made, Gauge)
        return made

    def histogram(self, name: str) -> Histogram:
        """Return a declared histogram."""
        made = self._made[name]
        assert isinstance(made, Histogram)
        return made

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Serve /metrics on `address`; return the port (0 = any free one was taken).

        Raises:
            RadmeshError: PORT_IN_USE.
        """
        try:
            server, _ = start_http_server(port, address, registry=self.registry)
        except OSError as error:
            text = f"cannot serve /metrics on {address}:{port} ({error.strerror}): choose another [mesh] metrics_port"
            raise RadmeshError("PORT_IN_USE", text) from error
        return int(server.server_port)


def document() -> str:
    """Return docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made by `make docs` from `radmesh.runtime.metrics`. Prometheus text format; `[mesh] metrics_port` says where.",
        "",
        "| name | kind | labels | what |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {n} | {d.kind} | {', '.join(d.labels)} | {d.help} |" for n, d in DEFINITIONS.items()]
    return "\n".join(lines) + "\n"
