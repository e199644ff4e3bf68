"""Searches: what they ask for, what matches, and how results are written."""

import json
import re
from fnmatch import translate
from urllib.parse import urlencode

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.dicomweb import qido
from radmesh.application_server.dicomweb.qido import INSTANCE, SERIES, STUDY, parse
from radmesh.dicom.matching import text_matches
from radmesh.runtime.errors import RadmeshError

BY_KEYWORD = {attribute.keyword: attribute for attribute in qido.ATTRIBUTES}


def search(level=STUDY, /, **values):
    return parse(level, urlencode(values).encode())


def refused(level, query):
    with pytest.raises(RadmeshError) as caught:
        parse(level, query)
    assert caught.value.reason == "FIELD_INVALID"
    return caught.value.message


def matching(found):
    return {attribute.keyword: value for attribute, value in found.matches}


def test_the_table_is_that_of_the_standard():
    for attribute in qido.ATTRIBUTES:
        tag = pydicom.datadict.tag_for_keyword(attribute.keyword)
        assert f"{tag:08X}" == attribute.tag
        assert pydicom.datadict.dictionary_VR(tag) == attribute.vr


def test_what_a_viewer_asks_for():
    found = parse(
        STUDY,
        b"limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030&00100020=A*&_=1",
    )
    assert (found.limit, found.offset, found.warnings) == (101, 0, ())
    assert matching(found) == {"PatientID": "A*"}
    assert {"00081030", "00080090", "00100030", "00100020"} <= found.include


def test_names_tags_lists_and_wildcards():
    assert matching(search(PatientName="Doe*", StudyDate="20260101-")) == {
        "PatientName": "Doe*",
        "StudyDate": "20260101-",
    }
    assert matching(search(**{"0020000d": "1.2,1.3"})) == {"StudyInstanceUID": "1.2\\1.3"}
    assert matching(search(StudyInstanceUID="1.2\\1.3")) == {"StudyInstanceUID": "1.2\\1.3"}
    # Of a study its modalities are meant.
    assert matching(search(Modality="CT")) == {"ModalitiesInStudy": "CT"}
    # Universal matching: told, not matched.
    found = search(IssuerOfPatientID="", PatientID="*")
    assert matching(found) == {}
    assert found.wants(BY_KEYWORD["IssuerOfPatientID"])
    assert not search().wants(BY_KEYWORD["IssuerOfPatientID"])
    assert search(includefield="all").wants(BY_KEYWORD["IssuerOfPatientID"])
    assert matching(search(SERIES, Modality="CT", PatientID="1")) == {"Modality": "CT", "PatientID": "1"}


def test_what_is_not_done_is_said():
    assert search(fuzzymatching="true").fuzzy
    (text,) = search(emptyvaluematching="true").warnings
    # PS3.18 8.3.4.2, to the letter.
    assert qido.warning("http://host/dicom-web", text) == (
        "299 http://host/dicom-web: "
        "The emptyvaluematching parameter is not supported. Empty Value Matching has not been performed."
    )
    assert len(search(emptyvaluematching="true", multiplevaluematching="TRUE").warnings) == 2


@pytest.mark.parametrize(
    "query",
    [
        b"limit=-1",
        b"limit=x",
        b"limit=99999999999",
        b"offset=100001",
        b"StudyDate=2026",
        b"StudyDate=-",
        b"StudyTime=25x",
        b"StudyInstanceUID=1.2*",
        b"StudyInstanceUID=" + b",".join([b"1.2"] * 1001),
        b"PatientName=" + b"x" * 1025,
        b"PatientName=a%00b",
        b"PatientName=%ff",
        b"PatientName=\xff",
        b"PatientName=A&PatientName=B",
        b"PatientAge=030Y",
        b"SOPInstanceUID=1.2",
        b"&".join(b"a%d=1" % n for n in range(201)),
    ],
)
def test_what_cannot_be_searched_by_is_refused(query):
    assert "Müller" not in refused(STUDY, query)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from(qido.LEVELS))
def test_any_query_is_read_or_refused(query, level):
    try:
        found = parse(level, query)
    except RadmeshError as error:
        assert error.reason == "FIELD_INVALID"
    else:
        assert 0 <= found.limit <= qido.MOST
        assert 0 <= found.offset <= qido.OFFSET_MOST


@given(st.text("ab*?", max_size=12), st.text("ab", max_size=12))
def test_wildcards_match_as_they_should(pattern, text):
    assert text_matches(pattern, text) == bool(re.match(translate(pattern), text))


def test_wildcards_take_no_time():
    assert not text_matches("*a" * 500 + "b", "a" * 1024)


@pytest.mark.parametrize(
    ("keyword", "wanted", "value", "expected"),
    [
        ("StudyDate", "20260102", "20260102", True),
        ("StudyDate", "20260102", "2026.01.02", True),
        ("StudyDate", "20260101-20260131", "20260131", True),
        ("StudyDate", "20260101-20260131", "20260201", False),
        ("StudyDate", "-20260131", "20260131", True),
        ("StudyDate", "-20260131", "", False),
        ("StudyTime", "10", "103059.5", True),
        ("StudyTime", "103059", "1030", True),
        ("StudyTime", "08-12", "125959", True),
        ("StudyTime", "08-12", "130000", False),
        ("StudyTime", "0830-", "0829", False),
        ("StudyID", "A?", "AB", True),
        ("StudyID", "a?", "AB", False),
        ("ReferringPhysicianName", "doe*", "DOE^JOHN", True),
        ("ReferringPhysicianName", "山田*", "Yamada^T=山田^太郎", True),
        ("ReferringPhysicianName", "roe*", "DOE^JOHN", False),
        ("NumberOfStudyRelatedInstances", "07", 7, True),
        ("NumberOfStudyRelatedInstances", "8", 7, False),
    ],
)
def test_what_the_database_does_not_match_is_matched_here(keyword, wanted, value, expected):
    attribute = BY_KEYWORD[keyword]
    study = database_pb2.Study()
    setattr(study, attribute.value.__closure__[0].cell_contents, value)
    assert qido.matches(attribute, wanted, study) is expected


def test_modalities_match_one_by_one():
    study = database_pb2.Study(modalities=["CT", "SR"])
    attribute = BY_KEYWORD["ModalitiesInStudy"]
    assert qido.matches(attribute, "SR", study)
    assert qido.matches(attribute, "MR,C?", study)
    assert not qido.matches(attribute, "MR", study)


def test_the_database_matches_what_it_can():
    request, rest = qido.request_of(search(PatientName="D*", StudyDate="-20260101", Modality="CT,MR", StudyID="7"))
    assert (request.patient_name, request.study_date_from, request.study_date_to) == ("D*", "", "20260101")
    assert list(request.modalities) == ["CT", "MR"]
    assert [(attribute.keyword, value) for attribute, value in rest] == [("StudyID", "7")]
    day, _ = qido.request_of(search(StudyDate="20260101"))
    assert (day.study_date_from, day.study_date_to) == ("20260101", "20260101")


STUDIED = database_pb2.Study(
    study_instance_uid="1.2",
    patient_name="Müller^Ö=山田^太郎",
    modalities=["CT", "SR"],
    series_count=1,
    instance_count=2,
)
SERIED = database_pb2.Series(series_instance_uid="1.2.3", modality="CT", series_number=" 4 ", instance_count=2)
INSTANCED = database_pb2.Instance(
    identity=common_pb2.ContentIdentity(sop_instance_uid="1.2.3.4", transfer_syntax_uid="1.2.840.10008.1.2.1"),
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    instance_number="not a number",
    rows=16,
    columns=8,
    locations=[database_pb2.Location(target="unix:/x")],
)


@pytest.mark.parametrize("level", qido.LEVELS)
def test_results_are_dicom_json(level):
    base = "https://host/dicom-web"
    deep = qido.LEVELS.index(level)
    written = qido.Results(search(level, includefield="all"), base)
    found = written.write(STUDIED, SERIED if deep else None, INSTANCED if deep > 1 else None)
    assert written.write(STUDIED, SERIED if deep else None, INSTANCED if deep > 1 else None) == found
    assert list(found) == sorted(found)
    ds = Dataset.from_json(json.dumps(found))
    assert (ds.StudyInstanceUID, str(ds.PatientName), list(ds.ModalitiesInStudy)) == (
        "1.2",
        "Müller^Ö=山田^太郎",
        ["CT", "SR"],
    )
    assert ds.RetrieveURL == base + "/studies/1.2" + ("/series/1.2.3" * (deep > 0)) + (
        "/instances/1.2.3.4" * (deep > 1)
    )
    if level != SERIES:
        assert ds.InstanceAvailability == "ONLINE"
    if deep:
        assert ds.SeriesNumber == 4
    if level == INSTANCE:
        assert (ds.Rows, ds.Columns, ds.SOPClassUID) == (16, 8, "1.2.840.10008.5.1.4.1.1.2")
        assert "NumberOfFrames" not in ds
    if level == STUDY:
        # Always there, if only to say that it is empty.
        assert found["00080050"] == {"vr": "SH"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.b:8080", "http://a.b:8080/dicom-web"),
        ("[::1]:80", "http://[::1]:80/dicom-web"),
        ("", "/dicom-web"),
        ('x"><script>', "/dicom-web"),
        ("a/b", "/dicom-web"),
    ],
)
def test_the_service_names_itself_by_its_host(host, expected):
    assert qido.base_url("http", host) == expected
