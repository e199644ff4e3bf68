"""`radmesh certificates`: authority, certificates and ticket keys of a cluster that no `radmesh up` runs.

They are made in the credentials folder, as `radmesh up` does, or kept in Secrets of Kubernetes:

    radmesh-authority     everything but tokens; for this command alone
    radmesh-<component>   what the pods of a component mount as their credentials folder
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from radmesh.mesh.kubernetes import ConflictError, Secrets
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import write_atomic
from radmesh.runtime.security import Authority, component_of

AUTHORITY: Final = "radmesh-authority"
_NEEDED: Final = ("ca.pem", "ca.key")
_TRIES: Final = 10


@dataclass(frozen=True, slots=True)
class Made:
    """Whose certificates are new, and which Secrets were written."""

    certificates: Sequence[str]
    secrets: Sequence[str] = ()


def secret_of(component: str) -> str:
    """Return the name of a component's Secret."""
    return f"radmesh-{component}"


def files_of(component: str, instances: Sequence[str], everything: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what the pods of a component need of the credentials folder where they speak TLS."""
    own = {f"{name}{end}" for name in instances if component_of(name) == component for end in (".pem", ".key")}
    # Pairs that sign are called <what>.<component>.key and .pub: anybody may verify.
    signing = (".pub", f".{component}.key")
    return {n: data for n, data in everything.items() if n == "ca.pem" or n in own or n.endswith(signing)}


def make(folder: Path, instances: Sequence[str], clock: Clock, life: timedelta) -> Made:
    """Make what is missing in `folder`, and what ends soon."""
    return Made(Authority(folder, clock, life).issue(list(instances)))


def keep(secrets: Secrets, instances: Sequence[str], clock: Clock, life: timedelta) -> Made:
    """Make what is missing in the Secrets, and what ends soon. Others may do the same at the same time.

    Raises:
        RadmeshError: SECRETS_REFUSED, PEER_UNAVAILABLE; AUTHORITY_LOST; SECRET_FOREIGN.
    """
    for _ in range(_TRIES):
        try:
            return _keep(secrets, instances, clock, life)
        except ConflictError:
            continue
    raise RadmeshError("PEER_UNAVAILABLE", f"the Secrets were changed {_TRIES} times meanwhile: run it again")


def _keep(secrets: Secrets, instances: Sequence[str], clock: Clock, life: timedelta) -> Made:
    authority = secrets.get(AUTHORITY)
    of_components = {name: secrets.get(secret_of(name)) for name in dict.fromkeys(map(component_of, instances))}
    for secret in (authority, *of_components.values()):
        if not secret.ours:
            raise RadmeshError(
                "SECRET_FOREIGN", f"the Secret {secret.name} was not made by radmesh: remove or rename it"
            )
    orphans = [secret.name for secret in of_components.values() if secret.kept]
    if not all(name in authority.data for name in _NEEDED) and (authority.kept or orphans):
        # A new authority would make strangers of all that runs.
        raise RadmeshError(
            "AUTHORITY_LOST",
            f"the Secret {AUTHORITY} is gone or not whole: restore it; or remove every Secret radmesh-<component>, "
            "run this again, and restart all pods",
        )
    with tempfile.TemporaryDirectory(prefix="radmesh-certificates-") as temporary:
        folder = Path(temporary)
        for name, data in authority.data.items():
            write_atomic(folder / name, data)
        certificates = Authority(folder, clock, life).issue(list(instances))
        everything = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith("token")}
    written = []
    # The authority first: nothing relies on a key that is not kept.
    if everything != dict(authority.data):
        secrets.put(authority, everything)
        written.append(AUTHORITY)
    for component, secret in of_components.items():
        files = files_of(component, instances, everything)
        if files != dict(secret.data):
            secrets.put(secret, files)
            written.append(secret.name)
    return Made(certificates, written)
