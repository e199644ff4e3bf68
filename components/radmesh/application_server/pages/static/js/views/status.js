// How the cluster is.

import { get } from "../api.js";
import { fill, h, icon, problem, sentence } from "../dom.js";
import * as format from "../format.js";
import * as keys from "../keys.js";

const EVERY_MS = 3000;

/** A figure of a component: its name says its unit. */
function figure(name, value) {
  const text = /(^|_)bytes/.test(name) ? format.bytes(value) : /seconds|age$/.test(name) ? `${Number(value.toPrecision(3)).toLocaleString("en")} s` : Number(Number(value).toPrecision(6)).toLocaleString("en");
  return h("div", { class: "figure" }, h("dt", null, name.replaceAll("_", " ").replace(/ (bytes|seconds)$/, "")), h("dd", null, text));
}

const KINDS = { ARCHIVE: "archive", SPOOL: "spool", WEB_CACHE: "web cache" };

export function status(box) {
  let timer = 0, closed = false, asked = 0;
  const content = h("div", { class: "status-content" });
  const when = h("span", { class: "faint", role: "status" });
  const message = h("div", { class: "list-message" });
  fill(box, h("div", { class: "head" }, h("h1", null, "Cluster"), when), h("div", { class: "list-scroll" }, message, content));

  async function load() {
    const mine = ++asked;
    clearTimeout(timer);
    try {
      const answer = await get("status");
      if (closed || mine !== asked) return;
      fill(message);
      render(answer);
    } catch (error) {
      if (closed || mine !== asked) return;
      fill(message, problem(error, load));
    }
    if (!closed) timer = setTimeout(load, document.hidden ? EVERY_MS * 5 : EVERY_MS);
  }

  function render(answer) {
    when.textContent = `as of ${format.moment(answer.time ?? Date.now()).slice(11)}`;
    const components = answer.components ?? [];
    const silent = Object.entries(answer.unreachable ?? {});
    const alarms = components.flatMap((c) => (c.alarms ?? []).map((alarm) => ({ ...alarm, instance: c.instance })));
    const open = new Set([...content.querySelectorAll("details[open]")].map((d) => d.dataset.instance));
    fill(
      content,
      h(
        "section",
        { class: alarms.length || silent.length ? "verdict bad" : "verdict good" },
        icon(alarms.length || silent.length ? "alert" : "check"),
        h("p", null, alarms.length || silent.length ? `${[silent.length && format.count(silent.length, "component does", "components do").concat(" not answer"), alarms.length && format.count(alarms.length, "alarm")].filter(Boolean).join(", ")}.` : `All ${components.length} components serve.`),
      ),
      alarms.length ? h("section", { "aria-label": "Alarms" }, alarms.map((alarm) => h("div", { class: "alarm" }, icon("alert"), h("div", null, h("p", null, sentence(alarm.message)), h("p", { class: "faint" }, `${alarm.instance} · ${alarm.reason}${alarm.since ? ` · for ${format.ago(alarm.since)}` : ""}`))))) : null,
      silent.length ? h("section", { "aria-label": "Silent" }, silent.map(([name, why]) => h("div", { class: "alarm" }, icon("alert"), h("div", null, h("p", null, `${name} does not answer.`), h("p", { class: "faint" }, String(why)))))) : null,
      h("h2", null, "Components"),
      h("div", { class: "components" }, components.map((c) => h(
        "details",
        { class: "component", data: { instance: c.instance }, open: open.has(c.instance) },
        h("summary", null, h("span", { class: `state ${c.state === "SERVING" ? "good" : c.state === "DEGRADED" ? "bad" : "warn"}` }, format.words(c.state)), h("strong", null, c.instance), h("span", { class: "faint" }, [c.version && `version ${c.version}`, c.start_time && `up ${format.ago(c.start_time)}`, c.pid && `pid ${c.pid}`].filter(Boolean).join(" · "))),
        h("dl", { class: "figures" }, Object.entries(c.figures ?? {}).sort().map(([name, value]) => figure(name, Number(value)))),
      ))),
      (answer.stores ?? []).length
        ? [
            h("h2", null, "Stores"),
            h(
              "table",
              { class: "list plain", "aria-label": "Stores" },
              h("thead", null, h("tr", null, ["Store", "Kind", "State", "Room", "Not registered", "Heard of"].map((text) => h("th", { scope: "col" }, text)))),
              h("tbody", null, answer.stores.map((s) => {
                const kind = String(s.kind ?? "").replace("STORE_KIND_", "");
                return h("tr", null, h("td", null, s.store_id), h("td", null, KINDS[kind] ?? format.words(kind)), h("td", null, h("span", { class: `state ${s.alive ? (s.accepting === false && kind !== "WEB_CACHE" ? "warn" : "good") : "bad"}` }, s.alive ? (s.accepting === false && kind !== "WEB_CACHE" ? "full or draining" : "alive") : "silent")), h("td", null, format.bytes(s.free_bytes)), h("td", null, String(s.unregistered ?? 0)), h("td", null, s.heartbeat_time ? `${format.ago(s.heartbeat_time)} ago` : "–"));
              })),
            ),
          ]
        : null,
    );
  }

  const unbind = keys.bind("Status", [{ keys: ["r"], label: "Read again", run: () => void load() }]);
  load();
  return () => {
    closed = true;
    clearTimeout(timer);
    unbind();
  };
}
