"""What holds for every test: Hypothesis judges no speed, since the machine may be busy with other tests."""

import pytest
from depth import FULL, examples
from hypothesis import HealthCheck, settings

settings.register_profile(
    "radmesh",
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("radmesh")

# The second of each pair: the first has every case.
_SECOND = {"postgresql", "tls", "tls-grpcio"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where not all is wanted, a test with many cases has one of them on PostgreSQL, and one over TLS."""
    if FULL:
        return
    kept, dropped, seen = [], [], set()
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        second = _SECOND.intersection(value for value in values if isinstance(value, str))
        case = (item.nodeid.partition("[")[0], *sorted(second))
        if second and len(values) > 1 and case in seen:
            dropped.append(item)
        else:
            kept.append(item)
            seen.add(case)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
