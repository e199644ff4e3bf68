"""docs/reference/query.md: what C-FIND can be asked for."""

from collections.abc import Iterator

from radmesh.database_server.dicom_query import LIMIT
from radmesh.database_server.dicom_query_model import ATTRIBUTES, LEVELS, UNIQUE
from radmesh.database_server.dicom_worklist import STEP, TOP, Tree
from radmesh.dicom.identifier import tag_text


def document() -> str:
    """Return docs/reference/query.md."""
    lines = [
        "# What C-FIND can be asked for",
        "",
        "Made by `make docs` from the tables that answer, `radmesh.database_server.dicom_query_model` and",
        "`.dicom_worklist`. Keys of the levels above are matched and told too. A hierarchical query has one value",
        "of the unique key of each level above, else it ends with 0xA900. Keys that are not listed are left out of",
        "answers, whose status is 0xFF01 then.",
        "",
        "Text is matched with `*` and `?`, names of persons in any script and without regard to case, dates and",
        "times as ranges, UIDs as lists; codes, numbers and other texts may be lists too. Held instances are seen",
        f"by the station alone that sent them. An answer has at most `[dicom] find_limit` rows ({LIMIT:,}); one",
        "that has more ends with 0xA700, and says so.",
        "",
        "By extended negotiation (PS3.4 C.5.1.1): relational queries, which need no unique keys; dates and times",
        "matched as one; fuzzy semantic matching of the patient's name, which finds its words in any order, with any",
        "diacritics or none (`ue` is `ü`), and with a letter wrong from four letters on, two from eight. Time zones",
        "are not adjusted.",
        "",
        "Specific Character Set is empty where a row is ASCII, else that of `[[stations]] character_set` or of the",
        "request where that is one set alone which can hold the row, else ISO_IR 192.",
    ]
    for level in LEVELS:
        lines += ["", f"## {level}", "", "| tag | VR | keyword | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {tag_text(a.tag)} | {a.vr} | {a.keyword} | {'unique' if a.tag == UNIQUE[level] else _note(a.header)} |"
            for a in ATTRIBUTES
            if a.level == level
        ]
    lines += ["", "## Modality Worklist", "", "What is scheduled, by its time. `>` = within (0040,0100), one item.", ""]
    lines += ["| tag | VR | keyword |", "| --- | --- | --- |", *_tree(TOP, "")]
    return "\n".join(lines) + "\n"


def _note(header: bool) -> str:  # noqa: FBT001 - of this module alone
    return "of the series' first object" if header else ""


def _tree(attributes: Tree, prefix: str) -> Iterator[str]:
    from pydicom.datadict import keyword_for_tag  # noqa: PLC0415

    for tag, (vr, _) in attributes.items():
        yield f"| {prefix}{tag_text(tag)} | {vr} | {keyword_for_tag(tag)} |"
        if attributes is TOP and tag == 0x00400100:
            yield from _tree(STEP, "> ")
