// The three axes of a study's status, as small marks that are told apart without colour too.

import { h, icon } from "../dom.js";
import { state } from "../api.js";
import { words } from "../format.js";

const VERIFICATION = {
  VERIFIED: ["good", "check", "verified"],
  NOT_REQUIRED: ["plain", null, "not required"],
  PENDING: ["plain", "clock", "pending"],
  UNVERIFIED: ["warn", "alert", "unverified"],
  HELD: ["bad", "lock", "held"],
};
const ACQUISITION = { SCHEDULED: "scheduled", STARTED: "started", COMPLETED: "completed", DISCONTINUED: "discontinued" };
const READING = { NEW: ["plain", "new"], DICTATED: ["info", "dictated"], TRANSCRIBED: ["info", "transcribed"], APPROVED: ["good", "approved"], ADDENDUM: ["info", "addendum"] };
const REASONS = {
  NO_ORDER: "no order",
  PATIENT_MISMATCH: "another patient in the order",
  AMBIGUOUS: "several orders",
  DOMAIN_UNKNOWN: "RIS domain unknown",
  RIS_UNAVAILABLE: "RIS not reached",
  TIMEOUT: "RIS too late",
  OVERRIDDEN: "released by a person",
};

/** Why a study is held or unverified, in a few words. */
export const reason = (value) => REASONS[value] ?? words(value);

const badge = (kind, sign, text, title) => h("span", { class: `badge ${kind}`, title }, sign ? icon(sign) : null, text);

export function verification(study) {
  const value = state(study.verification);
  const [kind, sign, text] = VERIFICATION[value] ?? ["plain", null, words(value)];
  const why = study.verification_reason || study.reason;
  return h("span", { class: "verification" }, badge(kind, sign, text, why || undefined), why ? h("span", { class: "why" }, reason(why)) : null);
}

export function acquisition(study) {
  const value = state(study.acquisition);
  return value ? h("span", { class: `axis ${value === "DISCONTINUED" ? "warn" : ""}` }, ACQUISITION[value] ?? words(value)) : null;
}

export function reading(study) {
  const value = state(study.reading) || "NEW";
  const [kind, text] = READING[value] ?? ["plain", words(value)];
  return badge(kind, null, text);
}

/** How many of a study's images have pictures. */
export function curated(study) {
  const [have, of] = [Number(study.curated_count ?? 0), Number(study.instance_count ?? 0)];
  if (!of) return null;
  if (have >= of) return h("span", { class: "curated done", title: "Every image can be shown" }, icon("check"), h("span", { class: "sr" }, "all pictures are ready"));
  return h("progress", { class: "curated", max: of, value: have, title: `${have} of ${of} images can be shown`, "aria-label": `${have} of ${of} images can be shown` });
}
