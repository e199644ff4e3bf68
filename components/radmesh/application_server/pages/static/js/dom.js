// Elements by function calls: text is always text, so nothing that came with an image can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `class`, `data`, `on` {event: handler} and `style` {property: value} as named, properties by name, the rest as attributes. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "style") for (const [property, v] of Object.entries(value)) element.style.setProperty(property, v);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
  return element;
}

/** Put other children into an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

const PATHS = {
  alert: "M12 8v5M12 16.5v.5M10.3 3.9 2.4 18a2 2 0 0 0 1.7 3h15.8a2 2 0 0 0 1.7-3L13.7 3.9a2 2 0 0 0-3.4 0Z",
  auto: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM12 3v18M12 7h6M12 12h8.8M12 17h6",
  back: "M15 5l-7 7 7 7",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  clock: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM12 7.5V12l3 2",
  flip: "M12 3v18M9 7 4 17h5ZM15 7l5 10h-5Z",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  grid: "M4 4h7v7H4ZM13 4h7v7h-7ZM4 13h7v7H4ZM13 13h7v7h-7Z",
  help: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM9.6 9.3a2.5 2.5 0 1 1 3.6 2.2c-.8.4-1.2 1-1.2 1.9M12 16.7v.3",
  image: "M4 5h16v14H4ZM4 16l5-5 4 4 3-3 4 4M15.5 9v.1",
  invert: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM12 3v18M15 5v14M18 7.5v9",
  lock: "M6 11h12v9H6ZM8.5 11V7.5a3.5 3.5 0 0 1 7 0V11",
  moon: "M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5Z",
  one: "M4 4h16v16H4Z",
  pan: "M12 3v18M3 12h18M9 6l3-3 3 3M9 18l3 3 3-3M6 9l-3 3 3 3M18 9l3 3-3 3",
  pause: "M8 5v14M16 5v14",
  play: "M7 4.5 19 12 7 19.5Z",
  report: "M6 3h8l4 4v14H6ZM14 3v4h4M9 12h6M9 16h6",
  reset: "M5 5v5h5M5.5 10A7.5 7.5 0 1 1 4.6 14",
  rotate: "M19 5v5h-5M18.5 10A7.5 7.5 0 1 0 19.4 14",
  scroll: "M12 3v18M8 7l4-4 4 4M8 17l4 4 4-4",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13ZM15.5 15.5 20 20",
  signout: "M14 4h5v16h-5M4 12h11M11 8l4 4-4 4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8ZM12 2v2.5M12 19.5V22M2 12h2.5M19.5 12H22M5 5l1.7 1.7M17.3 17.3 19 19M5 19l1.7-1.7M17.3 6.7 19 5",
  text: "M5 6h14M12 6v13M9 19h6",
  window: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM12 3a9 9 0 0 1 0 18M12 7v10",
  zoom: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13ZM15.5 15.5 20 20M7.5 10.5h6M10.5 7.5v6",
};

/** A picture beside a text that says the same. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button that is an icon; its name is read to who cannot see it. */
export function iconButton(name, label, run, props) {
  return h("button", { type: "button", class: "icon-button", title: label, "aria-label": label, on: { click: run }, ...props }, icon(name));
}

const status = h("div", { class: "toasts", role: "status", "aria-live": "polite" });

/** Say something in passing. */
export function say(text, kind = "info") {
  if (!status.isConnected) document.body.append(status);
  const toast = h("div", { class: `toast ${kind}` }, icon(kind === "error" ? "alert" : "check"), h("span", null, text));
  status.append(toast);
  setTimeout(() => toast.remove(), kind === "error" ? 9000 : 4000);
}

/** What an error says, and what to do about it. */
export function problem(error, again) {
  return h(
    "div",
    { class: "problem", role: "alert" },
    icon("alert"),
    h(
      "div",
      null,
      h("p", { class: "problem-text" }, sentence(error.message)),
      error.remedy ? h("p", null, sentence(error.remedy)) : null,
      h("p", { class: "faint" }, [error.reason, error.incident].filter(Boolean).join(" · ")),
      again ? h("button", { type: "button", class: "button", on: { click: again } }, "Try again") : null,
    ),
  );
}

/** A text of an error as a sentence. */
export const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");

/** Ask in a dialog; `build(close)` makes what is in it. */
export function dialog(title, build) {
  const box = h("dialog", { class: "dialog", "aria-label": title });
  const close = () => box.close();
  box.append(
    h("header", null, h("h2", null, title), iconButton("close", "Close", close)),
    h("div", { class: "dialog-body" }, build(close)),
  );
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && close());
  document.body.append(box);
  box.showModal();
  return box;
}
