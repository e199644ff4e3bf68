"""Fuzzy semantic matching of names: what is like a name, and what is not; and that the tables find it."""

import pytest
from database_support import Parts, record
from hypothesis import given
from hypothesis import strategies as st

from radmesh.database_server.fuzzy_names import FuzzyNames, is_enough
from radmesh.database_server.schema import patients
from radmesh.dicom.fuzzy import is_like, words_of


@pytest.mark.parametrize(
    ("wanted", "name", "like"),
    [
        ("Müller^Jürgen", "MULLER^JURGEN", True),
        ("Mueller", "Müller^Jürgen", True),
        ("Jurgen Muller", "Müller^Jürgen", True),
        ("Muler", "Müller^Jürgen", True),
        ("Mlüler", "Müller^Jürgen", True),
        ("Kowalskii", "Kowalski^Jan", True),
        ("Müller^Hans", "Müller^Jürgen", False),
        ("Ann", "Anna^X", False),
        ("Ann*", "Anna^X", True),
        ("Konstantinopulus", "Konstantinopoulos^A", True),
        ("Smith", "Schmidt^A", False),
        ("o'brien", "O\u2019BRIEN^Pat", True),
        ("山田", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("山口", "Yamada^Tarou=山田^太郎=やまだ^たろう", False),
        ("Straße", "STRASSE^A", True),
    ],
)
def test_what_is_like_a_name(wanted: str, name: str, like: bool) -> None:
    assert is_like(words_of(wanted), name) == like


@given(name=st.text(max_size=40))
def test_a_name_is_like_itself(name: str) -> None:
    if "*" not in name and "?" not in name:
        assert is_like(words_of(name), name)
    assert is_enough(name) in (True, False)


def test_patients_are_found_by_names_that_are_nearly_theirs(parts: Parts) -> None:
    names = ("Müller^Jürgen", "Mueller^Hans", "Miller^John", "Yamada^Tarou=山田^太郎", 'Quo"te^A', "Kowalski^Jan")
    parts.register(*(record(number, number, PatientName=name) for number, name in enumerate(names)))
    fuzzy = FuzzyNames(parts.database)

    def found(name: str) -> set[str]:
        with parts.database.read() as connection:
            ids = fuzzy.find(connection, name)
        return {row["patient_name"] for row in parts.rows(patients) if row["id"] in ids}

    assert found("Muller") == {"Müller^Jürgen", "Mueller^Hans", "Miller^John"}
    assert found("jurgen müler") == {"Müller^Jürgen"}
    assert found("Kowalsky") == {"Kowalski^Jan"}
    assert found("Kow*") == {"Kowalski^Jan"}
    assert found("太郎") == {"Yamada^Tarou=山田^太郎"}
    assert found('quo"te') == {'Quo"te^A'}
    assert found("Nobody") == set()
    assert found("%") == set()
