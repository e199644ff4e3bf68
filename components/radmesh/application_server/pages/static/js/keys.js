// Keys, and the help that lists them: what works is what is listed.

import { dialog, h } from "./dom.js";

const scopes = [];

/** Names as they stand in the help; "Shift+?" is written "?". */
function nameOf(event) {
  const key = event.key === " " ? "Space" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  return `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}${event.shiftKey && event.key.length > 1 ? "Shift+" : ""}${key}`;
}

const typing = (target) => target.closest?.("input:not([type=checkbox]):not([type=range]), textarea, select, [contenteditable]");

/** Add keys: [{keys: ["ArrowDown", "j"], label, run(event), typing: also while text is typed}]. Returns what removes them. */
export function bind(title, bindings) {
  const scope = { title, bindings };
  scopes.push(scope);
  return () => {
    const at = scopes.indexOf(scope);
    if (at >= 0) scopes.splice(at, 1);
  };
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  const name = nameOf(event);
  const inText = typing(event.target);
  for (const scope of [...scopes].reverse())
    for (const binding of scope.bindings) {
      if (!binding.keys.includes(name) || (inText && !binding.typing)) continue;
      // Enter and space belong to the control that has the focus.
      if ((name === "Enter" || name === "Space") && event.target.closest?.("button, a, summary, input")) continue;
      if (binding.run(event) !== false) event.preventDefault();
      return;
    }
});

const SHOWN = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc", PageUp: "Page ↑", PageDown: "Page ↓" };
const shown = (key) => key.split(/(?<=.)\+/).map((p) => SHOWN[p] ?? (p.length === 1 ? p.toUpperCase() : p)).join(" ");

/** Show every key that works here. */
export function help() {
  dialog("Keyboard", () =>
    h("div", { class: "keys" }, [...scopes].reverse().map((scope) => [
      h("h3", null, scope.title),
      h("dl", null, scope.bindings.filter((b) => b.label).map((b) => [
        h("dt", null, (b.shown ?? b.keys.slice(0, 3)).map((key) => h("kbd", null, shown(key)))),
        h("dd", null, b.label),
      ])),
    ])),
  );
}
