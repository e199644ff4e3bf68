"""WADO-RS against a whole cluster: pixel values, ranges, entity tags, rights, corrections."""

import gzip
import io
import json
import re
import subprocess

import numpy as np
import pydicom
import pytest
from dicomweb_support import J2K, RLE, SERIES, STUDY, compressed, picture, pixels
from http_support import PASSWORD
from PIL import Image
from pydicom.dataset import Dataset
from waiting import wait_for, within

from radmesh_native import htj2k

HTJ2K = "1.2.840.10008.1.2.4.202"
FRAME = f"/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1/frames/1"
CINE = f"/studies/{STUDY}/series/{STUDY}.2/instances/{STUDY}.2.1"
RELATED = "multipart/related"
PLAIN, OTHER = "transfer-syntax=1.2.840.10008.1.2.1", "transfer-syntax=1.2.840.10008.1.2.4.50"
OHIF = "multipart/related; type=application/octet-stream; transfer-syntax=*"


def parts(answer):
    """(header, body) of each part of a multipart answer."""
    boundary = re.search(r"boundary=(\w+)", answer.headers["content-type"]).group(1)
    pieces = (b"\r\n" + answer.content).split(f"\r\n--{boundary}".encode())
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    return [tuple(piece.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)) for piece in pieces[1:-1]]


# -- frames ------------------------------------------------------------------------------------------------------------


def test_dicomweb_client_fetches_frames(stored):
    client = stored.client()
    for number in range(1, 9):
        (data,) = client.retrieve_instance_frames(STUDY, SERIES, f"{SERIES}.{number}", [1])
        assert np.array_equal(htj2k.decode(data), pixels(1000 + number))
    frames = client.retrieve_instance_frames(STUDY, f"{STUDY}.2", f"{STUDY}.2.1", [3, 1])
    expected = pixels(1001, frames=3)
    assert [np.array_equal(htj2k.decode(f), expected[n]) for f, n in zip(frames, (2, 0), strict=True)] == [True, True]


def test_a_frame_is_as_viewers_read_it(stored):
    """The header of the part is spelled as OHIF's parser wants it; transfer syntax 202 is told."""
    answer = stored.get(FRAME, accept=OHIF)
    assert answer.status_code == 200
    ((header, body),) = parts(answer)
    assert header == f"Content-Type: application/octet-stream; transfer-syntax={HTJ2K}".encode()
    assert np.array_equal(htj2k.decode(body), pixels(1001))
    assert int(answer.headers["content-length"]) == len(answer.content)
    # The same bytes again, also for somebody else.
    again = stored.get(FRAME, "administrator", accept=OHIF)
    assert (again.content, again.headers["etag"]) == (answer.content, answer.headers["etag"])


def test_a_bare_frame(stored):
    answer = stored.get(FRAME, accept=f"application/octet-stream; transfer-syntax={HTJ2K}")
    assert answer.headers["content-type"] == f"application/octet-stream; transfer-syntax={HTJ2K}"
    assert np.array_equal(htj2k.decode(answer.content), pixels(1001))
    image = stored.get(FRAME, accept='multipart/related; type="image/jphc"')
    assert image.headers["content-type"].startswith('multipart/related; type="image/jphc"')
    assert stored.get(f"{FRAME}?accept=image/jphc").headers["content-type"].startswith("image/jphc")


@pytest.mark.parametrize("path", [FRAME, f"{CINE}/frames/1,2,3"])
@pytest.mark.parametrize("accept", [OHIF, "application/octet-stream"])
def test_ranges_make_the_whole(stored, path, accept):
    if "," in path and accept != OHIF:
        assert stored.get(path, accept=accept).status_code == 406
        return
    whole = stored.get(path, accept=accept)
    size = len(whole.content)
    made = b""
    while len(made) < size:
        end = min(len(made) + size // 7, size - 1)
        part = stored.get(path, accept=accept, range=f"bytes={len(made)}-{end}")
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {len(made)}-{end}/{size}"
        assert part.headers["etag"] == whole.headers["etag"]
        assert part.headers["content-type"] == whole.headers["content-type"]
        made += part.content
    assert made == whole.content
    assert stored.get(path, accept=accept, range="bytes=-10").content == whole.content[-10:]
    assert stored.get(path, accept=accept, range="bytes=0-1,5-6").status_code == 200
    beyond = stored.get(path, accept=accept, range=f"bytes={size}-")
    assert (beyond.status_code, beyond.json()["reason"]) == (416, "RANGE_INVALID")
    other = {"range": "bytes=0-9", "if-range": '"other"'}
    assert stored.get(path, accept=accept, **other).content == whole.content
    same = {"range": "bytes=0-9", "if-range": whole.headers["etag"]}
    assert stored.get(path, accept=accept, **same).content == whole.content[:10]


def test_a_prefix_is_a_smaller_picture(stored):
    whole = stored.get(FRAME, accept="application/octet-stream").content
    offsets = htj2k.encode(pixels(1001), bits_stored=12).resolution_offsets
    prefix = stored.get(FRAME, accept="application/octet-stream", range=f"bytes=0-{offsets[0] - 1}").content
    assert whole.startswith(prefix)
    assert np.array_equal(htj2k.decode(prefix, reduce=len(offsets) - 1), htj2k.decode(whole, reduce=len(offsets) - 1))


def test_what_a_client_has_is_not_sent_again(stored):
    for path in (FRAME, f"/studies/{STUDY}/series/{SERIES}/metadata", f"/studies/{STUDY}/thumbnail", FRAME[:-9]):
        tag = stored.get(path).headers["etag"]
        answer = stored.get(path, **{"if-none-match": f'"x", W/{tag}'})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert stored.get(path, **{"if-none-match": '"x"'}).status_code == 200


def test_a_head_says_how_much_there_is(stored):
    answer = stored.people["radiologist"].head(f"/dicom-web{FRAME}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("path", "accept", "status", "reason"),
    [
        (FRAME[:-1] + "0", "*/*", 400, "FIELD_INVALID"),
        (FRAME[:-1] + "1,x", "*/*", 400, "FIELD_INVALID"),
        (FRAME[:-1] + "2", "*/*", 404, "RENDITION_NOT_FOUND"),
        (f"{CINE}/frames/3,4", "*/*", 404, "RENDITION_NOT_FOUND"),
        (FRAME.replace(f"{SERIES}.1/", f"{SERIES}.99/"), "*/*", 404, "INSTANCE_NOT_FOUND"),
        # An instance of another series of the study.
        (FRAME.replace(f"{SERIES}.1/", f"{STUDY}.2.1/"), "*/*", 404, "INSTANCE_NOT_FOUND"),
        (FRAME.replace(f"series/{SERIES}/", "series/2.25.9/"), "*/*", 404, "SERIES_NOT_FOUND"),
        (FRAME.replace(f"studies/{STUDY}/", "studies/2.25.9/"), "*/*", 404, "STUDY_NOT_FOUND"),
        (FRAME, "image/jpeg", 406, "NOT_ACCEPTABLE"),
        (FRAME, f"{RELATED}; type=application/octet-stream; {PLAIN}", 406, "NOT_ACCEPTABLE"),
        (FRAME[:-9], f"{RELATED}; type=application/dicom; {OTHER}", 406, "NOT_ACCEPTABLE"),
        (f"/studies/{STUDY}/metadata", "application/dicom+xml", 406, "NOT_ACCEPTABLE"),
        (f"{FRAME}/thumbnail?viewport=0,0", "*/*", 400, "FIELD_INVALID"),
        (f"{CINE}/frames/1,2/thumbnail", "*/*", 400, "FIELD_INVALID"),
        (f"{FRAME}/thumbnail", "image/gif", 406, "NOT_ACCEPTABLE"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(stored, path, accept, status, reason):
    answer = stored.get(path, accept=accept)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    if status == 406 and "frames" in path and "thumbnail" not in path:
        assert HTJ2K in answer.json()["detail"]


# -- metadata ----------------------------------------------------------------------------------------------------------


def test_metadata_describes_the_frames_that_are_served(stored):
    client = stored.client()
    found = [Dataset.from_json(one) for one in client.retrieve_series_metadata(STUDY, SERIES)]
    assert [ds.InstanceNumber for ds in found] == list(range(1, 9))
    first = found[0]
    assert (first.AvailableTransferSyntaxUID, first.Rows, first.Columns, first.BitsStored) == (HTJ2K, 64, 48, 12)
    assert "PixelData" not in first
    every = client.retrieve_study_metadata(STUDY)
    assert len(every) == 9
    one = client.retrieve_instance_metadata(STUDY, f"{STUDY}.2", f"{STUDY}.2.1")
    assert Dataset.from_json(one).NumberOfFrames == 3
    plain = stored.get(f"/studies/{STUDY}/series/{SERIES}/metadata", **{"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with stored.people["radiologist"].stream("GET", f"/dicom-web/studies/{STUDY}/metadata") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert json.loads(gzip.decompress(b"".join(answer.iter_raw()))) == every


# -- instances ---------------------------------------------------------------------------------------------------------


def test_dicomweb_client_fetches_instances(stored):
    client = stored.client()
    one = client.retrieve_instance(STUDY, SERIES, f"{SERIES}.1")
    assert np.array_equal(one.pixel_array, pixels(1001))
    assert one.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    series = client.retrieve_series(STUDY, SERIES)
    assert sorted(ds.InstanceNumber for ds in series) == list(range(1, 9))
    assert len(client.retrieve_study(STUDY)) == 9
    bare = stored.get(FRAME[:-9], accept="application/dicom")
    assert bare.headers["content-type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert pydicom.dcmread(io.BytesIO(bare.content)).PixelData == one.PixelData
    assert int(bare.headers["content-length"]) == len(bare.content)


@pytest.mark.parametrize(("syntax", "number"), [(J2K, 11), (RLE, 12)])
def test_compressed_objects(stored, tmp_path, syntax, number):
    """Objects are given as they were stored, their pixels as HTJ2K: both are what pydicom reads."""
    ds = picture(number, 1, frames=2)
    expected = pixels(number * 1000 + 1, frames=2)
    stored.store(tmp_path, compressed(ds, syntax))
    study, series = f"2.25.77.{number}", f"2.25.77.{number}.1"
    stored.curated(study)
    client = stored.client()
    whole = client.retrieve_instance(study, series, f"{series}.1")
    assert whole.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(whole.pixel_array, expected)
    frames = client.retrieve_instance_frames(study, series, f"{series}.1", [1, 2])
    assert all(np.array_equal(htj2k.decode(frame), expected[n]) for n, frame in enumerate(frames))
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'
    assert stored.get(f"/studies/{study}", accept=accept).status_code == 200
    plain = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1'
    refused = stored.get(f"/studies/{study}", accept=plain)
    assert (refused.status_code, syntax in refused.json()["detail"]) == (406, True)


def test_what_has_no_pixels(stored, tmp_path):
    ds = picture(13, 1)
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    ds.Modality = "SR"
    stored.store(tmp_path, ds)
    stored.curated("2.25.77.13")
    base = "/studies/2.25.77.13/series/2.25.77.13.1/instances/2.25.77.13.1.1"
    answer = stored.get(f"{base}/frames/1")
    assert (answer.status_code, answer.json()["reason"]) == (404, "RENDITION_NOT_FOUND")
    assert "NO_PIXEL_DATA" in answer.json()["detail"]
    assert stored.get(f"{base}/thumbnail").status_code == 404
    assert stored.get("/studies/2.25.77.13/thumbnail").status_code == 404
    assert Dataset.from_json(stored.get(f"{base}/metadata").json()[0]).Modality == "SR"
    assert stored.get(base).status_code == 200


# -- thumbnails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}", FRAME[:-9], FRAME, f"{CINE}/frames/2"]
)
def test_thumbnails(stored, path):
    answer = stored.get(f"{path}/thumbnail", accept="image/jpeg")
    made = Image.open(io.BytesIO(answer.content))
    assert (answer.status_code, answer.headers["content-type"], made.format) == (200, "image/jpeg", "JPEG")
    assert made.size == (48, 64)
    small = stored.get(f"{path}/thumbnail?viewport=24,24", accept="image/png")
    made = Image.open(io.BytesIO(small.content))
    assert (small.headers["content-type"], made.format, made.size) == ("image/png", "PNG", (18, 24))
    # As browsers ask for <img>.
    browser = stored.get(f"{path}/thumbnail", accept="image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8")
    assert browser.headers["content-type"] == "image/jpeg"


def test_a_thumbnail_is_shown_by_the_window(stored):
    made = Image.open(io.BytesIO(stored.get(f"{FRAME}/thumbnail", accept="image/png").content))
    shown = np.asarray(made).astype(float)
    values = pixels(1001).astype(float)
    expected = np.clip((values - 999.5) / 1999 + 0.5, 0, 1) * 255
    assert np.abs(shown - expected).max() <= 1.0


# -- rights ------------------------------------------------------------------------------------------------------------

PATHS = (
    "/studies", "/series", "/instances", f"/studies/{STUDY}", f"/studies/{STUDY}/series", f"/studies/{STUDY}/instances",
    f"/studies/{STUDY}/metadata", f"/studies/{STUDY}/thumbnail", f"/studies/{STUDY}/series/{SERIES}",
    f"/studies/{STUDY}/series/{SERIES}/instances", f"/studies/{STUDY}/series/{SERIES}/metadata", FRAME, FRAME[:-9],
    f"/studies/{STUDY}/series/{SERIES}/thumbnail", f"{FRAME[:-9]}/metadata", f"{FRAME[:-9]}/thumbnail",
    f"{FRAME}/thumbnail",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_nobody_reads_without_a_right(stored, path):
    refused = stored.people.anonymous().get(f"/dicom-web{path}")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="radmesh"')
    assert stored.get(path, "none").status_code == 403
    assert stored.people.anonymous().get(f"/dicom-web{path}", headers={"authorization": "Bearer x"}).status_code == 401
    assert stored.get(path).status_code == 200
    posted = stored.people["radiologist"].post(f"/dicom-web{path}", content=b"x")
    assert (posted.status_code, "GET" in posted.headers["allow"]) == (405, True)


def test_a_right_that_is_taken_away_is_gone_within_five_seconds(stored):
    stored.people.add("eve", "radiologist")
    assert stored.get(FRAME, "eve").status_code == 200
    stored.people.become("eve", "none")
    within(lambda: stored.get(FRAME, "eve").status_code == 403, 5.0)


def test_held_studies_are_read_by_whom_they_concern(stored, tmp_path):
    """One image of the study is another patient's: it is held alone, and is nowhere to be seen."""
    stored.store(tmp_path, picture(21, 1))
    stored.store(tmp_path, picture(21, 2, PatientID="OTHER"), picture(22, 1), user="tom", password=PASSWORD)
    series = "/studies/2.25.77.21/series/2.25.77.21.1"
    stored.curated("2.25.77.21", "2.25.77.22")
    for name, count in (("radiologist", 1), ("technologist", 2)):
        assert len(stored.get(f"{series}/metadata", name).json()) == count
        assert len(parts(stored.get(series, name))) == count
        assert len(stored.get(f"{series}/instances", name).json()) == count
    held = f"{series}/instances/2.25.77.21.1.2"
    for path in (held, f"{held}/metadata", f"{held}/frames/1", f"{held}/thumbnail"):
        assert stored.get(path).status_code == 404, path
        assert stored.get(path, "technologist").status_code == 200, path
    for path in ("", "/metadata", "/thumbnail", "/series/2.25.77.22.1/instances/2.25.77.22.1.1/frames/1"):
        assert stored.get(f"/studies/2.25.77.22{path}").status_code == 404, path
        assert stored.get(f"/studies/2.25.77.22{path}", "administrator").status_code == 200, path


def test_reading_is_audited(stored):
    stored.people.add("ann", "radiologist")
    for number in range(1, 9):
        stored.get(FRAME.replace(f"{SERIES}.1/", f"{SERIES}.{number}/"), "ann")
    with stored.cluster.client() as client:
        mine = [e for e in client.audit(limit=100, actor="ann") if e.action == "STUDY_READ"]
    # One act, not eight.
    assert [(event.object, event.outcome) for event in mine] == [(STUDY, "SUCCESS")]


# -- corrections -------------------------------------------------------------------------------------------------------


def test_corrected_values_are_shown_everywhere(stored, tmp_path):
    stored.store(tmp_path, picture(31, 1), picture(31, 2))
    study, series = "2.25.77.31", "2.25.77.31.1"
    stored.curated(study)
    client = stored.client()
    assert str(client.retrieve_instance(study, series, f"{series}.1").PatientName) == "Doe^John"
    frame = stored.get(f"/studies/{study}/series/{series}/instances/{series}.1/frames/1")
    tag = stored.get(f"/studies/{study}/series/{series}/metadata").headers["etag"]
    stored.cluster.correct(study, PatientName="Müller^Ö", PatientID="RIGHT")
    wait_for(lambda: stored.get(f"/studies/{study}/series/{series}/metadata").headers["etag"] != tag, 5.0)
    found = Dataset.from_json(client.search_for_studies(search_filters={"StudyInstanceUID": study})[0])
    said = Dataset.from_json(client.retrieve_series_metadata(study, series)[0])
    given = client.retrieve_instance(study, series, f"{series}.1")
    for ds in (found, said, given):
        assert (str(ds.PatientName), ds.PatientID) == ("Müller^Ö", "RIGHT")
    for ds in (said, given):
        before = ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
        assert (str(before.PatientName), before.PatientID) == ("Doe^John", "P31")
    assert np.array_equal(given.pixel_array, pixels(31001))
    assert {ds.PatientID for ds in client.retrieve_study(study)} == {"RIGHT"}
    bare = stored.get(f"/studies/{study}/series/{series}/instances/{series}.1", accept="application/dicom")
    assert int(bare.headers["content-length"]) == len(bare.content)
    # Nothing was compressed anew.
    assert stored.get(f"/studies/{study}/series/{series}/instances/{series}.1/frames/1").content == frame.content


# -- what is not there yet ---------------------------------------------------------------------------------------------


def test_curl_fetches_a_range(stored, tmp_path):
    token = stored.people.tokens["radiologist"]
    command = ["curl", "-sS", "--fail", "-H", f"Authorization: Bearer {token}", "-H", f"Accept: {OHIF}"]
    for name, span in (("head", "0-99"), ("tail", "100-"), ("whole", "0-")):
        subprocess.run([*command, "-r", span, "-o", tmp_path / name, f"{stored.url}{FRAME}"], timeout=120, check=True)
    joined = (tmp_path / "head").read_bytes() + (tmp_path / "tail").read_bytes()
    assert joined == (tmp_path / "whole").read_bytes() == stored.get(FRAME, accept=OHIF).content
