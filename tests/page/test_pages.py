"""The pages on a whole cluster: signing in, the list, holds, status; what changes elsewhere shows by itself."""

import os
import re
import signal

import pytest
from browser_support import Visitor
from http_support import PASSWORD
from playwright.sync_api import Page, expect

from radmesh.api.database.v1 import database_pb2

# A page of the list has 50.
MANY = 55
EVIL = "<img src onerror>^<b>Bobby"


@pytest.fixture(scope="module")
def stored(store) -> None:
    store(*range(1, MANY + 1), PatientName="Many^Person")
    store(901, PatientName="Lovelace^Ada", PatientSex="F", PatientBirthDate="19601210", StudyDate="20260305")
    store(902, PatientName=EVIL, PatientID="<i>901", StudyDate="20260304", StudyDescription="<script>alert(1)</script>")


@pytest.fixture
def radiologist(cluster, people, stored, visit) -> Visitor:
    return visit(cluster.ready["urls"]["http"]).sign_in("radiologist")


def rows(page: Page):
    return page.get_by_role("table", name="Studies").locator("tbody tr")


def test_signing_in_and_out(cluster, people, stored, visit):
    visitor = visit(cluster.ready["urls"]["http"])
    page = visitor.open("/status")
    expect(page).to_have_url(re.compile(r"/login\?to=/status$"))
    expect(page.get_by_label("User")).to_be_focused()
    page.keyboard.type("radiologist")
    visitor.press("Tab")
    page.keyboard.type("wrong password")
    visitor.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Check name and password.")
    expect(page.get_by_label("Password")).to_be_focused()
    page.keyboard.type(PASSWORD)
    visitor.press("Enter")
    # It goes on where it was wanted.
    expect(page).to_have_url(re.compile(r"/status$"))
    expect(page.get_by_role("heading", name="Cluster")).to_be_visible()
    # The session is in a cookie that no script can read.
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("User")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("User")).to_be_visible()
    assert not page.get_by_role("heading", name="Cluster").count()


@pytest.mark.parametrize("to", ["//evil.example/", "/\\evil.example", "https://evil.example/", "javascript:alert(1)"])
def test_after_signing_in_nobody_is_sent_elsewhere(cluster, people, stored, visit, to):
    visitor = visit(cluster.ready["urls"]["http"])
    page = visitor.open(f"/login?to={to}")
    page.get_by_label("User").fill("radiologist")
    page.get_by_label("Password").fill(PASSWORD)
    visitor.press("Enter")
    expect(rows(page).first).to_be_visible()
    assert page.url == f"{visitor.url}/"


def test_the_list_tells_what_there_is(radiologist):
    page = radiologist.page
    row = rows(page).filter(has_text="Lovelace")
    expect(row).to_contain_text("Lovelace, Ada")
    expect(row).to_contain_text("P901 · female, 65 y")
    expect(row).to_contain_text("2026-03-05")
    expect(row).to_contain_text("A901")
    expect(row).to_contain_text("CT")
    expect(row).to_contain_text("unverified")
    expect(row).to_contain_text("no order")
    expect(row.locator("td").last).to_have_text("new")
    expect(page.get_by_role("link", name="Held", exact=True)).to_have_count(0)


def test_text_of_images_is_text(radiologist):
    page = radiologist.page
    row = rows(page).filter(has_text="Bobby")
    expect(row).to_contain_text("<img src onerror>, <b>Bobby")
    expect(row).to_contain_text("<script>alert(1)</script>")
    row.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("<img src onerror>, <b>Bobby")
    assert not page.locator("main b, main img[onerror], main script").count()


def test_the_keyboard_alone(radiologist):
    page = radiologist.page
    expect(rows(page).first).to_be_focused()
    radiologist.press("ArrowDown", "ArrowDown", "ArrowUp")
    expect(rows(page).nth(1)).to_be_focused()
    radiologist.press("j", "k", "End")
    expect(rows(page).last).to_be_focused()
    radiologist.press("Home", "/")
    expect(page.get_by_label("Search studies")).to_be_focused()
    page.keyboard.type("lovel")
    radiologist.press("Enter")
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_be_focused()
    radiologist.press("Enter")
    expect(page.get_by_role("heading", name="Lovelace, Ada")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/studies/2\.25\.77\.901$"))
    radiologist.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_contain_text("Window presets")
    radiologist.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    radiologist.press("Escape")
    expect(rows(page).first).to_be_visible()
    # Back by the browser: the search is as it was, and is in no address.
    page.go_back()
    expect(page.get_by_role("heading", name="Lovelace, Ada")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Search studies")).to_have_value("lovel")
    expect(rows(page)).to_have_count(1)
    assert "lovel" not in page.url
    radiologist.press("Escape")
    expect(rows(page)).to_have_count(50)


@pytest.mark.parametrize(
    ("text", "found"), [("A901", "Lovelace"), ("P901", "Lovelace"), ("ADA", "Lovelace"), ("2.25.77.901", "Lovelace")]
)
def test_whatever_is_typed_is_found(radiologist, text, found):
    page = radiologist.page
    page.get_by_label("Search studies").fill(text)
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text(found)


def test_filters(radiologist):
    page = radiologist.page
    page.get_by_label("Modality").select_option("MR")
    expect(page.get_by_text("No study matches.")).to_be_visible()
    page.get_by_role("button", name="Show every study").click()
    expect(rows(page)).to_have_count(50)
    page.get_by_label("Study date").select_option("range")
    page.get_by_label("From", exact=True).fill("2026-03-05")
    expect(rows(page)).to_have_count(1)
    page.get_by_label("From", exact=True).fill("2026-03-01")
    expect(rows(page)).to_have_count(2)
    page.get_by_label("To", exact=True).fill("2026-03-04")
    expect(rows(page)).to_contain_text(["Bobby"])
    page.get_by_label("Reading").select_option("APPROVED")
    expect(page.get_by_text("No study matches.")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(rows(page)).to_have_count(50)


def test_pages_of_the_list(radiologist):
    page = radiologist.page
    expect(rows(page)).to_have_count(50)
    expect(page.get_by_text("50 studies, and more")).to_be_visible()
    first = rows(page).first.text_content()
    radiologist.press("n")
    expect(page.get_by_text("Page 2: ")).to_be_visible()
    rest = rows(page).count()
    assert rest >= MANY + 2 - 50
    expect(page.get_by_role("button", name="Older")).to_be_disabled()
    page.get_by_role("button", name="Newer").click()
    expect(rows(page)).to_have_count(50)
    assert rows(page).first.text_content() == first


def test_what_comes_is_there_by_itself(radiologist, store):
    page = radiologist.page
    expect(rows(page)).to_have_count(50)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/api/v1/studies" in request.url else None)
    store(903, PatientName="Hopper^Grace", StudyDate="20260401")
    expect(rows(page).filter(has_text="Hopper")).to_be_visible()
    # By the event, not by asking again and again.
    assert asked


def test_the_theme_is_the_systems_or_the_chosen_one(cluster, people, stored, visit):
    light = visit(cluster.ready["urls"]["http"], color_scheme="light").sign_in("radiologist").page
    dark = visit(cluster.ready["urls"]["http"], color_scheme="dark").sign_in("radiologist").page

    def ground(page: Page) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert ground(light) != ground(dark)
    wanted = ground(light)
    dark.get_by_role("button", name="Theme: as the system").click()
    assert ground(dark) == wanted
    dark.reload()
    expect(rows(dark).first).to_be_visible()
    assert ground(dark) == wanted
    dark.get_by_role("button", name="Theme: light").click()
    light.get_by_role("button", name="Theme: as the system").click()
    light.get_by_role("button", name="Theme: light").click()
    assert ground(light) == ground(dark) != wanted


def test_the_cluster_as_it_is(radiologist):
    page = radiologist.page
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("heading", name="Components")).to_be_visible()
    for name in ("database-server", "archive-server-0", "application-server"):
        expect(page.locator(".component").filter(has_text=name).first).to_contain_text("serving")
    page.locator(".component summary").filter(has_text="archive-server-0").click()
    expect(page.locator(".component[open] dt").first).to_be_visible()
    expect(page.get_by_role("table", name="Stores")).to_contain_text("web cache")


def test_a_role_that_may_nothing_is_told_so(cluster, people, stored, visit):
    page = visit(cluster.ready["urls"]["http"]).sign_in("none").page
    expect(page.get_by_role("alert")).to_contain_text("Ask an administrator for a role.")


def test_what_is_held_is_reconciled(cluster, people, stored, store, visit):
    url = cluster.ready["urls"]["http"]
    radiologist = visit(url).sign_in("radiologist").page
    expect(rows(radiologist)).to_have_count(50)
    store(990, by="tom", PatientName="Held^Hannah", StudyDate="20260501")
    technologist = visit(url).sign_in("technologist").page
    row = rows(technologist).filter(has_text="Held, Hannah")
    expect(row).to_contain_text("held")
    expect(row).to_contain_text("no order")
    technologist.get_by_role("link", name="Held", exact=True).click()
    card = technologist.locator(".hold").filter(has_text="Held, Hannah")
    expect(card).to_contain_text("user:tom")
    expect(card).to_contain_text("It heals by itself when its order comes.")
    expect(card.get_by_role("button", name="Release …")).to_have_count(0)
    card.get_by_role("button", name="Verify again").click()
    expect(technologist.get_by_text("Still held: no order")).to_be_visible()
    # Nobody else sees it, neither in the list nor by its address.
    assert not rows(radiologist).filter(has_text="Held").count()
    other = visit(url).sign_in("radiologist")
    other.open("/studies/2.25.77.990")
    expect(other.page.get_by_role("alert")).to_contain_text("STUDY_NOT_FOUND")
    other.open("/holds")
    expect(other.page.get_by_role("alert")).to_contain_text("ROLE_REFUSED")
    # An administrator may answer for it, with a reason.
    administrator = visit(url).sign_in("administrator").page
    administrator.goto("/holds")
    card = administrator.locator(".hold").filter(has_text="Held, Hannah")
    card.get_by_role("button", name="Release …").click()
    dialog = administrator.get_by_role("dialog", name="Release without a match")
    dialog.get_by_label("Reason").fill("the RIS is being replaced")
    dialog.get_by_role("button", name="Release", exact=True).click()
    expect(administrator.get_by_text("Nothing is held.")).to_be_visible()
    # It is there for everybody, by itself, and says how.
    row = rows(radiologist).filter(has_text="Held, Hannah")
    expect(row).to_contain_text("unverified")
    expect(row).to_contain_text("released by a person")
    expect(technologist.locator(".hold")).to_have_count(0)
    administrator.goto("/studies/2.25.77.990")
    administrator.get_by_role("tab", name="History").click()
    expect(administrator.locator(".history")).to_contain_text("administrator")


def test_a_tab_that_nobody_looks_at_gives_its_connection_back(radiologist, store):
    page = radiologist.page
    live = page.locator(".live")
    expect(live).to_have_text("live")
    look = """state => {
        Object.defineProperty(document, 'visibilityState', {value: state, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    page.evaluate(look, "hidden")
    expect(live).to_have_text("reconnecting …")
    store(905, PatientName="Noether^Emmy", StudyDate="20260701")
    page.evaluate(look, "visible")
    expect(live).to_have_text("live")
    expect(rows(page).filter(has_text="Noether")).to_be_visible()


def report_of(page: Page):
    return page.get_by_role("textbox", name="Report")


def test_reports_are_seen_by_everybody_at_once(cluster, people, stored, store, visit):
    store(960, PatientName="Curie^Irene")
    people.add("rad", "radiologist")
    url = cluster.ready["urls"]["http"]
    writer, reader, other, clerk = (visit(url).sign_in(user) for user in ("radiologist", "rad", "rad", "technologist"))
    listed = rows(reader.page).filter(has_text="Curie, Irene")
    expect(listed.locator("td").last).to_have_text("new")
    for visitor in (writer, other, clerk):
        visitor.open("/studies/2.25.77.960")
    expect(clerk.page.get_by_text("No report yet.")).to_be_visible()
    expect(report_of(clerk.page)).to_have_count(0)
    expect(report_of(other.page)).to_be_enabled()
    # By the keyboard alone; keys that mean something elsewhere are letters here.
    expect(report_of(writer.page)).to_be_enabled()
    writer.press("d")
    expect(report_of(writer.page)).to_be_focused()
    writer.page.keyboard.type("No fracture. i r 0 ?")
    expect(writer.page.get_by_text("Not saved.")).to_be_visible()
    writer.press("Control+s")
    # The list, another radiologist's editor, and who only reads: nobody touches these pages.
    expect(listed.locator("td").last).to_have_text("dictated")
    expect(report_of(other.page)).to_have_value("No fracture. i r 0 ?")
    expect(clerk.page.locator(".report-version")).to_contain_text("No fracture. i r 0 ?")
    expect(clerk.page.locator(".report-version")).to_contain_text("draft")
    # Both go on: nobody's words are lost.
    report_of(other.page).fill("No fracture. Old scar.")
    report_of(writer.page).fill("No fracture. Effusion.")
    writer.press("Control+s")
    expect(other.page.get_by_role("alert")).to_contain_text("radiologist has saved this draft meanwhile.")
    expect(other.page.get_by_role("alert")).to_contain_text("No fracture. Effusion.")
    expect(report_of(other.page)).to_have_value("No fracture. Old scar.")
    expect(other.page.get_by_role("button", name="Save draft")).to_be_disabled()
    other.page.get_by_role("button", name="Keep mine").click()
    other.page.get_by_role("button", name="Save draft").click()
    expect(report_of(writer.page)).to_have_value("No fracture. Old scar.")
    # Approved, after it was asked whether it is meant.
    writer.page.get_by_role("button", name="Approve").click()
    dialog = writer.page.get_by_role("dialog", name="Approve the report")
    expect(dialog).to_contain_text("Curie, Irene, P960")
    expect(dialog).to_contain_text("No fracture. Old scar.")
    dialog.get_by_role("button", name="Approve").click()
    expect(listed.locator("td").last).to_have_text("approved")
    expect(clerk.page.locator(".report-version")).to_contain_text("approved")
    expect(other.page.get_by_role("heading", name="Addendum")).to_be_visible()
    # What comes later is an addendum.
    report_of(other.page).fill("Compared with 2019: unchanged.")
    other.page.get_by_role("button", name="Approve").click()
    other.page.get_by_role("dialog").get_by_role("button", name="Approve").click()
    expect(clerk.page.locator(".report-version")).to_have_count(2)
    expect(clerk.page.locator(".report-version").first).to_contain_text("Addendum 1")
    expect(writer.page.locator(".report-version").first).to_contain_text("Compared with 2019: unchanged.")
    clerk.page.get_by_role("tab", name="History").click()
    for move in ("reading new → dictated", "reading dictated → approved"):
        expect(clerk.page.locator(".history")).to_contain_text(move)


def test_what_is_not_saved_is_not_left_by_accident(radiologist, store):
    store(961, PatientName="Unsaved^Text")
    page = radiologist.open("/studies/2.25.77.961")
    expect(report_of(page)).to_be_enabled()
    report_of(page).fill("half a sent")
    answers = iter([False, True])
    page.on("dialog", lambda dialog: dialog.accept() if next(answers) else dialog.dismiss())
    page.get_by_role("link", name="Status").click()
    expect(report_of(page)).to_have_value("half a sent")
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("heading", name="Cluster")).to_be_visible()


def test_a_session_that_ended_elsewhere_ends_here(cluster, people, stored, visit):
    people.add("leaver", "radiologist")
    visitor = visit(cluster.ready["urls"]["http"]).sign_in("leaver")
    expect(rows(visitor.page).first).to_be_visible()
    cluster.inside("AccountService").DeleteUser(database_pb2.DeleteUserRequest(name="leaver"))
    # The event stream ends, and with it the page, though nobody touches it.
    expect(visitor.page.get_by_label("User")).to_be_visible()
    expect(visitor.page.get_by_text("The session has ended: sign in again")).to_be_visible()
    assert not rows(visitor.page).count()


def test_a_door_that_was_away_is_waited_for(cluster, people, stored, store, visit):
    """Keep this the last: it kills the Application Server."""
    page = visit(cluster.ready["urls"]["http"]).sign_in("radiologist").page
    live = page.locator(".live")
    expect(live).to_have_text("live")
    expect(rows(page)).to_have_count(50)
    [pid] = cluster.ready["pids"]["application-server"]
    os.kill(pid, signal.SIGKILL)
    expect(live).to_have_text("reconnecting …")
    # What was there stays to be read meanwhile.
    assert rows(page).count() == 50
    expect(live).to_have_text("live")
    store(904, PatientName="Curie^Marie", StudyDate="20260601")
    expect(rows(page).filter(has_text="Curie")).to_be_visible()
