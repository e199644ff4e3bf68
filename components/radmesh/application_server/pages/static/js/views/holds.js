// What is held, pending or unverified: why, and what to do about it.

import { get, post, state, studyPath } from "../api.js";
import { dialog, fill, h, icon, problem, say, sentence } from "../dom.js";
import { onChange, paced } from "../events.js";
import * as format from "../format.js";
import * as keys from "../keys.js";
import * as badges from "./badges.js";

const REMEDIES = {
  NO_ORDER: "It heals by itself when its order comes. Send that, or correct the accession number in the RIS.",
  PATIENT_MISMATCH: "Compare the patient of the images with that of the order, and correct the wrong one.",
  AMBIGUOUS: "Several orders agree: cancel what is not meant, or send the accession number with the images.",
  DOMAIN_UNKNOWN: "Give the station its domain in the configuration, or the domain its issuer.",
  RIS_UNAVAILABLE: "It is verified by itself when the RIS is back.",
  TIMEOUT: "It is verified again by itself.",
  OVERRIDDEN: "A person answers for it; only a match changes it.",
};
const TABS = [["HELD", "Held"], ["UNVERIFIED", "Unverified"], ["PENDING", "Pending"]];
const WORDS = { PatientID: "patient ID", PatientName: "name", PatientBirthDate: "birth date", PatientSex: "sex", AccessionNumber: "accession number", IssuerOfPatientID: "issuer" };

/** Ask the Network Gateway to verify a study again, or let a person answer for it. */
export async function release(uid, { override = false, reason = "" } = {}) {
  const answer = await post(`${studyPath(uid)}/release`, override ? { override, reason } : {});
  const held = (answer.holds ?? []).filter((a) => state(a.verification) === "HELD");
  if (held.length) say(`Still held: ${badges.reason(held[0].reason)}`, "error");
  else say(override ? "Released: the reason is in the study's history" : "Verified again: it is not held");
  return answer;
}

/** Ask for the reason of an override. */
export function askOverride(study, done) {
  dialog("Release without a match", (close) => {
    const text = h("textarea", { rows: 4, maxlength: 512, required: true, id: "override-reason" });
    const message = h("div", { role: "alert", class: "login-message" });
    const button = h("button", { type: "submit", class: "button danger" }, "Release");
    return h(
      "form",
      {
        on: {
          async submit(event) {
            event.preventDefault();
            if (!text.value.trim()) return fill(message, "Say why.");
            button.disabled = true;
            try {
              await release(study.study_instance_uid, { override: true, reason: text.value.trim() });
              close();
              done();
            } catch (error) {
              button.disabled = false;
              fill(message, `${sentence(error.message)} ${sentence(error.remedy)}`);
            }
          },
        },
      },
      h("p", null, `${format.personName(study.patient_name) || "No name"}, ${study.patient_id || "no ID"}: the study becomes visible to everybody, marked as unverified. You answer for it; the reason goes into its history and the audit.`),
      h("label", { for: "override-reason" }, "Reason"),
      text,
      message,
      h("div", { class: "actions" }, h("button", { type: "button", class: "button", on: { click: close } }, "Cancel"), button),
    );
  });
}

export function holds(box, { person, go }) {
  let tab = history.state?.holds ?? "HELD";
  let closed = false;
  let asked = 0;
  let more = "";
  let shown = [];
  const list = h("div", { class: "holds-list", role: "list" });
  const message = h("div", { class: "list-message" });
  const tabs = h("div", { class: "tabs", role: "tablist" }, TABS.map(([name, text]) => h("button", { type: "button", role: "tab", data: { tab: name }, on: { click: () => choose(name) } }, text)));
  const older = h("button", { type: "button", class: "button", hidden: true, on: { click: () => load(true) } }, "Show more");
  fill(box, h("div", { class: "head" }, h("h1", null, "Studies to reconcile"), tabs), h("div", { class: "list-scroll" }, list, message, older));

  function choose(name) {
    tab = name;
    history.replaceState({ ...history.state, holds: tab }, "");
    load();
  }

  async function load(on = false) {
    const mine = ++asked;
    for (const button of tabs.children) button.setAttribute("aria-selected", String(button.dataset.tab === tab));
    try {
      const answer = await get("holds", { verification: tab, limit: 100, cursor: on ? more : "" });
      if (mine !== asked || closed) return;
      shown = on ? [...shown, ...(answer.holds ?? [])] : (answer.holds ?? []);
      more = answer.next_cursor ?? "";
      older.hidden = !more;
      fill(list, shown.map(card));
      fill(message, shown.length ? null : h("div", { class: "nothing" }, icon("check"), h("p", null, `Nothing is ${format.words(tab)}.`), tab === "HELD" ? h("p", { class: "faint" }, "What the RIS contradicts is held here: stored, shown to nobody else, and released by itself when order and images agree.") : null));
    } catch (error) {
      if (mine !== asked || closed) return;
      fill(message, problem(error, () => load()));
    }
  }

  function card(admission) {
    const key = admission.admission_key ?? {};
    const uid = key.study_instance_uid ?? admission.study_instance_uid;
    const wrong = new Set(admission.mismatched_keywords ?? []);
    const fact = (label, value, keyword) => h("div", { class: wrong.has(keyword) ? "fact wrong" : "fact" }, h("dt", null, label), h("dd", null, value || "–", wrong.has(keyword) ? h("span", { class: "sr" }, " contradicts the order") : null));
    const again = h("button", { type: "button", class: "button", on: { click: () => act(again) } }, icon("reset"), "Verify again");
    const held = tab !== "VERIFIED" && admission.reason !== "OVERRIDDEN";
    return h(
      "article",
      { class: "hold", role: "listitem", data: { uid } },
      h("header", null, badges.verification(admission), h("span", { class: "faint" }, `${format.count(admission.instance_count ?? 0, "image")} · received ${format.moment(admission.receive_time)}`)),
      h(
        "dl",
        { class: "facts" },
        fact("Name", format.personName(key.patient_name), "PatientName"),
        fact("Patient ID", [key.patient_id, key.issuer_of_patient_id && `(${key.issuer_of_patient_id})`].filter(Boolean).join(" "), "PatientID"),
        fact("Born", format.date(key.patient_birth_date), "PatientBirthDate"),
        fact("Sex", format.SEX[admission.patient_sex] ?? admission.patient_sex, "PatientSex"),
        fact("Accession", key.accession_number, "AccessionNumber"),
        fact("Study", [format.date(admission.study_date), (admission.modalities ?? []).join(" "), admission.study_description].filter(Boolean).join(" · ")),
        fact("Station", [key.station, admission.source_address].filter(Boolean).join(" · ")),
        fact("Domain", admission.domain),
      ),
      h("p", { class: "remedy" }, wrong.size ? `Contradicts the order: ${[...wrong].map((k) => WORDS[k] ?? k).join(", ")}. ` : "", REMEDIES[admission.reason] ?? ""),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "button", on: { click: () => go(`/${studyPath(uid)}`) } }, icon("image"), "Look at it"),
        again,
        held && person.role === "administrator" ? h("button", { type: "button", class: "button danger", on: { click: () => askOverride({ study_instance_uid: uid, ...key }, load) } }, icon("lock"), "Release …") : null,
      ),
    );
    async function act(button) {
      button.disabled = true;
      try {
        await release(uid);
        await load();
      } catch (error) {
        say(`${sentence(error.message)} ${sentence(error.remedy)}`, "error");
      }
      button.disabled = false;
    }
  }

  const move = (by) => {
    const cards = [...list.children];
    const at = cards.indexOf(document.activeElement?.closest?.(".hold"));
    const to = cards[Math.max(0, Math.min(cards.length - 1, at + by))];
    to?.querySelector("button")?.focus();
    to?.scrollIntoView({ block: "nearest" });
  };
  const unbind = keys.bind("Held studies", [
    { keys: ["ArrowDown", "j"], label: "Next", run: () => move(1) },
    { keys: ["ArrowUp", "k"], label: "Previous", run: () => move(-1) },
    { keys: ["1", "2", "3"], label: "Held, unverified, pending", run: (event) => choose(TABS[Number(event.key) - 1][0]) },
    { keys: ["r"], label: "Read again", run: () => load() },
  ]);
  const refresh = paced(() => load(), 700);
  const unlisten = onChange(() => refresh());
  load();
  return () => {
    closed = true;
    refresh.stop();
    unlisten();
    unbind();
  };
}
