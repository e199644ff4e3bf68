"""The table of routes: which method and path is whose, and how a request finds its own."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from radmesh.runtime.errors import RadmeshError

Scope = MutableMapping[str, Any]
ANYBODY: Final = ("anonymous",)
"""`roles` of what needs no session."""
SIGNED_IN: Final = ("none", "*")
"""`roles` of what every session may, also one that may nothing else."""
# Paths whose route is remembered, and how long they may be.
_KEPT, _KEPT_LENGTH = 4096, 512
PERSONS: Final = ("*",)
"""`roles` of what every role but "none" may."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    `path` has parts `{name}` for one segment, and at its end perhaps `{name*}` for all the rest. `roles` is as in the
    protos: roles, "*" = any but "none", "anonymous" = no session is needed. `handler` is `async (Request) -> Response`,
    or, if `raw`, an ASGI application. `page`: who has no session is sent to /login. `lasting`: it goes on for as
    long as the client likes, and is not counted among what runs. `doc` is a sentence for
    docs/reference/http.md.
    """

    method: str
    path: str
    roles: tuple[str, ...]
    handler: Callable[..., Awaitable[Any]]
    doc: str
    raw: bool = False
    page: bool = False
    lasting: bool = False

    def admits(self, role: str) -> bool:
        """Whether a person of this role may."""
        return role in self.roles or ("*" in self.roles and role != "none")


@dataclass(slots=True)
class _Node:
    fixed: "dict[str, _Node]" = field(default_factory=dict)
    name: str = ""
    any: "_Node | None" = None
    rest: "_Node | None" = None
    routes: dict[str, Route] = field(default_factory=dict)


class Router:
    """Finds the route of a request; a fixed segment goes before a named one, that before the rest."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._root = _Node()
        self._known = lru_cache(_KEPT)(self._find)
        for route in self.routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        for segment in _segments(route.path):
            if segment.startswith("{"):
                name, rest = segment[1:-1].rstrip("*"), segment.endswith("*}")
                following = (node.rest if rest else node.any) or _Node(name=name)
                if rest:
                    node.rest = following
                else:
                    node.any = following
                assert following.name == name, f"{route.path}: this segment is {{{following.name}}} elsewhere"
                node = following
            else:
                node = node.fixed.setdefault(segment, _Node())
        assert route.method not in node.routes, f"{route.method} {route.path} is there twice"
        node.routes[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Return the route, and what its named segments are.

        Raises:
            RadmeshError: PATH_UNKNOWN; METHOD_NOT_ALLOWED, its metadata `allow` says which are.
        """
        if len(path) > _KEPT_LENGTH:
            return self._find(method, path)
        route, found = self._known(method, path)
        return route, dict(found)

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        segments = _segments(path)
        straight, names = self._straight(segments)
        if straight is not None and (route := straight.routes.get(method)) is not None:
            return route, names
        allowed: set[str] = set()
        for node, found in _matches(self._root, segments, 0):
            route = node.routes.get(method) or (node.routes.get("GET") if method == "HEAD" else None)
            if route is not None:
                return route, found
            allowed.update(node.routes, {"HEAD"} if "GET" in node.routes else ())
        if allowed:
            allow = ", ".join(sorted(allowed))
            raise RadmeshError("METHOD_NOT_ALLOWED", f"here is only {allow}", metadata={"allow": allow})
        raise RadmeshError("PATH_UNKNOWN", "nothing is served under this path")

    def _straight(self, segments: list[str]) -> tuple[_Node | None, dict[str, str]]:
        """Follow the path without trying anything twice: where there is such a way, it is the first of all."""
        node = self._root
        names: dict[str, str] = {}
        for segment in segments:
            following = node.fixed.get(segment)
            if following is None:
                following = node.any
                if following is None or not segment:
                    return None, names
                names[following.name] = segment
            node = following
        return node, names


def _segments(path: str) -> list[str]:
    return path.split("/")[1:]


def _matches(node: _Node, segments: list[str], depth: int) -> Iterator[tuple[_Node, dict[str, str]]]:
    # No deeper than the table's longest path.
    if depth == len(segments):
        if node.routes:
            yield node, {}
        return
    segment = segments[depth]
    if segment in node.fixed:
        yield from _matches(node.fixed[segment], segments, depth + 1)
    if node.any is not None and segment:
        for found, names in _matches(node.any, segments, depth + 1):
            yield found, {**names, node.any.name: segment}
    if node.rest is not None:
        yield node.rest, {node.rest.name: "/".join(segments[depth:])}
