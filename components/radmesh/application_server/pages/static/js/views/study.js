// A study: its series, their pictures in one to four panes, its report.

import { ApiError, dicomWeb, get, request, state, studyPath } from "../api.js";
import { fill, h, icon, iconButton, problem, say, sentence } from "../dom.js";
import { onChange, paced } from "../events.js";
import * as format from "../format.js";
import * as keys from "../keys.js";
import { Frames } from "../viewer/frames.js";
import { picturesOf } from "../viewer/metadata.js";
import { TOOLS, Viewport } from "../viewer/viewport.js";
import * as badges from "./badges.js";
import { askOverride, release } from "./holds.js";
import { sidebar } from "./report.js";

const LAYOUTS = [1, 2, 4];
const DOCUMENTS = new Set(["DOC", "KO", "PR", "SR", "ECG", "RTPLAN", "RTSTRUCT"]);

export function study(box, { person, go, match: [uid], mayReconcile }) {
  const frames = new Frames();
  let closed = false;
  let detail = null;
  let tool = "window";
  let overlay = true;
  let layout = 1;
  let panes = [];
  let active = 0;
  // Series Instance UID → {pictures, message}, or a promise of it.
  const stacks = new Map();
  const ends = [];

  const banner = h("header", { class: "patient-banner" });
  const strip = h("div", { class: "series-strip", role: "listbox", "aria-label": "Series" });
  const toolbar = h("div", { class: "toolbar", role: "toolbar", "aria-label": "Viewer" });
  const grid = h("div", { class: "panes" });
  const side = h("aside", { class: "side", "aria-label": "Report and history" });
  const body = h("div", { class: "study-body" }, strip, h("div", { class: "stage" }, toolbar, grid), side);
  fill(box, banner, body);

  const context = {
    get study() {
      return { ...detail.study, verification: state(detail.study.verification) };
    },
    tool: () => tool,
    overlay: () => overlay,
  };
  const pane = () => panes[active];

  // -- data ----------------------------------------------------------------------------------------------------------

  async function load() {
    let answer;
    try {
      answer = await get(studyPath(uid), { instances: false });
    } catch (error) {
      if (closed) return;
      // A study that became held, or was never there: what is on the screen must go.
      if (!detail || error.status === 404 || error.status === 403) {
        frames.close();
        for (const one of panes) one.close();
        panes = [];
        detail = null;
        fill(box, h("div", { class: "alone" }, problem(error, error.status === 404 ? null : () => go(location.pathname, { replace: true })), h("p", null, h("a", { href: "/" }, "To the studies"))));
      } else say(error.message, "error");
      return;
    }
    if (closed) return;
    const before = detail;
    detail = { ...answer, study: answer.study ?? answer, series: answer.series ?? [] };
    document.title = `${format.personName(detail.study.patient_name) || "No name"} · radmesh`;
    renderBanner();
    renderStrip();
    if (!before) {
      setLayout(1);
      const opening = detail.series.find((s) => !DOCUMENTS.has(s.modality)) ?? detail.series[0];
      if (opening) open(opening);
      pane().element.focus({ preventScroll: true });
    } else refreshStacks();
    for (const one of panes) one.draw();
    report.update(detail.study);
  }

  /** What was made of each instance: SOP Instance UID → rendition with its frames. */
  const renditionsOf = (instances) => new Map(instances.filter((i) => i.rendition).map((i) => [i.sop_instance_uid, { ...i.rendition, frames: i.frames }]));

  async function stackOf(series) {
    let instances;
    try {
      ({ instances } = await get(`${studyPath(uid)}/series/${encodeURIComponent(series.series_instance_uid)}`));
    } catch (error) {
      return unavailable(series, error);
    }
    const renditions = renditionsOf(instances);
    const incomplete = renditions.size < instances.length;
    const pictured = [...renditions.values()].some((r) => state(r.state) !== "NONE");
    if (!pictured && incomplete) return { pictures: [], incomplete, message: { title: "Pictures are being made", text: `${format.count(instances.length, "image has", "images have")} arrived; the pictures appear by themselves.` } };
    if (!pictured) {
      const why = [...renditions.values()].find((r) => r.reason)?.reason ?? "NO_PIXEL_DATA";
      return { pictures: [], message: why === "NO_PIXEL_DATA" ? { title: "This has no picture", text: "It is no image: fetch it with radmesh get." } : { title: "This has no picture that can be shown", text: `${why}. The original is at hand: radmesh get.` } };
    }
    try {
      const response = await request(`${dicomWeb(uid, series.series_instance_uid)}/metadata`, { headers: { Accept: "application/dicom+json" } });
      const metadata = await response.json();
      const shown = metadata.filter((ds) => {
        const made = renditions.get(ds["00080018"]?.Value?.[0]);
        return !made || state(made.state) !== "NONE" || made.reason !== "NO_PIXEL_DATA";
      });
      const pictures = picturesOf(shown, uid, series.series_instance_uid, renditions);
      for (const picture of pictures)
        if (picture.rendition && state(picture.rendition.state) === "NONE") frames.cannot(picture);
      return { pictures, incomplete: incomplete || metadata.length < instances.length, message: pictures.length ? null : { title: "This has no picture" } };
    } catch (error) {
      return unavailable(series, error);
    }
  }

  function unavailable(series, error) {
    if (!(error instanceof ApiError)) throw error;
    const soon = error.status === 503 || error.status === 404;
    const action = h("button", { type: "button", class: "button", on: { click: () => reopen(series.series_instance_uid) } }, "Try again");
    return { pictures: [], incomplete: true, message: { title: soon ? "Pictures are being made" : sentence(error.message), text: soon ? "They appear by themselves." : sentence(error.remedy), action } };
  }

  function stack(series) {
    const key = series.series_instance_uid;
    const known = stacks.get(key);
    if (known) return known.promise;
    const entry = { count: series.instance_count, curated: detail.study.curated_count, incomplete: true, promise: stackOf(series) };
    entry.promise.then((made) => {
      entry.incomplete = Boolean(made.incomplete);
    });
    stacks.set(key, entry);
    return entry.promise;
  }

  function refreshStacks() {
    for (const series of detail.series) {
      const key = series.series_instance_uid;
      const known = stacks.get(key);
      if (!known || (known.count === series.instance_count && !(known.incomplete && known.curated !== detail.study.curated_count))) continue;
      stacks.delete(key);
      for (const one of panes) if (one.series?.series_instance_uid === key) open(series, one);
    }
    if (!panes.some((one) => one.series) && detail.series.length) open(detail.series[0]);
  }

  function reopen(key) {
    stacks.delete(key);
    const series = detail.series.find((s) => s.series_instance_uid === key);
    if (series) for (const one of panes) if (one.series?.series_instance_uid === key) open(series, one);
  }

  async function open(series, where = pane()) {
    const same = where.series?.series_instance_uid === series.series_instance_uid;
    where.opening = series.series_instance_uid;
    if (!same) where.show(series, [], { title: "Loading …" });
    markStrip();
    const { pictures, message } = await stack(series);
    // Another series may have been chosen meanwhile.
    if (closed || where.opening !== series.series_instance_uid || !panes.includes(where)) return;
    where.show(series, pictures, message);
    renderToolbar();
  }

  // -- what is around the pictures -----------------------------------------------------------------------------------

  function renderBanner() {
    const { study } = detail;
    const fact = (label, value) => (value ? h("div", { class: "fact" }, h("dt", null, label), h("dd", null, value)) : null);
    const held = state(study.verification) === "HELD";
    const text = JSON.stringify(study);
    if (banner.text === text) return;
    banner.text = text;
    fill(
      banner,
      h("a", { class: "icon-button", href: "/", title: "To the studies (Esc)", "aria-label": "To the studies" }, icon("back")),
      h("h1", null, format.personName(study.patient_name) || "No name"),
      h(
        "dl",
        { class: "facts" },
        fact("ID", study.patient_id),
        fact("Born", [format.date(study.patient_birth_date), format.age(study.patient_birth_date, study.study_date)].filter(Boolean).join(", ")),
        fact("Sex", format.SEX[study.patient_sex] ?? study.patient_sex),
        fact("Study", [format.date(study.study_date), format.time(study.study_time), study.study_description].filter(Boolean).join(" ")),
        fact("Accession", study.accession_number),
        fact("Referrer", format.personName(study.referring_physician_name)),
      ),
      h("div", { class: "banner-badges" }, badges.curated(study), badges.verification(study), badges.reading(study)),
      held && mayReconcile
        ? h(
            "div",
            { class: "actions" },
            h("button", { type: "button", class: "button", on: { click: again } }, icon("reset"), "Verify again"),
            person.role === "administrator" ? h("button", { type: "button", class: "button danger", on: { click: () => askOverride(detail.study, load) } }, icon("lock"), "Release …") : null,
          )
        : null,
      iconButton("report", "Report (D)", () => toggleSide(), { "aria-expanded": String(!side.hidden), data: { action: "side" } }),
    );
  }

  async function again(event) {
    event.currentTarget.disabled = true;
    try {
      await release(uid);
    } catch (error) {
      say(`${sentence(error.message)} ${sentence(error.remedy)}`, "error");
    }
    await load();
  }

  function renderStrip() {
    const old = new Map([...strip.children].map((item) => [item.dataset.uid, item]));
    fill(strip, detail.series.map((series) => {
      const key = series.series_instance_uid;
      const known = old.get(key);
      // A thumbnail that could not be had is asked for again when more pictures were made.
      const text = JSON.stringify([series.series_number, series.series_description, series.instance_count, known?.querySelector("img") ? "" : detail.study.curated_count]);
      if (known?.text === text) return known;
      const picture = h("span", { class: "thumb" }, known?.querySelector("img") ?? thumbnail(series));
      const item = h(
        "button",
        { type: "button", class: "series", role: "option", data: { uid: key }, on: { click: () => choose(key) } },
        picture,
        h("span", { class: "series-text" }, h("strong", null, [series.series_number, series.modality].filter(Boolean).join(" · ")), h("span", null, series.series_description || series.body_part_examined || ""), h("span", { class: "faint" }, format.count(series.instance_count ?? 0, "image"))),
      );
      item.text = text;
      return item;
    }));
    markStrip();
    if (!detail.series.length) fill(strip, h("p", { class: "faint" }, "No series."));
  }

  function thumbnail(series) {
    const image = h("img", { src: `${dicomWeb(uid, series.series_instance_uid)}/thumbnail?viewport=128,128`, alt: "", loading: "lazy", decoding: "async", width: 64, height: 64 });
    image.addEventListener("error", () => image.replaceWith(icon(DOCUMENTS.has(series.modality) ? "report" : "image")), { once: true });
    return image;
  }

  function markStrip() {
    for (const item of strip.children) {
      if (!item.dataset.uid) continue;
      const here = panes.findIndex((one) => (one.opening ?? one.series?.series_instance_uid) === item.dataset.uid);
      item.setAttribute("aria-selected", String(here >= 0 && here === active));
      item.classList.toggle("elsewhere", here >= 0 && here !== active);
    }
  }

  function choose(key) {
    const series = detail?.series.find((s) => s.series_instance_uid === key);
    if (series) open(series);
  }

  function stepSeries(by) {
    const at = detail.series.findIndex((s) => s.series_instance_uid === pane().series?.series_instance_uid);
    const to = detail.series[at + by];
    if (!to) return;
    open(to);
    strip.children[at + by]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function setLayout(count) {
    layout = count;
    while (panes.length > count) panes.pop().close();
    while (panes.length < count) {
      const one = new Viewport(frames, context, { changed: () => one === pane() && renderToolbar(), focus: () => activate(panes.indexOf(one)) });
      panes.push(one);
    }
    active = Math.min(active, count - 1);
    grid.dataset.layout = String(count);
    fill(grid, panes.map((one) => one.element));
    // New panes take the series that are not shown yet.
    const shown = new Set(panes.map((one) => one.opening ?? one.series?.series_instance_uid));
    for (const one of panes)
      if (!one.opening) {
        const next = detail.series.find((s) => !shown.has(s.series_instance_uid));
        if (next && count > 1) {
          shown.add(next.series_instance_uid);
          open(next, one);
        } else one.draw();
      }
    activate(active);
  }

  function activate(index) {
    if (index < 0) return;
    active = index;
    panes.forEach((one, i) => one.element.classList.toggle("active", i === active && layout > 1));
    markStrip();
    renderToolbar();
  }

  let drawn = "";
  function renderToolbar() {
    const one = pane();
    if (!one) return;
    const presets = one.presets();
    const window = one.picture && one.picture.samples === 1 ? one.current() : null;
    const text = JSON.stringify([tool, overlay, layout, presets.map((p) => p.label), window?.label, window?.center, window?.width, one.inverted, Boolean(one.cine), one.pictures.length > 1]);
    if (text === drawn) return;
    drawn = text;
    const focused = document.activeElement?.closest?.(".toolbar [data-action]")?.dataset.action;
    const button = (action, sign, label, run, pressed) => iconButton(sign, label, run, { data: { action }, "aria-pressed": pressed === undefined ? undefined : String(pressed) });
    const at = presets.findIndex((p) => (p.table ? p.table === window?.table : p.whole ? window?.label === "Whole range" : p.center === window?.center && p.width === window?.width));
    fill(
      toolbar,
      h("div", { class: "group" }, TOOLS.map((t) => button(`tool-${t.name}`, t.icon, `${t.label} (${t.keys[0].toUpperCase()})`, () => setTool(t.name), tool === t.name))),
      presets.length
        ? h(
            "select",
            { "aria-label": "Window preset", title: "Window preset (1 to 9)", data: { action: "preset" }, on: { change: (e) => (preset(Number(e.target.value)), one.element.focus()) } },
            at < 0 ? h("option", { value: "-1", selected: true }, "Window: chosen") : null,
            presets.map((p, i) => h("option", { value: String(i), selected: i === at }, `${i < 9 ? `${i + 1}  ` : ""}${p.label}${p.center === undefined ? "" : `  ${Math.round(p.center)} / ${Math.round(p.width)}`}`)),
          )
        : null,
      h("div", { class: "group" }, button("invert", "invert", "Invert (I)", () => one.invert(), one.inverted), button("rotate", "rotate", "Turn by 90° (T)", () => one.turn()), button("flip", "flip", "Mirror (F)", () => one.flip()), button("fit", "one", "One to one (0)", () => one.actual()), button("reset", "reset", "Reset (R)", () => one.reset())),
      h("div", { class: "group" }, button("cine", one.cine ? "pause" : "play", "Play or stop (Space)", () => one.play(), Boolean(one.cine)), button("text", "text", "Text on the picture (H)", toggleOverlay, overlay)),
      h("div", { class: "group" }, LAYOUTS.map((count) => h("button", { type: "button", class: "icon-button layout", title: `${format.count(count, "pane")} (L)`, "aria-label": format.count(count, "pane"), "aria-pressed": String(layout === count), data: { action: `layout-${count}` }, on: { click: () => setLayout(count) } }, h("span", { class: `layout-mark n${count}`, "aria-hidden": "true" }, Array.from({ length: count }, () => h("i")))))),
    );
    if (focused) toolbar.querySelector(`[data-action="${focused}"]`)?.focus();
  }

  function setTool(name) {
    tool = name;
    grid.dataset.tool = tool;
    renderToolbar();
  }

  function preset(index) {
    const chosen = pane().presets()[index];
    if (!chosen) return false;
    pane().setWindow(chosen);
  }

  function toggleOverlay() {
    overlay = !overlay;
    for (const one of panes) one.draw();
    renderToolbar();
  }

  function toggleSide(open = side.hidden) {
    side.hidden = !open;
    banner.querySelector("[data-action=side]")?.setAttribute("aria-expanded", String(open));
    return open;
  }

  const report = sidebar(side, { uid, person, reload: () => load() });
  const unbind = keys.bind("Pictures", [
    { keys: ["ArrowDown", "ArrowRight", "j"], label: "Next image", run: () => pane()?.step(1) },
    { keys: ["ArrowUp", "ArrowLeft", "k"], label: "Previous image", run: () => pane()?.step(-1) },
    { keys: ["PageDown", "n"], label: "Next series", run: () => stepSeries(1) },
    { keys: ["PageUp", "b"], label: "Previous series", run: () => stepSeries(-1) },
    { keys: ["Home"], label: "First image", run: () => pane()?.go(0) },
    { keys: ["End"], label: "Last image", run: () => pane()?.go(Infinity) },
    { keys: ["1", "2", "3", "4", "5", "6", "7", "8", "9"], label: "Window presets", shown: ["1", "…", "9"], run: (event) => preset(Number(event.key) - 1) },
    ...TOOLS.map((t) => ({ keys: t.keys, label: t.label, run: () => setTool(t.name) })),
    { keys: ["i"], label: "Invert", run: () => pane()?.invert() },
    { keys: ["t"], label: "Turn by 90°", run: () => pane()?.turn() },
    { keys: ["f"], label: "Mirror", run: () => pane()?.flip() },
    { keys: ["+", "="], label: "Larger", shown: ["+"], run: () => pane()?.zoom(1.25) },
    { keys: ["-"], label: "Smaller", run: () => pane()?.zoom(0.8) },
    { keys: ["0"], label: "One pixel on one of the screen", run: () => pane()?.actual() },
    { keys: ["r"], label: "Reset", run: () => pane()?.reset() },
    { keys: ["Space"], label: "Play or stop", run: () => pane()?.play() },
    { keys: ["h"], label: "Text on the picture", run: toggleOverlay },
    { keys: ["l"], label: "One, two or four panes", run: () => setLayout(LAYOUTS[(LAYOUTS.indexOf(layout) + 1) % LAYOUTS.length]) },
    { keys: ["Tab"], run: () => (layout > 1 && document.activeElement?.classList.contains("pane") ? (activate((active + 1) % layout), pane().element.focus()) : false) },
    { keys: ["d"], label: "Write the report", run: () => (toggleSide(true), report.focus()) },
    { keys: ["Escape"], label: "Back", typing: true, run: (event) => (event.target.closest?.(".side") ? (pane()?.element.focus(), true) : go("/")) },
  ]);
  // Both at once: who waits for a report does not wait for the study first.
  const refresh = paced(() => (report.refresh(), load()), 300);
  ends.push(unbind, refresh.stop, onChange((uids) => (uids === null || uids.has(uid)) && refresh()), report.close, () => frames.close());
  setTool(tool);
  toggleSide(innerWidth > 1100);
  report.refresh();
  load();
  // What the tests read: requests, bytes and previews of frames.
  box.stats = frames.stats;

  const leave = () => {
    closed = true;
    for (const one of panes) one.close();
    for (const end of ends) end();
  };
  leave.confirm = () => !report.dirty() || confirm("The report is not saved. Leave it?");
  leave.dirty = () => report.dirty();
  return leave;
}
