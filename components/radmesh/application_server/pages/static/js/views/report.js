// Beside the pictures: the report and its versions, and what happened to the study.

import { get, post, state, studyPath } from "../api.js";
import { dialog, fill, h, icon, problem, say, sentence } from "../dom.js";
import * as format from "../format.js";

const MOST_BYTES = 256 * 1024;
const DELIVERY = {
  WAITING: "on its way to the RIS",
  DELIVERED: "the RIS has it",
  REFUSED: "the RIS refused it",
  NOT_CONFIGURED: "no RIS takes reports of this domain",
};

export function sidebar(box, { uid, person, reload }) {
  const mayReport = person.role === "radiologist";
  let study = null;
  let reports = null;
  let saved = "";
  // Version of the draft that is being edited; 0 = none yet.
  let base = 0;
  let baseTime = "";
  let tab = "report";
  let closed = false;
  let busy = false;
  // An answer that was asked for before something was written is old.
  let asked = 0;

  const text = h("textarea", { id: "report-text", "aria-label": "Report", spellcheck: "true", placeholder: "Findings and impression", on: { input: render } });
  const typed = h("input", { type: "checkbox", id: "transcribed" });
  const conflict = h("div");
  const versions = h("div", { class: "versions" });
  const save = h("button", { type: "button", class: "button", title: "Ctrl S", on: { click: () => keep() } }, "Save draft");
  const approve = h("button", { type: "button", class: "button primary", on: { click: sign } }, icon("check"), "Approve");
  const title = h("h2");
  const note = h("p", { class: "faint", role: "status" });
  const editor = h("section", { class: "editor" }, title, conflict, text, h("label", { class: "check" }, typed, "typed from a dictation"), note, h("div", { class: "actions" }, save, approve));
  const history = h("ol", { class: "history" });
  const panel = h("div", { class: "side-panel" });
  const tabs = h("div", { class: "tabs", role: "tablist" }, [["report", "Report"], ["history", "History"]].map(([name, label]) => h("button", { type: "button", role: "tab", data: { tab: name }, on: { click: () => choose(name) } }, label)));
  fill(box, tabs, panel);

  const dirty = () => mayReport && text.value !== saved;
  const draft = () => reports?.find((r) => state(r.state) === "DRAFT");
  const approved = () => reports?.filter((r) => state(r.state) === "APPROVED") ?? [];
  const stamp = (r) => (r ? `${r.version}/${r.update_time}/${r.text}` : "");

  function choose(name) {
    tab = name;
    for (const button of tabs.children) button.setAttribute("aria-selected", String(button.dataset.tab === tab));
    fill(panel, tab === "report" ? [mayReport ? editor : null, versions] : history);
    if (tab === "history") loadHistory();
  }

  async function load() {
    const mine = ++asked;
    try {
      const answer = await get(`${studyPath(uid)}/reports`);
      if (closed || mine !== asked) return;
      reports = answer.reports ?? [];
    } catch (error) {
      if (closed || mine !== asked) return;
      return void fill(versions, problem(error, load));
    }
    const current = draft();
    if (!dirty()) take(current);
    else if (stamp(current) !== baseTime && !busy) warn(current);
    render();
  }

  /** Go on from a draft. */
  function take(current) {
    text.value = current?.text ?? "";
    saved = text.value;
    base = current?.version ?? 0;
    baseTime = stamp(current);
    fill(conflict);
    render();
  }

  /** Somebody else wrote meanwhile: nobody's text is lost. */
  function warn(current) {
    const who = current?.author || approved()[0]?.approver || "somebody";
    fill(
      conflict,
      h(
        "div",
        { class: "problem", role: "alert" },
        icon("alert"),
        h(
          "div",
          null,
          h("p", { class: "problem-text" }, current ? `${who} has saved this draft meanwhile.` : `${who} has approved this report meanwhile.`),
          current ? h("blockquote", null, current.text) : null,
          h(
            "div",
            { class: "actions" },
            h("button", { type: "button", class: "button", on: { click: () => take(current) } }, current ? "Take theirs" : "Drop mine"),
            h("button", { type: "button", class: "button", on: { click: () => {
              base = current?.version ?? 0;
              baseTime = stamp(current);
              saved = current?.text ?? "";
              fill(conflict);
              render();
            } } }, "Keep mine"),
          ),
        ),
      ),
    );
  }

  function render() {
    if (!reports) return;
    const current = draft();
    const signed = approved();
    const held = state(study?.verification) === "HELD";
    title.textContent = signed.length ? "Addendum" : "Report";
    const size = new TextEncoder().encode(text.value).length;
    const blocked = Boolean(conflict.firstChild);
    text.disabled = held;
    // Not disabled: that would take the focus from who goes on writing.
    text.readOnly = busy;
    save.disabled = busy || held || blocked || !dirty() || !text.value.trim() || size > MOST_BYTES;
    approve.disabled = busy || held || blocked || !text.value.trim() || size > MOST_BYTES;
    note.textContent = held
      ? "A held study cannot be reported: release it first."
      : size > MOST_BYTES
        ? `A report has 256 KiB at most; this has ${format.bytes(size)}.`
        : dirty()
          ? "Not saved."
          : current
            ? `Draft saved by ${current.author || "–"}, ${format.moment(current.update_time)}.`
            : "";
    typed.disabled = held || signed.length > 0;
    const rows = [...(mayReport || !current ? [] : [current]), ...signed];
    fill(
      versions,
      rows.map(entry),
      rows.length || mayReport ? null : h("div", { class: "nothing small" }, icon("report"), h("p", null, "No report yet."), h("p", { class: "faint" }, "Radiologists write reports.")),
    );
  }

  function entry(report) {
    const isDraft = state(report.state) === "DRAFT";
    const delivery = state(report.delivery);
    return h(
      "article",
      { class: "report-version", data: { version: report.version, state: state(report.state) } },
      h("header", null, h("strong", null, report.version > 1 ? `Addendum ${report.version - 1}` : "Report"), h("span", { class: `badge ${isDraft ? "info" : "good"}` }, isDraft ? "draft" : "approved")),
      h("p", { class: "report-body" }, report.text),
      h("p", { class: "faint" }, isDraft ? `${report.author}, ${format.moment(report.update_time)}` : `${report.approver || report.author}, ${format.moment(report.approve_time)}`),
      !isDraft && DELIVERY[delivery] ? h("p", { class: delivery === "REFUSED" ? "bad-text" : "faint" }, sentence(DELIVERY[delivery]), report.delivery_reason ? ` ${sentence(report.delivery_reason)}` : "") : null,
    );
  }

  async function keep({ quiet = false } = {}) {
    if (!quiet) text.focus();
    busy = true;
    render();
    try {
      const report = await post(`${studyPath(uid)}/reports`, { text: text.value, transcribed: typed.checked, expected_version: base });
      asked++;
      saved = text.value;
      base = report.version;
      baseTime = stamp(report);
      reports = [report, ...reports.filter((r) => r.version !== report.version)];
      if (!quiet) say("Draft saved");
      return true;
    } catch (error) {
      if (error.reason === "VERSION_CONFLICT") {
        busy = false;
        await load();
      } else say(`${sentence(error.message)} ${sentence(error.remedy)}`, "error");
      return false;
    } finally {
      busy = false;
      render();
    }
  }

  function sign() {
    const addendum = approved().length > 0;
    dialog(addendum ? "Approve the addendum" : "Approve the report", (close) => {
      const button = h("button", { type: "button", class: "button primary", on: { click: go } }, icon("check"), "Approve");
      const name = format.personName(study?.patient_name) || "No name";
      setTimeout(() => button.focus());
      return h(
        "div",
        null,
        h("p", null, `${name}, ${study?.patient_id || "no ID"}. What is approved does not change any more, and goes to the RIS; later words are addenda.`),
        h("blockquote", { class: "report-body" }, text.value),
        h("div", { class: "actions" }, h("button", { type: "button", class: "button", on: { click: close } }, "Cancel"), button),
      );
      async function go() {
        button.disabled = true;
        if (dirty() && !(await keep({ quiet: true }))) return close();
        busy = true;
        try {
          await post(`${studyPath(uid)}/reports/${base}/approve`);
          text.value = saved = "";
          base = 0;
          baseTime = "";
          say(addendum ? "Addendum approved" : "Report approved");
        } catch (error) {
          say(`${sentence(error.message)} ${sentence(error.remedy)}`, "error");
        }
        busy = false;
        close();
        text.focus();
        await load();
        reload();
      }
    });
  }

  async function loadHistory() {
    try {
      const entries = [];
      let token = "";
      do {
        const answer = await get(`${studyPath(uid)}/history`, { limit: 1000, cursor: token });
        entries.push(...(answer.entries ?? []));
        token = answer.next_cursor ?? "";
      } while (token && entries.length < 2000);
      if (closed) return;
      fill(history, entries.reverse().map((e) => h("li", null, h("div", null, h("strong", null, e.axis), " ", e.from ? `${format.words(state(e.from))} → ` : "", format.words(state(e.to))), e.reason ? h("div", { class: "faint" }, format.words(e.reason)) : null, h("div", { class: "faint" }, `${format.moment(e.time)} · ${e.actor}`))));
      if (!entries.length) fill(history, h("li", { class: "faint" }, "Nothing yet."));
    } catch (error) {
      if (!closed) fill(history, problem(error, loadHistory));
    }
  }

  const unsaved = (event) => {
    if (dirty() && (event.ctrlKey || event.metaKey) && event.key === "s") {
      event.preventDefault();
      if (!save.disabled) keep();
    }
  };
  box.addEventListener("keydown", unsaved);
  choose("report");

  return {
    /** The study as it is now. */
    update(now) {
      study = now;
      render();
    },
    /** Read again. */
    refresh() {
      load();
      if (tab === "history") loadHistory();
    },
    dirty,
    focus() {
      if (tab !== "report") choose("report");
      text.focus();
    },
    close() {
      closed = true;
    },
  };
}
