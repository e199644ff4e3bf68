"""Where servers listen, as settings say it."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether what listens there is reached from this machine alone; no name server is asked."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """Return a host as it stands before ":port": an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
