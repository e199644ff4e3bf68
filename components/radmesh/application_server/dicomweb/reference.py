"""docs/reference/dicomweb.md, made of the tables that are served."""
# ruff: noqa: E501 - a page is text

from radmesh.application_server.dicomweb import qido, thumbnails
from radmesh.application_server.dicomweb.negotiation import IMAGE_TYPES

_TEXT = """# DICOMweb

Made by `make docs` from `radmesh.application_server.dicomweb`. QIDO-RS and WADO-RS of PS3.18 at `/dicom-web`, on the
port of HTTP ([routes](http.md)): with a session's cookie or `Authorization: Bearer …`. Held studies and instances are
there for who has the right `reconcile` alone; for everybody else they are nowhere, not even in a count.

    curl -c session http://127.0.0.1:8080/api/v1/session -H 'Content-Type: application/json' \\
      -d '{"user": "admin", "password": "…"}'
    curl -b session 'http://127.0.0.1:8080/dicom-web/studies?PatientName=Doe*&StudyDate=20260101-'

## Searching

`/studies`, `/series`, `/instances`, `/studies/{study}/series`, `/studies/{study}/instances`,
`/studies/{study}/series/{series}/instances` answer 200 with an array, also with an empty one, in
`application/dicom+json`. Attributes are named by keyword or tag. `*` and `?` are wildcards, dates and times may be ranges
(`20260101-20260131`, `-1200`), UIDs and modalities lists (`1.2,1.3`). Names match without regard to case, in any
character set; of a name with several component groups each is looked at.

- `limit` (at most {most}, which is the default) and `offset` (at most {offset}); where there is more, a Warning says so.
- `includefield`: keywords or tags, with commas between, or `all`.
- `fuzzymatching`: the words of the patient's name are found in any order, with any diacritics or none, and with a letter
  wrong from four letters on, two from eight.
- `emptyvaluematching`, `multiplevaluematching`: not done, which a Warning says.
- Names of other attributes are refused (400); what DICOM does not know is passed over.
- A search for series or instances of all studies opens {opened} studies at most; a Warning says that there are more.

| level | attribute | tag | VR | in results |
| --- | --- | --- | --- | --- |
{attributes}

Results of a level have those of the levels above it too. Retrieve URL (0008,1190) and Instance Availability (0008,0056) are
in all, but for the latter in those of series.

## Retrieving

| resource | answer |
| --- | --- |
| study, series, instance | `multipart/related; type="application/dicom"`; an instance also as `application/dicom` |
| …/metadata | `application/dicom+json`, gzipped for who accepts that; without bulk data |
| …/instances/{instance}/frames/{list} | `multipart/related` or, for one frame, the bare frame |
| …/thumbnail, also of a frame | `image/jpeg`, `image/png`; `viewport=width,height`, at most {side} each, else {default} |

**Instances** are given as they were stored, byte by byte; where their study is corrected, the corrected values are written
over them, and what was there before into the Original Attributes Sequence (0400,0561). They are not transcoded: a transfer syntax
that they do not have is 406, and no transfer syntax means theirs.

**Frames** are those of the web cache: HTJ2K Lossless RPCL (1.2.840.10008.1.2.4.202) wherever that is possible, else as they came. The
header of each part says which: `Content-Type: application/octet-stream; transfer-syntax=1.2.840.10008.1.2.4.202`. Metadata
describes them (Available Transfer Syntax UID (0008,3002), Photometric Interpretation, bits). The parts may also have the media
type of their transfer syntax:

| transfer syntax | media type |
| --- | --- |
{images}

- `Range` of one range is answered, for lists too. The same frames are the same bytes each time, boundary and headers included, so that
  ranges of several answers make the whole; entity tags are strong, for `If-None-Match` and `If-Range`.
- The beginning of an HTJ2K frame is a smaller picture. How many bytes each size takes is in `/api/v1/studies/{study}/series/{series}`.

**What is not made yet**: a request waits up to 2 s, then gets 503 (PICTURES_PENDING) with `Retry-After`. The metadata of a series
that is partly made has what there is, and a Warning that says how much is missing. An instance without pixels, and
one whose pixels are corrupt, has no frames: 404, with the reason.

**Thumbnails** are made from the beginning of a code stream, by the window that the object asks for, else from the
darkest to the brightest. A study is shown by the image in the middle of its first series. Frames that are
served as they came have none, but for JPEG baseline, which is its own.

Accesses are audited once a minute for each session and study: STUDY_QUERY, STUDY_SHOW, STUDY_READ.
"""


def document() -> str:
    """Return the page."""
    attributes = "\n".join(
        f"| {a.level} | {a.keyword} | ({a.tag[:4]},{a.tag[4:]}) | {a.vr} | {'always' if a.always else 'asked for'} |"
        for a in qido.ATTRIBUTES
    )
    images = "\n".join(f"| {syntax} | {kind} |" for syntax, kind in IMAGE_TYPES.items())
    return (
        _TEXT.replace("{most}", str(qido.MOST))
        .replace("{offset}", str(qido.OFFSET_MOST))
        .replace("{opened}", str(qido.OPENED_MOST))
        .replace("{side}", str(thumbnails.SIDE_MOST))
        .replace("{default}", str(thumbnails.DEFAULT_SIDE))
        .replace("{attributes}", attributes)
        .replace("{images}", images)
    )
