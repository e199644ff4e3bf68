"""Pictures in the browser, from the modality's object to the canvas: what is drawn is what pydicom has."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from browser_support import Visitor
from cluster_support import image
from numpy.typing import NDArray
from playwright.sync_api import Locator, Page, expect
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import MRImageStorage

SLICES, SIDE = 12, 300
CT, MR = "2.25.77.700", "2.25.77.700.2"
RNG = np.random.default_rng(700)


def slice_of(number: int) -> NDArray[np.int16]:
    """A slice with structure and noise: large enough that its first picture is fetched by itself."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    disc = (x - 150) ** 2 + (y - 150) ** 2 < (30 + 8 * number) ** 2
    return (np.where(disc, 1060, 24) + (x + 2 * y) % 40 + RNG.integers(0, 60, (SIDE, SIDE)) + number).astype("<i2")


PIXELS = {number: slice_of(number) for number in range(1, SLICES + 1)}
OTHERS = {
    name: pydicom.dcmread(get_testdata_file(file, download=False))
    for name, file in {
        "multi-frame": "emri_small.dcm",
        "palette": "examples_palette.dcm",
        "rgb": "examples_rgb_color.dcm",
        "jpeg": "examples_ybr_color.dcm",
        "jpeg-12": "JPEG-lossy.dcm",
        "jpeg-2000": "JPEG2000.dcm",
        "dose": "rtdose.dcm",
        "bits": "liver_1frame.dcm",
        "document": "test-SR.dcm",
        "overlay": "examples_overlay.dcm",
        "modality table": "mlut_18.dcm",
        "VOI table": "vlut_04.dcm",
    }.items()
}


def series(folder: Path) -> list[Path]:
    """A study of a CT of twelve slices and an MR of one."""
    files = []
    about = {
        "PatientName": "Roentgen^Anna^Bertha",
        "PatientID": "R700",
        "PatientSex": "F",
        "PatientBirthDate": "18720422",
    }
    for number, pixels in PIXELS.items():
        ds = image(
            700, **about, SOPInstanceUID=f"2.25.77.700.1.{number}", InstanceNumber=number, SeriesNumber=1,
            Rows=SIDE, Columns=SIDE, BitsStored=13, HighBit=12, PixelRepresentation=1, PixelData=pixels.tobytes(),
            RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 300], WindowWidth=[400, 1500],
            WindowCenterWidthExplanation=["TISSUE", "BONES"], PixelSpacing=[0.7, 0.7], SliceThickness=3,
            SliceLocation=number * 3.0, ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[-100, -100, number * 3], SeriesDescription="Axial",
        )  # fmt: skip
        files.append(folder / f"{number}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    ds = image(
        700, **about, SOPClassUID=MRImageStorage, SOPInstanceUID=f"{MR}.1", SeriesInstanceUID=MR, SeriesNumber=2,
        Modality="MR", SeriesDescription="Localiser",
    )  # fmt: skip
    ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    files.append(folder / "mr.dcm")
    ds.save_as(files[-1], enforce_file_format=True)
    return files


@pytest.fixture(scope="module")
def stored(cluster, people, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    files = series(folder)
    for name, ds in OTHERS.items():
        files.append(folder / f"{name}.dcm")
        ds.save_as(files[-1])
    done = cluster.run("store", *files)
    assert done.code == 0, done.err


@pytest.fixture
def open_study(cluster, people, stored, visit):
    def open_study(uid: str, user: str = "radiologist", **options: Any) -> Visitor:
        visitor = visit(cluster.ready["urls"]["http"], **options).sign_in(user)
        visitor.open(f"/studies/{uid}")
        return visitor

    return open_study


def whole(pane: Locator) -> None:
    """Wait until a pane shows all of its picture."""
    expect(pane).to_have_attribute("data-state", "whole")


def corner(page: Page, name: str, pane: int = 0) -> Locator:
    return page.locator(".pane").nth(pane).locator(f".corner.{name}")


def at(visitor: Visitor, number: int, of: int = SLICES) -> None:
    """Wait until picture `number` is there, whole."""
    expect(corner(visitor.page, "bl")).to_contain_text(f"Im {number} / {of}")
    whole(visitor.pane)


def drawn(visitor: Visitor, rows: int, columns: int, pane: int = 0) -> NDArray[np.uint8]:
    """The picture on the canvas, one of its pixels on one of the screen: (rows, columns, 3)."""
    visitor.press("0")
    expect(corner(visitor.page, "br", pane)).to_contain_text("100 %")
    canvas = visitor.pixels(pane)
    top, left = round((canvas.shape[0] - rows) / 2), round((canvas.shape[1] - columns) / 2)
    for y in (top, top - 1, top + 1):
        for x in (left, left - 1, left + 1):
            # Half pixels are rounded one way or the other; what is outside is black.
            outside = canvas.copy()
            outside[y : y + rows, x : x + columns] = 0
            if not outside[..., :3].any():
                return canvas[y : y + rows, x : x + columns, :3]
    raise AssertionError("the picture is not in the middle of the pane")


def grey(values: NDArray[Any], center: float, width: float) -> NDArray[np.uint8]:
    """The linear VOI function of PS3.3 C.11.2.1.2.1."""
    return np.rint(np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255).astype(np.uint8)


def same(found: NDArray[np.uint8], wanted: NDArray[np.uint8], tolerance: int = 0) -> None:
    if wanted.ndim == 2:
        wanted = np.repeat(wanted[..., None], 3, axis=2)
    difference = np.abs(found.astype(int) - wanted.astype(int))
    assert difference.max() <= tolerance, (difference.max(), (difference > tolerance).sum())


def test_what_is_drawn_is_what_pydicom_has(open_study):
    visitor = open_study(CT)
    at(visitor, 1)
    ds = pydicom.dataset.Dataset()
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    hounsfield = apply_modality_lut(PIXELS[1], ds)
    same(drawn(visitor, SIDE, SIDE), grey(hounsfield, 40, 400))
    # pydicom's own function agrees, on the range that it thinks of.
    ds.WindowCenter, ds.WindowWidth, ds.BitsStored, ds.PixelRepresentation = 40, 400, 8, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    del ds.RescaleSlope, ds.RescaleIntercept
    same(drawn(visitor, SIDE, SIDE), np.rint(apply_voi_lut(hounsfield, ds)).astype(np.uint8))


def test_every_way_of_scrolling(open_study):
    visitor = open_study(CT)
    page = visitor.page
    at(visitor, 1)
    visitor.press("ArrowDown", "ArrowDown")
    at(visitor, 3)
    same(drawn(visitor, SIDE, SIDE), grey(PIXELS[3] - 1024.0, 40, 400))
    visitor.press("End")
    at(visitor, SLICES)
    visitor.press("ArrowDown", "k")
    at(visitor, SLICES - 1)
    visitor.press("Home")
    at(visitor, 1)
    box = visitor.pane.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, 120)
    at(visitor, 2)
    page.mouse.wheel(0, 240)
    at(visitor, 4)
    page.mouse.wheel(0, -120)
    at(visitor, 3)
    visitor.press("s")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 4, steps=12)
    page.mouse.up()
    expect(corner(page, "bl")).to_contain_text(f"Im {SLICES} / ")
    at(visitor, SLICES)
    same(drawn(visitor, SIDE, SIDE), grey(PIXELS[SLICES] - 1024.0, 40, 400))
    # By then all of the series is there.
    expect(visitor.pane).to_have_attribute("data-loaded", str(SLICES))


def test_the_smallest_picture_comes_first(open_study, visit, cluster):
    visitor = visit(cluster.ready["urls"]["http"]).sign_in("radiologist")
    ranges: list[tuple[str, str, int]] = []

    def note(response) -> None:
        if "/frames/" in response.url and not response.url.endswith("thumbnail"):
            ranges.append((response.url, response.request.headers.get("range", ""), response.status))

    visitor.page.on("response", note)
    visitor.open(f"/studies/{CT}")
    at(visitor, 1)
    first = [(asked, status) for url, asked, status in ranges if url.endswith(".1.1/frames/1")]
    assert len(first) == 2
    (begin, begun), (rest, rested) = first
    assert (begun, rested) == (206, 206)
    length = int(begin.removeprefix("bytes=0-")) + 1
    assert rest == f"bytes={length}-"
    assert length < SIDE * SIDE // 4
    # And what was put together of both is the picture.
    same(drawn(visitor, SIDE, SIDE), grey(PIXELS[1] - 1024.0, 40, 400))


def test_windows(open_study):
    visitor = open_study(CT)
    page = visitor.page
    at(visitor, 1)
    values = PIXELS[1] - 1024.0
    presets = page.get_by_label("Window preset")
    expect(presets).to_have_value("0")
    visitor.press("2")
    expect(corner(page, "br")).to_contain_text("C 300  W 1500")
    same(drawn(visitor, SIDE, SIDE), grey(values, 300, 1500))
    presets.select_option(label="4  Lung  -600 / 1500")
    same(drawn(visitor, SIDE, SIDE), grey(values, -600, 1500))
    presets.select_option(label="9  Whole range")
    low, high = values.min(), values.max()
    same(drawn(visitor, SIDE, SIDE), grey(values, (low + high + 1) / 2, high - low + 1))
    # The window stays while one scrolls, and goes with a reset.
    visitor.press("3", "ArrowDown")
    at(visitor, 2)
    same(drawn(visitor, SIDE, SIDE), grey(PIXELS[2] - 1024.0, 40, 400))
    visitor.press("2", "i")
    same(drawn(visitor, SIDE, SIDE), 255 - grey(PIXELS[2] - 1024.0, 300, 1500), 1)
    expect(corner(page, "br")).to_contain_text("inverted")
    visitor.press("r")
    expect(corner(page, "br")).to_contain_text("C 40  W 400")
    expect(corner(page, "br")).not_to_contain_text("inverted")


def test_dragging_the_window(open_study):
    visitor = open_study(CT)
    page = visitor.page
    at(visitor, 1)
    box = visitor.pane.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 100, y + 50, steps=5)
    page.mouse.up()
    text = corner(page, "br").locator("div", has_text="C ").text_content() or ""
    center, width = map(float, re.findall(r"-?[\d.]+", text))
    assert center > 40
    assert width > 400
    expect(page.get_by_label("Window preset").locator("option:checked")).to_have_text("Window: chosen")
    # What is said of it is what is drawn, to the rounding of what is said.
    same(drawn(visitor, SIDE, SIDE), grey(PIXELS[1] - 1024.0, center, width), 2)


def test_turned_mirrored_moved_and_enlarged(open_study):
    visitor = open_study(CT)
    page = visitor.page
    at(visitor, 1)
    shown = grey(PIXELS[1] - 1024.0, 40, 400)
    assert [corner(page, side).text_content() for side in ("left", "right", "top", "bottom")] == [
        "R",
        "L",
        "A",
        "UNVERIFIEDP",
    ]
    visitor.press("t")
    expect(corner(page, "left")).to_have_text("P")
    same(drawn(visitor, SIDE, SIDE), np.rot90(shown, -1))
    visitor.press("t", "t", "t", "f")
    expect(corner(page, "left")).to_have_text("L")
    same(drawn(visitor, SIDE, SIDE), shown[:, ::-1])
    visitor.press("r", "0", "+")
    expect(corner(page, "br")).to_contain_text("125 %")
    visitor.press("p")
    box = visitor.pane.bounding_box()
    assert box
    before = visitor.pixels()
    x, y = box["x"] + 200, box["y"] + 200
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 20)
    page.mouse.up()
    expect(corner(page, "br")).to_contain_text("125 %")
    after = visitor.pixels()
    # The same resampling, to its rounding.
    same(after[20:, 30:, :3], before[:-20, :-30, :3], 1)
    assert after[..., :3].any()


def test_what_stands_on_the_picture(open_study):
    page = open_study(CT).page
    for text in ("Roentgen, Anna Bertha", "R700", "1872-04-22  female"):
        expect(corner(page, "tl")).to_contain_text(text)
    expect(corner(page, "tr")).to_contain_text("Se 1  Axial")
    expect(corner(page, "bl")).to_contain_text("L 3 mm  T 3 mm")
    expect(page.locator(".pane canvas")).to_have_attribute("aria-label", re.compile("^Series 1 Axial, image 1 of 12"))
    page.keyboard.press("h")
    expect(corner(page, "tl")).to_have_text("")
    # Whose picture it is may be hidden, that nobody has verified it may not.
    expect(corner(page, "bottom")).to_have_text("UNVERIFIED")


def test_the_value_under_the_pointer(open_study):
    visitor = open_study(CT)
    at(visitor, 1)
    visitor.press("0")
    expect(corner(visitor.page, "br")).to_contain_text("100 %")
    box = visitor.pane.bounding_box()
    assert box
    visitor.page.mouse.move(box["x"] + box["width"] / 2 + 10, box["y"] + box["height"] / 2 - 20)
    expect(corner(visitor.page, "bl")).to_contain_text(" HU")
    text = corner(visitor.page, "bl").text_content() or ""
    found = re.search(r"\((\d+), (\d+)\)\s+(-?\d+) HU", text)
    assert found
    column, row, value = map(int, found.groups())
    assert (column, row) == (SIDE // 2 + 10, SIDE // 2 - 20)
    assert value == PIXELS[1][row, column] - 1024


def test_series_and_panes(open_study):
    visitor = open_study(CT)
    page = visitor.page
    at(visitor, 1)
    strip = page.get_by_role("listbox", name="Series")
    expect(strip.get_by_role("option")).to_have_count(2)
    for picture in strip.locator("img").all():
        expect(picture).to_have_js_property("complete", value=True)
        assert picture.evaluate("image => image.naturalWidth") > 0
    visitor.press("PageDown")
    expect(strip.get_by_role("option", name="Localiser")).to_have_attribute("aria-selected", "true")
    at(visitor, 1, 1)
    same(drawn(visitor, 16, 16), grey(np.arange(256.0).reshape(16, 16), 128, 256))
    visitor.press("PageUp", "l")
    expect(page.locator(".pane")).to_have_count(2)
    at(visitor, 1)
    whole(page.locator(".pane").nth(1))
    expect(corner(page, "tr", 1)).to_contain_text("Localiser")
    # The keys are those of the pane that was touched last.
    page.locator(".pane").nth(1).click()
    visitor.press("i")
    expect(corner(page, "br", 1)).to_contain_text("inverted")
    expect(corner(page, "br", 0)).not_to_contain_text("inverted")
    visitor.press("l", "l")
    expect(page.locator(".pane")).to_have_count(1)


def test_playing(open_study):
    visitor = open_study(CT)
    page = visitor.page
    at(visitor, 1)
    visitor.press("Space")
    expect(page.get_by_role("button", name="Play or stop")).to_have_attribute("aria-pressed", "true")
    expect(corner(page, "bl")).to_contain_text("Im 5 / ")
    visitor.press("Space")
    expect(page.get_by_role("button", name="Play or stop")).to_have_attribute("aria-pressed", "false")


def other(open_study, name: str) -> tuple[Visitor, pydicom.Dataset]:
    ds = OTHERS[name]
    visitor = open_study(ds.StudyInstanceUID)
    strip = visitor.page.get_by_role("listbox", name="Series")
    strip.locator(f'[data-uid="{ds.SeriesInstanceUID}"]').click()
    return visitor, ds


@pytest.mark.parametrize("name", ["rgb", "palette"])
def test_colours_are_those_of_pydicom(open_study, name):
    visitor, ds = other(open_study, name)
    whole(visitor.pane)
    wanted = pydicom.pixels.apply_color_lut(ds.pixel_array, ds) if name == "palette" else ds.pixel_array
    # A palette of 16 bits is shown with the upper 8.
    wanted = (wanted >> 8).astype(np.uint8) if wanted.dtype == np.uint16 else wanted
    rows, columns = ds.Rows, ds.Columns
    visitor.page.set_viewport_size({"width": 1500, "height": 900})
    same(drawn(visitor, rows, columns), wanted)
    if name == "palette":
        expect(corner(visitor.page, "br")).to_contain_text("colours derived")


def test_jpeg_is_shown_as_it_came(open_study):
    visitor, ds = other(open_study, "jpeg")
    expect(corner(visitor.page, "bl")).to_contain_text("Im 1 / 30  (frame 1 of 30)")
    whole(visitor.pane)
    visitor.press("ArrowDown", "ArrowDown")
    at(visitor, 3, 30)
    # Two decoders of a lossy format: chroma is interpolated differently at edges.
    difference = np.abs(drawn(visitor, ds.Rows, ds.Columns).astype(int) - pixel_array(ds, index=2).astype(int))
    assert np.percentile(difference, 99) <= 8


def test_frames_of_a_multi_frame_image(open_study):
    visitor, ds = other(open_study, "multi-frame")
    frames = ds.pixel_array
    at(visitor, 1, 10)
    for number in (1, 2, 3):
        at(visitor, number, 10)
        values = frames[number - 1].astype(float)
        low, high = values.min(), values.max()
        same(drawn(visitor, 64, 64), grey(values, (low + high + 1) / 2, high - low + 1))
        visitor.press("ArrowDown")


def test_windows_that_the_image_names(open_study):
    visitor, ds = other(open_study, "overlay")
    whole(visitor.pane)
    center, width = float(ds.WindowCenter[0]), float(ds.WindowWidth[0])
    values = apply_modality_lut(ds.pixel_array, ds)
    same(drawn(visitor, ds.Rows, ds.Columns), grey(values, center, width))


@pytest.mark.parametrize("name", ["modality table", "VOI table"])
def test_tables_that_the_image_brings(open_study, name):
    visitor, ds = other(open_study, name)
    whole(visitor.pane)
    visitor.page.set_viewport_size({"width": 1280, "height": 900})
    values = apply_modality_lut(ds.pixel_array, ds)
    if name == "VOI table":
        top = 2 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
        wanted = np.rint(apply_voi_lut(values, ds).astype(float) / top * 255).astype(np.uint8)
    else:
        assert "ModalityLUTSequence" in ds
        window = ds.get("WindowCenter"), ds.get("WindowWidth")
        low, high = float(values.min()), float(values.max())
        center, width = map(float, window) if window[0] else ((low + high + 1) / 2, high - low + 1)
        wanted = grey(values.astype(float), center, width)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        wanted = 255 - wanted
    same(drawn(visitor, ds.Rows, ds.Columns), wanted, 1)


def test_what_is_not_coded_is_shown_all_the_same(open_study):
    visitor, ds = other(open_study, "dose")
    at(visitor, 1, 15)
    values = ds.pixel_array[0].astype(float) * float(ds.get("RescaleSlope", 1))
    low, high = values.min(), values.max()
    same(drawn(visitor, 10, 10), grey(values, (low + high + 1) / 2, high - low + 1), 1)
    visitor, ds = other(open_study, "bits")
    whole(visitor.pane)
    visitor.page.set_viewport_size({"width": 1280, "height": 900})
    bits = ds.pixel_array
    same(drawn(visitor, ds.Rows, ds.Columns), grey(bits.astype(float), 1, 2))


def test_what_a_browser_cannot_show_is_said(open_study):
    visitor, ds = other(open_study, "jpeg-2000")
    assert OTHERS["jpeg-12"].SeriesInstanceUID == ds.SeriesInstanceUID
    notice = visitor.pane.locator(".pane-notice")
    said = set()
    for number, key in ((1, "Home"), (2, "End")):
        visitor.press(key)
        expect(corner(visitor.page, "bl")).to_contain_text(f"Im {number} / 2")
        expect(notice).to_contain_text("The original is at hand: radmesh get.")
        said.add(notice.locator(".pane-title").text_content() or "")
    assert said == {"Browsers cannot show JPEG 2000.", "Browsers cannot show JPEG of more than 8 bits."}


def test_a_document_has_no_picture(open_study):
    visitor, _ = other(open_study, "document")
    expect(visitor.pane.locator(".pane-notice")).to_contain_text("This has no picture")
    expect(visitor.page.locator(".series .thumb img")).to_have_count(0)


def test_what_comes_later_is_there_by_itself(open_study, store):
    store(710, PatientName="Late^Image", InstanceNumber=1)
    visitor = open_study("2.25.77.710")
    at(visitor, 1, 1)
    store(710, PatientName="Late^Image", SOPInstanceUID="2.25.77.710.1.2", InstanceNumber=2)
    expect(corner(visitor.page, "bl")).to_contain_text("Im 1 / 2")
    visitor.press("ArrowDown")
    at(visitor, 2, 2)
