// Values of DICOM for people.

/** "Doe^Jane^^Dr=…" as "Doe, Jane, Dr (…)" (PS3.5 6.2.1). */
export function personName(value) {
  const groups = String(value ?? "").split("=").map((group) => {
    const [family = "", given = "", middle = "", prefix = "", suffix = ""] = group.split("^").map((c) => c.trim());
    return [family, [given, middle].filter(Boolean).join(" "), prefix, suffix].filter(Boolean).join(", ");
  });
  const [first, ...rest] = groups.filter(Boolean);
  return first ? (rest.length ? `${first} (${rest[0]})` : first) : "";
}

/** "20260102" as "2026-01-02". */
export function date(value) {
  const text = String(value ?? "").replaceAll(".", "");
  return /^\d{8}/.test(text) ? `${text.slice(0, 4)}-${text.slice(4, 6)}-${text.slice(6, 8)}` : String(value ?? "");
}

/** "030405.5" as "03:04". */
export function time(value) {
  const text = String(value ?? "").replaceAll(":", "");
  return /^\d{4}/.test(text) ? `${text.slice(0, 2)}:${text.slice(2, 4)}` : "";
}

/** Age in whole years on a day, as "55 y"; empty where a date is not known. */
export function age(birth, on) {
  const born = /^(\d{4})(\d\d)(\d\d)/.exec(birth ?? ""), then = /^(\d{4})(\d\d)(\d\d)/.exec(on ?? "");
  if (!born || !then) return "";
  const years = then[1] - born[1] - (then[2] + then[3] < born[2] + born[3] ? 1 : 0);
  if (years < 0) return "";
  if (years >= 2) return `${years} y`;
  const months = (then[1] - born[1]) * 12 + (then[2] - born[2]) - (then[3] < born[3] ? 1 : 0);
  return months >= 0 ? `${months} mo` : "";
}

export const SEX = { M: "male", F: "female", O: "other" };

/** A time of the server (RFC 3339, or seconds since 1970) here and now. */
export function moment(value) {
  if (!value) return "";
  const when = new Date(typeof value === "number" ? value * 1000 : value);
  if (Number.isNaN(when.getTime())) return String(value);
  const two = (n) => String(n).padStart(2, "0");
  return `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())} ${two(when.getHours())}:${two(when.getMinutes())}`;
}

/** How long ago, roughly. */
export function ago(value, now = Date.now()) {
  const seconds = Math.max(0, (now - new Date(typeof value === "number" ? value * 1000 : value).getTime()) / 1000);
  if (Number.isNaN(seconds)) return "";
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  return `${Math.floor(seconds)} s`;
}

/** Bytes in the unit that suits. */
export function bytes(value) {
  let number = Number(value ?? 0);
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (number < 1000) return `${unit === "B" ? number : number.toPrecision(3)} ${unit}`;
    number /= 1000;
  }
  return `${number.toPrecision(3)} TB`;
}

export const count = (number, one, many = `${one}s`) => `${Number(number).toLocaleString("en")} ${Number(number) === 1 ? one : many}`;

/** "PATIENT_MISMATCH" as "patient mismatch". */
export const words = (value) => String(value ?? "").replaceAll("_", " ").toLowerCase();
