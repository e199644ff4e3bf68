"""The table of components: complete, importable, in an order."""

import dataclasses
import inspect

import pytest

from radmesh.mesh.modules import TABLE, Module, Table, load_name
from radmesh.runtime.config import load


@pytest.mark.parametrize("module", TABLE.modules, ids=lambda module: module.component)
def test_every_component_has_the_same_face(module):
    parameters = list(inspect.signature(load_name(module.factory)).parameters)
    assert parameters[:2] == ["config", "context"]
    assert not module.section or dataclasses.is_dataclass(load_name(module.section_class))


def test_every_setting_says_what_it_does_and_its_default_obeys_its_rules():
    schema = TABLE.schema()
    for key, field in schema.settings():
        assert field.metadata.get("doc", "").endswith("."), key
        assert not field.metadata.get("env") or field.metadata["env"].startswith("RADMESH_"), key
    for cls in schema.tables.values():
        assert all(field.metadata["doc"].endswith(".") for field in dataclasses.fields(cls))
    # Written out and read again, the defaults are themselves: each is in its own bounds.
    defaults = load(schema, environment={})
    written = {
        key: ",".join(value) if isinstance(value, list) else str(value)
        for key, value, _ in defaults.effective()
        if value not in (None, {}, [])
    }
    assert load(schema, environment={}, flags=written).sections == defaults.sections


def test_components_start_after_what_they_need():
    table = Table((Module("c", "", needs=("b", "a")), Module("b", "", needs=("a",), numbered=True), Module("a", "")))
    assert [[m.component for m in level] for level in table.levels()] == [["a"], ["b"], ["c"]]
    assert table.module_of("b-3") is table.by_name["b"]
    assert table.module_of("b-x") is None
    assert table.module_of("a-0") is None
    placed: set[str] = set()
    for level in TABLE.levels():
        for module in level:
            assert placed.issuperset(set(module.needs) & set(TABLE.by_name))
        placed |= {module.component for module in level}


def test_a_circle_is_named():
    with pytest.raises(ValueError, match="a, b"):
        Table((Module("a", "", needs=("b",)), Module("b", "", needs=("a",)))).levels()
