"""What is this machine's own."""

import pytest

from radmesh.runtime.addresses import bracketed, is_loopback


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.1.2.3", False), ("archive-0", False), ("", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "written"), [("::1", "[::1]"), ("[::1]", "[::1]"), ("10.1.2.3", "10.1.2.3"), ("a", "a")]
)
def test_hosts_before_a_port(host: str, written: str) -> None:
    assert bracketed(host) == written
