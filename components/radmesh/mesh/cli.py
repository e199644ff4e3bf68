"""The `radmesh` command: up, serve, certificates, config, version, and the commands of the client.

Nothing heavy is imported before a command runs: `radmesh --help` answers at once.
"""

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import radmesh
from radmesh.client import shell
from radmesh.mesh import modules
from radmesh.mesh.modules import PORTS, Table
from radmesh.runtime import config
from radmesh.runtime.config import Configuration

# One table for every command: `radmesh.client.shell` has it, and is light.
_CODES = "\n".join(f"  {code:<4}{meaning}" for code, meaning in shell.EXIT_CODES.items())
_EPILOG = f"exit codes:\n{_CODES}\n\nRADMESH_DEBUG=1 shows where an error came from."
# Where more commands come from: a function `register(subparsers)` each.
MOUNTED = ("radmesh.client.commands:register",)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    root = argparse.ArgumentParser(
        prog="radmesh",
        description="radmesh: a PACS cluster. 'radmesh up' runs one on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"radmesh {radmesh.__version__}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    up = commands.add_parser("up", help="run a whole cluster on this machine", description=run_up.__doc__)
    _add_common(up)
    up.add_argument("--bind", metavar="ADDRESS", help="address that DICOM and clients are served on (127.0.0.1)")
    up.add_argument("--transport", choices=("unix", "tls"), help="between components: unix sockets, or mutual TLS")
    up.add_argument("--ae-title", metavar="AE", help="AE title of the cluster (RADMESH)")
    for name, what in (
        ("dicom", "DICOM (11112)"),
        ("dicom-tls", "DICOM over TLS (2762)"),
        ("hl7", "HL7 MLLP (2575)"),
        ("http", "HTTP (8080)"),
        ("grpc", "the radmesh command and Python clients (50051)"),
    ):
        up.add_argument(f"--{name}-port", type=int, metavar="PORT", help=f"port for {what}; 0 = any free one")
    up.add_argument("--insecure-http", action="store_true", help="beyond loopback, HTTP without TLS: behind a proxy")
    up.set_defaults(run=run_up)

    serve = commands.add_parser("serve", help="run components in this process", description=run_serve.__doc__)
    _add_common(serve)
    serve.add_argument(
        "--target", required=True, metavar="NAME,…", help="components or instances, such as archive-server"
    )
    serve.add_argument("--instance", type=int, default=0, metavar="N", help="number of the instance (0)")
    serve.add_argument("--notify", type=int, help=argparse.SUPPRESS)
    serve.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    serve.set_defaults(run=run_serve)

    certificates = commands.add_parser(
        "certificates",
        help="make the certificates of a cluster without 'radmesh up'",
        description=run_certificates.__doc__,
    )
    _add_common(certificates)
    certificates.add_argument(
        "--kubernetes", action="store_true", help="keep them in Secrets of the namespace that this pod is in"
    )
    certificates.add_argument("--json", action="store_true", help="print JSON, for programs")
    certificates.set_defaults(run=run_certificates)

    configure = commands.add_parser("config", help="check or print the configuration")
    actions = configure.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", help="list everything that is wrong with a file", description=run_check.__doc__)
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--json", action="store_true", help="print JSON, for programs")
    check.set_defaults(run=run_check)
    show = actions.add_parser(
        "print", help="print the settings in force, and where each is from", description=run_print.__doc__
    )
    _add_common(show)
    show.add_argument("--json", action="store_true", help="print JSON, for programs")
    show.set_defaults(run=run_print)

    version = commands.add_parser("version", help="print the version")
    version.add_argument("--json", action="store_true", help="print JSON, for programs")
    version.set_defaults(run=run_version)

    for name in MOUNTED:
        module, _, function = name.partition(":")
        getattr(importlib.import_module(module), function)(commands)
    return root


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", metavar="DIR", help="data directory (RADMESH_DATA, else ./radmesh-data)")
    command.add_argument("--config", metavar="FILE", help="configuration file (RADMESH_CONFIG)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as mesh.drain_timeout=30s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parser().parse_args(given)
    try:
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        return shell.INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return shell.OK
    except Exception as error:
        if os.environ.get("RADMESH_DEBUG"):
            raise
        return _report(error, as_json=bool(getattr(chosen, "json", False)))


def _report(error: Exception, *, as_json: bool) -> int:
    """Print cause and remedy; return the exit code."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415 - brings gRPC

    if isinstance(error, RadmeshError):
        reason, message, remedy = error.reason, error.message, error.definition.remedy
    else:
        reason, message = "INTERNAL", f"{type(error).__name__}: {error}"
        remedy = "a defect of radmesh: run it again with RADMESH_DEBUG=1 and report what it prints"
    if as_json:
        about = {"reason": reason, "message": message, "remedy": remedy}
        print(json.dumps({"error": about}, ensure_ascii=False))  # noqa: T201
    else:
        print(f"radmesh: {message}\n  {reason}: {remedy}", file=sys.stderr)  # noqa: T201
    return shell.exit_code(error)


# -- settings ----------------------------------------------------------------------------------------------------------


def _settings(chosen: argparse.Namespace, table: Table) -> tuple[Configuration, list[str], dict[str, str]]:
    """Return the configuration, the arguments that name its file, and the flags."""
    schema = table.schema()
    flags = dict(pair.partition("=")[::2] for pair in chosen.set)
    if chosen.data:
        flags["RADMESH_DATA"] = chosen.data
    for name in ("bind", "transport", "ae_title", *(f"{port}_port" for port in PORTS)):
        value = getattr(chosen, name, None)
        variable = f"RADMESH_{name.upper()}"
        if value is None:
            continue
        if schema.by_variable(variable):
            flags[variable] = str(value)
        else:
            option = name.replace("_", "-")
            print(f"radmesh: --{option} is not used: this version serves nothing there", file=sys.stderr)  # noqa: T201
    if getattr(chosen, "insecure_http", False):
        flags["RADMESH_INSECURE_HTTP"] = "true"
    file = chosen.config or os.environ.get("RADMESH_CONFIG")
    path = Path(file).expanduser().absolute() if file else None
    return config.load(schema, file=path, flags=flags), [f"--config={path}"] if path else [], flags


def run_up(chosen: argparse.Namespace) -> int:
    """Run a whole cluster on this machine, a process for every component, until SIGTERM or Ctrl-C."""
    from radmesh.mesh.up import Supervisor, View  # noqa: PLC0415

    table = modules.table()
    configuration, arguments, flags = _settings(chosen, table)
    view: View | None = None
    if sys.stdout.isatty():
        from radmesh.mesh.console import LiveView  # noqa: PLC0415

        view = LiveView()
    return Supervisor(table, configuration, arguments=arguments, flags=flags, view=view).run()


def run_serve(chosen: argparse.Namespace) -> int:
    """Run components in this process, until SIGTERM; their data and credentials are in the data directory."""
    from radmesh.mesh import serve  # noqa: PLC0415

    table = modules.table()
    configuration, _, _ = _settings(chosen, table)
    names = [name for name in chosen.target.split(",") if name]
    try:
        code = serve.run(
            table, configuration, names, number=chosen.instance, notify=chosen.notify, parent=chosen.parent
        )
    except Exception as error:  # noqa: BLE001 - reported as `main` does
        # Not left to `main`: threads of what had half started would keep the process from ending.
        if os.environ.get("RADMESH_DEBUG") or type(error).__name__ != "RadmeshError":
            traceback.print_exc()
        code = _report(error, as_json=False)
    serve.finish(code)
    return code


def run_certificates(chosen: argparse.Namespace) -> int:
    """Make the authority, and the certificates and keys of every instance, unless they are there and good.

    They are made in the credentials folder, or with --kubernetes in the Secrets radmesh-authority and
    radmesh-<component>. Run it again before a sixth of their life is left, and when there are more instances.
    """
    from datetime import timedelta  # noqa: PLC0415

    from radmesh.mesh import certificates  # noqa: PLC0415 - brings cryptography
    from radmesh.mesh.kubernetes import Secrets  # noqa: PLC0415
    from radmesh.mesh.place import Place  # noqa: PLC0415
    from radmesh.runtime.clock import SystemClock  # noqa: PLC0415

    table = modules.table()
    configuration, _, _ = _settings(chosen, table)
    mesh, instances = configuration["mesh"], table.instances(configuration)
    life, clock = timedelta(seconds=mesh.certificate_life), SystemClock()
    if chosen.kubernetes:
        made = certificates.keep(Secrets.of_this_pod(), instances, clock, life)
    else:
        folder = Path(mesh.credentials) if mesh.credentials else Place(Path(mesh.data)).credentials
        made = certificates.make(folder, instances, clock, life)
    if chosen.json:
        print(json.dumps({"certificates": list(made.certificates), "secrets": list(made.secrets)}))  # noqa: T201
    else:
        print(f"certificates made: {', '.join(made.certificates) or 'none, all are good'}")  # noqa: T201
        if made.secrets:
            print(f"Secrets written: {', '.join(made.secrets)}")  # noqa: T201
    return shell.OK


def run_check(chosen: argparse.Namespace) -> int:
    """List everything that is wrong with a configuration file; exit 0 if it is good, else 2."""
    _, problems = config.read(modules.table().schema(), file=chosen.file, environment={})
    if chosen.json:
        listed = [{"where": p.where, "key": p.key, "rule": p.rule} for p in problems]
        print(json.dumps({"file": str(chosen.file), "problems": listed}, ensure_ascii=False, indent=2))  # noqa: T201
    elif problems:
        for problem in problems:
            print(problem, file=sys.stderr)  # noqa: T201
    else:
        print(f"{chosen.file}: good")  # noqa: T201
    return shell.USAGE if problems else shell.OK


def run_print(chosen: argparse.Namespace) -> int:
    """Print the settings in force, and where each came from; secrets are masked."""
    configuration, _, _ = _settings(chosen, modules.table())
    settings = list(configuration.effective())
    if chosen.json:
        listed = {key: {"value": value, "source": source} for key, value, source in settings}
        print(json.dumps(listed, ensure_ascii=False, indent=2, default=str))  # noqa: T201
        return shell.OK
    for key, value, source in settings:
        print(f"{key} = {json.dumps(value, ensure_ascii=False, default=str)}  # {source}")  # noqa: T201
    return shell.OK


def run_version(chosen: argparse.Namespace) -> int:
    """Print the version."""
    version: dict[str, Any] = {"version": radmesh.__version__}
    print(json.dumps(version) if chosen.json else f"radmesh {radmesh.__version__}")  # noqa: T201
    return shell.OK
