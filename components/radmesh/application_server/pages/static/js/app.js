// The shell: who is signed in, which view is shown, what changed elsewhere.

import { get, onSignedOut, remove } from "./api.js";
import { fill, h, icon, iconButton, problem, say } from "./dom.js";
import * as events from "./events.js";
import * as keys from "./keys.js";
import { holds } from "./views/holds.js";
import { login } from "./views/login.js";
import { status } from "./views/status.js";
import { studies } from "./views/studies.js";
import { study } from "./views/study.js";

const root = document.getElementById("app");
const main = h("main", { id: "main", tabindex: "-1" });
const VIEWS = [
  { path: /^\/$/, view: studies, title: "Studies", name: "studies" },
  { path: /^\/studies\/([^/]+)$/, view: study, title: "Study", name: "study" },
  { path: /^\/holds$/, view: holds, title: "Held studies", name: "holds" },
  { path: /^\/status$/, view: status, title: "Status", name: "status" },
];
const RECONCILE = new Set(["technologist", "administrator"]);
let person = null;
let leave = () => {};
let here = location.pathname;

/** Go to a path of these pages. `state` stays with the entry of the browser's history, and is in no address. */
function go(path, { replace = false, state = null } = {}) {
  if (leave.confirm && !leave.confirm()) return;
  history[replace ? "replaceState" : "pushState"](state, "", path);
  show();
}

function show() {
  leave();
  leave = () => {};
  const path = location.pathname;
  if (path === "/login" || !person) return showLogin();
  const found = VIEWS.map((entry) => ({ ...entry, match: entry.path.exec(path) })).find((entry) => entry.match);
  here = path;
  document.title = `${found?.title ?? "Not here"} · radmesh`;
  for (const link of root.querySelectorAll("nav a")) {
    const here = link.pathname === path || (path.startsWith("/studies/") && link.pathname === "/");
    link.toggleAttribute("aria-current", here);
    if (here) link.setAttribute("aria-current", "page");
  }
  root.dataset.view = found?.name ?? "none";
  const box = h("div", { class: `view ${found?.name ?? ""}` });
  fill(main, box);
  if (!found || (found.view === holds && !RECONCILE.has(person.role)))
    return fill(box, problem({ message: found ? "your role does not see what is held" : "there is no such page", remedy: "go back to the studies", reason: found ? "ROLE_REFUSED" : "PATH_UNKNOWN" }));
  leave = found.view(box, { person, go, match: found.match.slice(1).map(decodeURIComponent), mayReconcile: RECONCILE.has(person.role) }) ?? (() => {});
}

function showLogin() {
  events.stop();
  person = null;
  document.title = "Sign in · radmesh";
  root.dataset.view = "login";
  const box = h("main", { class: "view login" });
  fill(root, box);
  leave = login(box, {
    async signedIn() {
      const to = new URLSearchParams(location.search).get("to") ?? "/";
      // Only to a page of ours: never to another host by way of "//host".
      history.replaceState(null, "", /^\/(?![/\\])/.test(to) && !to.startsWith("/login") ? to : "/");
      await begin();
    },
  });
}

function themeButton() {
  const names = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };
  const pictures = { auto: "auto", light: "sun", dark: "moon" };
  const order = ["auto", "light", "dark"];
  const button = iconButton("auto", "", () => {
    globalThis.radmeshTheme.set(order[(order.indexOf(globalThis.radmeshTheme.get()) + 1) % 3]);
    label();
  });
  const label = () => {
    const theme = globalThis.radmeshTheme.get();
    button.title = names[theme];
    button.setAttribute("aria-label", names[theme]);
    fill(button, icon(pictures[theme]));
  };
  label();
  return button;
}

async function signOut() {
  if (leave.confirm && !leave.confirm()) return;
  try {
    await remove("session");
  } catch (error) {
    // A session that has ended already is what was wanted.
    if (error.status !== 401) return say(error.message, "error");
  }
  leave.confirm = null;
  person = null;
  history.pushState(null, "", "/login");
  show();
}

function shell() {
  const link = (path, text) => h("a", { href: path }, text);
  const live = h("span", { class: "live", role: "status" });
  events.onLive((on) => {
    live.classList.toggle("on", on);
    live.title = on ? "Changes are shown as they happen" : "The connection is cut: trying again";
    fill(live, on ? "live" : "reconnecting …");
  });
  fill(
    root,
    h("a", { class: "skip", href: "#main" }, "To the content"),
    h(
      "header",
      { class: "topbar" },
      h("a", { class: "brand", href: "/" }, h("span", { class: "brand-mark", "aria-hidden": "true" }), "radmesh"),
      h("nav", { "aria-label": "Main" }, link("/", "Studies"), RECONCILE.has(person.role) ? link("/holds", "Held") : null, link("/status", "Status")),
      h(
        "div",
        { class: "top-right" },
        live,
        h("span", { class: "person", title: `Role: ${person.role}` }, person.display_name || person.user, h("span", { class: "faint" }, person.role)),
        iconButton("help", "Keyboard (?)", keys.help),
        themeButton(),
        iconButton("signout", "Sign out", signOut),
      ),
    ),
    main,
  );
}

async function begin() {
  if (location.pathname === "/login" && !person) return showLogin();
  try {
    person = await get("session", {}, { anonymous: true });
  } catch (error) {
    if (error.status === 401) return showLogin();
    return fill(root, h("main", { class: "view alone" }, problem(error, begin)));
  }
  shell();
  events.start();
  if (person.role === "none") return fill(main, problem({ message: "your role may see nothing yet", remedy: "ask an administrator for a role", reason: "ROLE_REFUSED" }));
  show();
}

onSignedOut(() => {
  if (!person) return;
  leave();
  leave = () => {};
  const to = location.pathname;
  person = null;
  history.replaceState(null, "", `/login?to=${encodeURIComponent(to)}`);
  showLogin();
  say("The session has ended: sign in again", "error");
});

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  if (link.origin !== location.origin || link.target || link.download || link.hash) return;
  event.preventDefault();
  go(link.pathname);
});
addEventListener("popstate", () => {
  if (leave.confirm && !leave.confirm()) return history.pushState(null, "", here);
  show();
});
addEventListener("beforeunload", (event) => {
  if (leave.dirty?.()) event.preventDefault();
});
keys.bind("Everywhere", [
  { keys: ["?"], label: "This help", run: () => void keys.help() },
  { keys: ["Alt+1"], label: "Studies", run: () => go("/") },
  { keys: ["Alt+2"], label: "Held studies", run: () => (person && RECONCILE.has(person.role) ? go("/holds") : false) },
  { keys: ["Alt+3"], label: "Status", run: () => go("/status") },
]);
begin();
