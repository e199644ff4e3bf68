"""Takes the pictures of docs/screenshots: a cluster on free ports, images that pydicom brings, Debian's Chromium.

    .venv/bin/python tools/screenshots.py [FOLDER]

Patients are invented. Look at every picture before committing it.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "components"), str(ROOT / "native")]

import numpy as np  # noqa: E402 - the paths come first
import pydicom  # noqa: E402
from browser_support import Visitor, browsers  # noqa: E402
from cluster_support import RealCluster  # noqa: E402
from http_support import PASSWORD, People, people_of  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import expect  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, generate_uid  # noqa: E402
from ris_support import ask, orm  # noqa: E402

HEAD, CHEST, ECHO, HELD = (f"2.25.20260{number}" for number in range(1, 5))
MORE = "2.25.20261"
REPORT = (
    "Round opacities in both lungs, up to 4 cm. No effusion.\nHeart of normal size.\n\n"
    "Impression: suspected metastases; CT advised."
)


def load(name: str, **values: Any) -> pydicom.Dataset:
    """Return an image of pydicom's with other values."""
    path = get_testdata_file(name)
    assert path, name
    ds = pydicom.dcmread(path)
    if ds.file_meta.TransferSyntaxUID.is_compressed and ds.BitsStored > 8:
        ds.decompress()
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def study(uid: str, series: int, name: str, **values: Any) -> dict[str, Any]:
    """Return what the images of a series have in common."""
    return {
        "StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.{series}", "SeriesNumber": series, "PatientName": name,
        "PatientID": f"P{uid[-4:]}", "AccessionNumber": f"A{uid[-4:]}", "SpecificCharacterSet": "ISO_IR 192",
        **values,
    }  # fmt: skip


def images() -> list[pydicom.Dataset]:
    """Return a CT with a stack, a chest, an echo, a study for the hold, and some more for the list."""
    woman = {"PatientSex": "F", "PatientBirthDate": "19710314", "StudyDate": "20261123", "StudyTime": "091500"}
    man = {"PatientSex": "M", "PatientBirthDate": "19580902", "StudyDate": "20261122", "StudyTime": "141200"}
    about = {"StudyDescription": "Head and shoulder", "SeriesDescription": "Axial 5 mm", **woman}
    made = []
    first = load("693_UNCR.dcm", **study(HEAD, 1, "Keller^Martha", **about))
    pixels = first.pixel_array
    for number in range(1, 13):
        ds = load("693_UNCR.dcm", **study(HEAD, 1, "Keller^Martha", **about), InstanceNumber=number)
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.PixelData = np.roll(pixels, number - 6, axis=0).tobytes()
        made.append(ds)
    made.append(load("MR2_UNCR.dcm", **study(HEAD, 2, "Keller^Martha", **about | {"SeriesDescription": "Shoulder"})))
    chest = {"StudyDescription": "Chest PA", "SeriesDescription": "PA", **man}
    made.append(load("RG1_UNCR.dcm", **study(CHEST, 1, "Brandt^Josef", **chest)))
    echo = {
        "StudyDescription": "Echocardiogram",
        "SeriesDescription": "Apical",
        **woman,
        "PatientBirthDate": "20170102",
    }
    made.append(load("color3d_jpeg_baseline.dcm", **study(ECHO, 1, "Lind^Ella", **echo)))
    held = {"StudyDescription": "Ankle", "SeriesDescription": "AP", **man, "StudyDate": "20261124"}
    made.append(load("RG3_UNCR.dcm", **study(HELD, 1, "Novak^Pavel", **held)))
    more = ("Abel^Nora", "Ito^Kenji", "Okafor^Ben", "Rossi^Lia", "Vogel^Tim", "Weiss^Ada", "Zeman^Jan", "Moreau^Luc")
    for number, name in enumerate(more):
        uid = f"{MORE}{number}"
        day = {"StudyDate": f"202611{20 - number}", "StudyDescription": "MR head", "SeriesDescription": "T1"}
        made.append(load("MR_small.dcm", **study(uid, 1, name, **day)))
    return made


def store(cluster: RealCluster, folder: Path) -> None:
    """Send them: what is held by a user whose studies need an order."""
    (folder / "secret").write_text(PASSWORD)
    for number, ds in enumerate(images()):
        path = folder / f"{number}.dcm"
        ds.save_as(path)
        held = ds.StudyInstanceUID == HELD
        person = ("--user", "xray-2", "--password-file", folder / "secret") if held else ()
        done = cluster.run("store", path, *person)
        if done.code:
            sys.exit(done.err)


def settle(cluster: RealCluster, people: People) -> None:
    """Let the RIS order most of them, and some be read."""
    port = int(str(cluster.ready["ports"]["hl7"]).rpartition(":")[2])
    patients = {str(ds.StudyInstanceUID): ds for ds in images()}
    for uid, ds in patients.items():
        if uid not in (ECHO, HELD, f"{MORE}3"):
            order = orm(ds.AccessionNumber, ds.PatientID, str(ds.PatientName), study=uid, modality=ds.Modality)
            own = f"|{ds.get('PatientBirthDate') or ''}|{ds.get('PatientSex') or ''}"
            answer = ask(port, order.replace(b"|19700101|M", own.encode()))
            assert b"|AA|" in answer, answer
    reader = people["reader"]
    for number in (1, 2, 4, 6, 7):
        path = f"/api/v1/studies/{MORE}{number}/reports"
        assert reader.post(path, json={"text": "No finding.", "transcribed": number == 2}).status_code == 200
        if number % 2 == 0 and number > 2:
            assert reader.post(f"{path}/1/approve", json={}).status_code == 200


def take(visitor: Visitor, folder: Path, name: str) -> None:
    """Keep what is seen, in few colours: small files."""
    path = folder / f"{name}.png"
    visitor.page.wait_for_timeout(600)
    visitor.page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, path.stat().st_size)


def look(visitor: Visitor, reader: Visitor, folder: Path, theme: str) -> None:
    """Go through every view."""
    page = visitor.page
    page.goto("/login")
    take(visitor, folder, f"login-{theme}")
    visitor.sign_in("administrator")
    expect(page.locator("tbody tr")).to_have_count(12)
    take(visitor, folder, f"studies-{theme}")
    page.goto("/holds")
    expect(page.locator(".hold")).to_have_count(1)
    take(visitor, folder, f"held-{theme}")
    page.goto("/status")
    page.locator(".component summary").filter(has_text="curator-0").click()
    take(visitor, folder, f"status-{theme}")
    reader.sign_in("reader")
    for uid, keys, name in ((HEAD, ("ArrowDown",) * 5, "viewer"), (CHEST, (), "report")):
        reader.page.goto(f"/studies/{uid}")
        expect(reader.pane).to_have_attribute("data-state", "whole")
        reader.press(*keys)
        expect(reader.pane).to_have_attribute("data-state", "whole")
        if name == "report":
            editor = reader.page.get_by_role("textbox", name="Report")
            expect(editor).to_be_enabled()
            editor.fill(REPORT)
        take(reader, folder, f"{name}-{theme}")
        if name == "report":
            editor.fill("")
    reader.page.goto(f"/studies/{HEAD}")
    expect(reader.pane).to_have_attribute("data-state", "whole")
    reader.press("l")
    expect(reader.page.locator(".pane").nth(1)).to_have_attribute("data-state", "whole")
    take(reader, folder, f"panes-{theme}")
    reader.press("?")
    take(reader, folder, f"keyboard-{theme}")


def main() -> None:
    """Take them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="radmesh-screenshots-") as place:
        work = Path(place)
        (work / "radmesh.toml").write_text(
            '[[stations]]\nae_title = "user:xray-2"\nverification = "required"\n\n'
            '[[stations]]\nae_title = "user:admin"\n'
        )
        cluster = RealCluster(work / "data", "--config", str(work / "radmesh.toml"))
        people = people_of(cluster)
        try:
            people.add("xray-2", "technologist")
            people.add("reader", "radiologist")
            store(cluster, work)
            settle(cluster, people)
            url = cluster.ready["urls"]["http"]
            with browsers() as chromium:
                for theme in ("light", "dark"):
                    pair = [chromium.visitor(url, color_scheme=theme) for _ in range(2)]
                    look(pair[0], pair[1], folder, theme)
                    faults = [fault for visitor in chromium.leave() for fault in visitor.faults]
                    if faults:
                        sys.exit("\n".join(faults))
        finally:
            people.close()
            cluster.close()


if __name__ == "__main__":
    main()
