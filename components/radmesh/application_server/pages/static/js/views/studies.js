// The study list: what came, how it stands, and what to open.

import { get, state, studyPath } from "../api.js";
import { fill, h, icon, problem } from "../dom.js";
import { onChange, paced } from "../events.js";
import * as format from "../format.js";
import * as keys from "../keys.js";
import * as badges from "./badges.js";

const PAGE = 50;
const MODALITIES = ["CR", "CT", "DX", "MG", "MR", "NM", "OT", "PT", "RF", "SC", "SR", "US", "XA"];
const VERIFICATIONS = ["VERIFIED", "UNVERIFIED", "PENDING", "HELD", "NOT_REQUIRED"];
const READINGS = ["NEW", "DICTATED", "TRANSCRIBED", "APPROVED", "ADDENDUM"];
const DAYS = [["", "Any date"], ["0", "Today"], ["1", "Since yesterday"], ["6", "7 days"], ["29", "30 days"], ["range", "From … to …"]];
const EMPTY = { text: "", modality: "", days: "", from: "", to: "", verification: "", reading: "" };

const day = (back) => {
  const when = new Date();
  when.setDate(when.getDate() - back);
  return `${when.getFullYear()}${String(when.getMonth() + 1).padStart(2, "0")}${String(when.getDate()).padStart(2, "0")}`;
};

/** What the door is asked for. */
function queryOf(filter) {
  const dates = filter.days === "range" ? [filter.from, filter.to].map((d) => d.replaceAll("-", "")) : filter.days ? [day(Number(filter.days)), ""] : ["", ""];
  const range = dates[0] === dates[1] ? dates[0] : dates.join("-");
  return { text: filter.text, modality: filter.modality, study_date: range, verification: filter.verification, reading: filter.reading };
}

export function studies(box, { go, mayReconcile }) {
  // What was searched for is in the history's entry, never in the address: addresses end up in logs.
  const kept = history.state?.studies ?? {};
  let filter = { ...EMPTY, ...kept.filter };
  let pages = kept.pages ?? [""];
  let chosen = kept.chosen ?? "";
  let rows = [];
  let next = "";
  let asked = 0;
  let closed = false;
  let loaded = false;

  const search = h("input", { type: "search", id: "search", placeholder: "Name, patient ID or accession number", "aria-label": "Search studies", maxlength: 128, value: filter.text });
  const select = (name, label, options) => h("select", { "aria-label": label, data: { filter: name }, on: { change: (e) => change({ [name]: e.target.value }) } }, options.map(([value, text]) => h("option", { value, selected: filter[name] === value }, text)));
  const modality = select("modality", "Modality", [["", "Any modality"], ...MODALITIES.map((m) => [m, m])]);
  const days = select("days", "Study date", DAYS);
  const verification = select("verification", "Verification", [["", "Any verification"], ...VERIFICATIONS.filter((v) => v !== "HELD" || mayReconcile).map((v) => [v, format.words(v)])]);
  const reading = select("reading", "Reading", [["", "Any reading"], ...READINGS.map((v) => [v, format.words(v)])]);
  const dateInput = (name, label) => h("input", { type: "date", "aria-label": label, value: filter[name], on: { change: (e) => change({ [name]: e.target.value }) } });
  const range = h("span", { class: "range" }, dateInput("from", "From"), "–", dateInput("to", "To"));
  const clear = h("button", { type: "button", class: "button quiet", on: { click: () => reset() } }, icon("close"), "Clear");
  const summary = h("span", { class: "summary", role: "status" });
  const body = h("tbody");
  const table = h(
    "table",
    { class: "list", "aria-label": "Studies" },
    h("thead", null, h("tr", null, ["Patient", "Study", "Modality", "Description", "Images", "Verification", "Reading"].map((text) => h("th", { scope: "col" }, text)))),
    body,
  );
  const message = h("div", { class: "list-message" });
  const previous = h("button", { type: "button", class: "button", on: { click: () => turn(-1) } }, icon("back"), "Newer");
  const following = h("button", { type: "button", class: "button", on: { click: () => turn(1) } }, "Older");
  const scroller = h("div", { class: "list-scroll" }, table, message);
  fill(
    box,
    h("div", { class: "filters", role: "search" }, h("label", { class: "search" }, icon("search"), search), modality, days, range, verification, reading, clear, summary),
    scroller,
    h("div", { class: "pager" }, previous, h("span", { class: "page-number" }), following),
  );

  let typed = 0;
  search.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => change({ text: search.value.trim() }), 250);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      clearTimeout(typed);
      change({ text: search.value.trim() }).then(() => focusRow(0));
    } else if (event.key === "ArrowDown") focusRow(0);
    else return;
    event.preventDefault();
  });

  function remember() {
    history.replaceState({ ...history.state, studies: { filter, pages, chosen } }, "");
  }

  function change(fields) {
    const before = JSON.stringify(filter);
    filter = { ...filter, ...fields };
    if (JSON.stringify(filter) === before) return Promise.resolve();
    pages = [""];
    remember();
    return load();
  }

  function reset() {
    search.value = "";
    for (const control of [modality, days, verification, reading]) control.value = "";
    return change(EMPTY);
  }

  function turn(by) {
    if (by > 0 && next) pages = [...pages, next];
    else if (by < 0 && pages.length > 1) pages = pages.slice(0, -1);
    else return;
    remember();
    load().then(() => {
      scroller.scrollTop = 0;
      focusRow(0);
    });
  }

  async function load() {
    const mine = ++asked;
    range.hidden = filter.days !== "range";
    const filtered = Object.entries(filter).some(([name, value]) => value !== EMPTY[name]);
    clear.hidden = !filtered;
    try {
      const answer = await get("studies", { ...queryOf(filter), limit: PAGE, cursor: pages.at(-1) });
      if (mine !== asked || closed) return;
      rows = answer.studies ?? [];
      next = answer.next_cursor ?? "";
      loaded = true;
      render();
      fill(message, rows.length ? null : nothing(filtered));
    } catch (error) {
      if (mine !== asked || closed || error.name === "AbortError") return;
      // What was there stays: it is old, and says so.
      fill(message, problem(error, load));
      summary.textContent = loaded ? "Not up to date" : "";
      if (!loaded) table.hidden = true;
    }
  }

  function nothing(filtered) {
    if (pages.length > 1) return h("div", { class: "nothing" }, icon("image"), h("p", null, "No more studies."));
    return filtered
      ? h("div", { class: "nothing" }, icon("search"), h("p", null, "No study matches."), h("p", { class: "faint" }, "A star stands for any letters, as in MEYER*. What is held is shown to technologists and administrators only."), h("button", { type: "button", class: "button", on: { click: reset } }, "Show every study"))
      : h("div", { class: "nothing" }, icon("image"), h("p", null, "No studies yet."), h("p", { class: "faint" }, "Send some from a modality (C-STORE; the status page says where), or with: radmesh store FILE …"));
  }

  function render() {
    table.hidden = !rows.length;
    const focused = document.activeElement?.closest?.("tr")?.dataset.uid;
    // Rows that did not change stay as they are, so that nothing flickers under the pointer.
    const old = new Map([...body.rows].map((row) => [row.dataset.uid, row]));
    fill(body, rows.map((study) => {
      const row = old.get(study.study_instance_uid);
      const text = JSON.stringify(study);
      if (row?.text === text) return row;
      const made = rowOf(study);
      made.text = text;
      if (row) made.classList.add("changed");
      return made;
    }));
    if (!rows.some((s) => s.study_instance_uid === chosen)) chosen = rows[0]?.study_instance_uid ?? "";
    mark();
    if (focused) rowOfUid(focused)?.focus({ preventScroll: true });
    const page = pages.length;
    summary.textContent = rows.length ? `${page > 1 ? `Page ${page}: ` : ""}${format.count(rows.length, "study", "studies")}${next ? ", and more" : ""}` : "";
    box.querySelector(".page-number").textContent = `Page ${page}`;
    previous.disabled = page < 2;
    following.disabled = !next;
    box.querySelector(".pager").hidden = page < 2 && !next;
  }

  function rowOf(study) {
    const name = format.personName(study.patient_name) || "No name";
    const about = [format.SEX[study.patient_sex], format.age(study.patient_birth_date, study.study_date)].filter(Boolean).join(", ");
    return h(
      "tr",
      { data: { uid: study.study_instance_uid, verification: state(study.verification) }, tabindex: "-1", on: { click: open, dblclick: open, focus: () => choose(study.study_instance_uid) } },
      h("td", { class: "patient" }, h("a", { href: `/${studyPath(study.study_instance_uid)}`, tabindex: "-1" }, name), study.corrected ? h("span", { class: "tag", title: "Demographics are corrected; the stored images are as they came" }, "corrected") : null, h("span", { class: "sub" }, [study.patient_id || "no ID", about].filter(Boolean).join(" · "))),
      h("td", null, h("span", { class: "date" }, format.date(study.study_date) || "no date"), h("span", { class: "sub" }, [format.time(study.study_time), study.accession_number].filter(Boolean).join(" · "))),
      h("td", { class: "modality" }, (study.modalities ?? []).join(" ")),
      h("td", { class: "description" }, study.study_description || h("span", { class: "faint" }, "–"), h("span", { class: "sub" }, (study.stations ?? []).join(", "))),
      h("td", { class: "images" }, h("span", null, Number(study.instance_count ?? 0).toLocaleString("en")), badges.curated(study), h("span", { class: "sub" }, [format.count(study.series_count ?? 0, "series", "series"), study.defective_count ? format.count(study.defective_count, "defect") : ""].filter(Boolean).join(" · "))),
      h("td", null, badges.verification(study), h("span", { class: "sub" }, badges.acquisition(study))),
      h("td", null, badges.reading(study), study.report_version > 1 ? h("span", { class: "sub" }, `version ${study.report_version}`) : null),
    );
    function open(event) {
      if (event.target.closest("a") || getSelection()?.toString()) return;
      choose(study.study_instance_uid);
      go(`/${studyPath(study.study_instance_uid)}`);
    }
  }

  const rowOfUid = (uid) => [...body.rows].find((row) => row.dataset.uid === uid);

  function choose(uid) {
    chosen = uid;
    mark();
    remember();
  }

  function mark() {
    for (const row of body.rows) {
      const is = row.dataset.uid === chosen;
      row.classList.toggle("chosen", is);
      row.tabIndex = is ? 0 : -1;
    }
  }

  function focusRow(index) {
    const row = body.rows[Math.max(0, Math.min(body.rows.length - 1, index))];
    row?.focus();
    row?.scrollIntoView({ block: "nearest" });
  }

  const move = (by) => {
    const at = [...body.rows].findIndex((row) => row.dataset.uid === chosen);
    const focused = document.activeElement?.closest?.("tr");
    focusRow(focused ? at + by : at);
  };
  const unbind = keys.bind("Study list", [
    { keys: ["ArrowDown", "j"], label: "Next study", run: () => move(1) },
    { keys: ["ArrowUp", "k"], label: "Previous study", run: () => move(-1) },
    { keys: ["Home"], label: "First study", run: () => focusRow(0) },
    { keys: ["End"], label: "Last study", run: () => focusRow(Infinity) },
    { keys: ["Enter", "o"], label: "Open the study", run: () => (chosen ? go(`/${studyPath(chosen)}`) : false) },
    { keys: ["PageDown", "n"], label: "Older studies", run: () => turn(1) },
    { keys: ["PageUp", "b"], label: "Newer studies", run: () => turn(-1) },
    { keys: ["/"], label: "Search", run: () => search.select() },
    { keys: ["Escape"], label: "Clear the search", typing: true, run: () => (document.activeElement === search || filter.text ? (reset(), focusRow(0)) : false) },
    { keys: ["r"], label: "Read again", run: () => load() },
  ]);
  const refresh = paced(load, 700);
  const unlisten = onChange(() => refresh());
  load().then(() => !closed && document.activeElement === document.body && rowOfUid(chosen)?.focus());
  return () => {
    closed = true;
    clearTimeout(typed);
    refresh.stop();
    unlisten();
    unbind();
  };
}
