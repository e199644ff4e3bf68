"""The table of components: how each is made, what it needs, which settings and endpoints it has.

A component's face is `module(config, context) -> Service`. What it returns may also have

    endpoints() -> Mapping[str, str]    what it serves to the outside, such as {"dicom": "dicom://127.0.0.1:11112"}
    pids() -> Sequence[int]             its processes, this one first, if it has more than one
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from radmesh.mesh import sections
from radmesh.runtime.config import Configuration, Schema

if TYPE_CHECKING:
    from radmesh.runtime.context import Context
    from radmesh.runtime.lifecycle import Service

# Ports that clients of the cluster rely on: name in ready.json -> variable of the setting that chooses it.
PORTS = {
    "dicom": "RADMESH_DICOM_PORT",
    "dicom_tls": "RADMESH_DICOM_TLS_PORT",
    "hl7": "RADMESH_HL7_PORT",
    "http": "RADMESH_HTTP_PORT",
    "grpc": "RADMESH_GRPC_PORT",
}


class Served(Protocol):
    """What a module may say of itself beyond Service."""

    def endpoints(self) -> Mapping[str, str]:
        """Return name -> URL of what it serves to the outside."""
        ...

    def pids(self) -> Sequence[int]:
        """Return its processes."""
        ...


@dataclass(frozen=True, slots=True)
class Module:
    """One component.

    `factory` and `section_class` are "module:name", imported when they are used. `needs` are the components that it
    calls: they are told to stop only when it has stopped. `numbered`: its instances are called <component>-0, -1, ….
    `more_sections` are (name, class) of sections beside the first, which it finds in its context's settings.
    """

    component: str
    factory: str
    section: str = ""
    section_class: str = ""
    needs: tuple[str, ...] = ()
    numbered: bool = False
    makes_administrator: bool = False
    more_sections: tuple[tuple[str, str], ...] = ()

    def make(self, configuration: Configuration, context: "Context") -> "Service":
        """Wire an instance."""
        config = configuration[self.section] if self.section else None
        service: Service = load_name(self.factory)(config, context)
        return service

    def instances(self, configuration: Configuration) -> list[str]:
        """Return the names of the instances that `radmesh up` runs."""
        if not self.numbered:
            return [self.component]
        count = getattr(configuration["mesh"], f"{self.component.replace('-', '_')}s", 1)
        return [f"{self.component}-{number}" for number in range(count)]


@dataclass(frozen=True, slots=True)
class Table:
    """The components of a cluster."""

    modules: Sequence[Module]
    by_name: Mapping[str, Module] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {module.component: module for module in self.modules})

    def schema(self) -> Schema:
        """Return everything there is to set."""
        named = [(m.section, m.section_class) for m in self.modules if m.section]
        named += [pair for module in self.modules for pair in module.more_sections]
        own = {section: load_name(section_class) for section, section_class in named}
        return Schema(
            {"mesh": sections.Mesh, **own},
            {"stations": sections.Station, "routes": sections.Route, "domains": sections.Domain},
            (sections.consistent,),
        )

    def instances(self, configuration: Configuration) -> list[str]:
        """Return all instances, those that others need first."""
        return [name for level in self.levels() for module in level for name in module.instances(configuration)]

    def levels(self) -> list[list[Module]]:
        """Return the components in groups: each needs only what is in groups before its own.

        What the table does not have is elsewhere: [mesh.addresses] names it.
        """
        placed = {need for module in self.modules for need in module.needs} - set(self.by_name)
        levels: list[list[Module]] = []
        rest = list(self.modules)
        while rest:
            level = [module for module in rest if placed.issuperset(module.needs)]
            if not level:
                raise ValueError(f"components need each other in a circle: {', '.join(m.component for m in rest)}")
            levels.append(level)
            placed.update(module.component for module in level)
            rest = [module for module in rest if module not in level]
        return levels

    def module_of(self, instance: str) -> Module | None:
        """Return the module of an instance, or of a component's name."""
        if instance in self.by_name:
            return self.by_name[instance]
        component, _, number = instance.rpartition("-")
        module = self.by_name.get(component)
        return module if module and module.numbered and number.isdecimal() else None


TABLE = Table(
    (
        Module(
            "database-server",
            "radmesh.database_server.module:module",
            "database",
            "radmesh.database_server.config:Section",
            makes_administrator=True,
        ),
        Module(
            "archive-server",
            "radmesh.archive_server.module:module",
            "archive",
            "radmesh.archive_server.config:Section",
            needs=("database-server",),
            numbered=True,
        ),
        Module(
            "curator",
            "radmesh.curator.module:module",
            "curator",
            "radmesh.curator.config:Section",
            needs=("archive-server", "database-server"),
            numbered=True,
        ),
        Module(
            "connectivity-manager",
            "radmesh.connectivity_manager.module:module",
            "connectivity",
            "radmesh.connectivity_manager.config:Section",
            needs=("database-server",),
            numbered=True,
        ),
        Module(
            "network-gateway",
            "radmesh.network_gateway.module:module",
            "gateway",
            "radmesh.network_gateway.config:Section",
            needs=("archive-server", "connectivity-manager", "database-server"),
        ),
        Module(
            "gateway-proxy",
            "radmesh_gateway_proxy.module:module",
            "dicom",
            "radmesh_gateway_proxy.config:Section",
            needs=("network-gateway", "archive-server", "database-server"),
        ),
        Module(
            "application-server",
            "radmesh.application_server.module:module",
            "grpc",
            "radmesh.application_server.config:Section",
            needs=("network-gateway", "connectivity-manager", "curator", "archive-server", "database-server"),
            more_sections=(("http", "radmesh.application_server.config:Http"),),
        ),
    )
)


def table() -> Table:
    """Return the table: that of this module, or the one that RADMESH_MODULES names as "module:name"."""
    other = os.environ.get("RADMESH_MODULES")
    if not other:
        return TABLE
    named: Table = load_name(other)
    return named


def load_name(name: str) -> Any:
    """Return what "module:name" names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
