// What changed elsewhere, as it happens. Events are hints: whoever listens reads again.

import { get } from "./api.js";

const listeners = new Set();
const watchers = new Set();
let source = null;
let live = false;
let delay = 500;
let timer = 0;

/** Call `listener(uids)` when studies changed; `null` = anything may have. Returns what ends it. */
export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Call `watcher(live)` now, and when the stream is cut or goes on. Returns what ends it. */
export function onLive(watcher) {
  watchers.add(watcher);
  watcher(live);
  return () => watchers.delete(watcher);
}

function tell(uids) {
  for (const listener of [...listeners]) listener(uids);
}

function setLive(value) {
  if (live === value) return;
  live = value;
  for (const watcher of [...watchers]) watcher(live);
}

function uidsOf(data) {
  try {
    const body = JSON.parse(data);
    return Array.isArray(body) ? body : (body.study_instance_uids ?? null);
  } catch {
    return null;
  }
}

// A browser has six connections to a server; a tab that nobody looks at gives its own back.
const HIDDEN_MS = 5000;
let wanted = false;
let hidden = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (!wanted) return;
  if (document.visibilityState === "hidden") hidden = setTimeout(close, HIDDEN_MS);
  else if (!source) {
    start();
    tell(null);
  }
});

function close() {
  clearTimeout(timer);
  source?.close();
  source = null;
  setLive(false);
}

/** Listen to the door. */
export function start() {
  wanted = true;
  if (source) return;
  source = new EventSource("/api/v1/events");
  let again = false;
  const receive = (event) => {
    const uids = uidsOf(event.data);
    if (uids === null || uids.length) tell(uids === null ? null : new Set(uids));
  };
  source.addEventListener("open", () => {
    delay = 500;
    setLive(true);
    // What happened while nobody listened is not told again.
    if (again) tell(null);
    again = true;
  });
  for (const name of ["message", "studies", "change", "resync"]) source.addEventListener(name, receive);
  source.addEventListener("error", () => {
    setLive(false);
    again = true;
    if (source?.readyState !== EventSource.CLOSED) return;
    // The browser gives up on an answer that is no stream; a session that has ended shows in the next call.
    source = null;
    timer = setTimeout(() => wanted && get("session").then(() => { start(); tell(null); }, () => wanted && start()), delay);
    delay = Math.min(delay * 2, 10_000);
  });
}

/** Listen no more. */
export function stop() {
  wanted = false;
  clearTimeout(hidden);
  close();
}

/** A function that runs `work` at once, and while it is called again at most every `ms`; never twice at a time. */
export function paced(work, ms) {
  let running = false, wanted = false, stopped = false;
  const run = async () => {
    if (running) {
      wanted = true;
      return;
    }
    running = true;
    do {
      wanted = false;
      await work();
      await new Promise((resolve) => setTimeout(resolve, ms));
    } while (wanted && !stopped);
    running = false;
  };
  run.stop = () => {
    stopped = true;
  };
  return run;
}
