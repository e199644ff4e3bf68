// One pane: a stack of pictures, how it is looked at, and what the pointer does.

import { h, fill, sentence } from "../dom.js";
import * as format from "../format.js";
import { direction } from "./metadata.js";
import { offered, paint, PRESETS, valueAt, wholeRange } from "./grey.js";

const AHEAD = 400;

export const TOOLS = [
  { name: "window", icon: "window", label: "Window and level", keys: ["w"] },
  { name: "scroll", icon: "scroll", label: "Scroll", keys: ["s"] },
  { name: "pan", icon: "pan", label: "Pan", keys: ["p"] },
  { name: "zoom", icon: "zoom", label: "Zoom", keys: ["z"] },
];

export class Viewport {
  /**
   * frames: where frames come from; context: {study, tool(), overlay()}; changed(): something that others show has
   * changed; focus(): the pane wants to be the active one.
   */
  constructor(frames, context, { changed, focus }) {
    this.frames = frames;
    this.context = context;
    this.changed = changed;
    this.pictures = [];
    this.series = null;
    this.index = 0;
    this.forward = true;
    this.cine = 0;
    this.shown = null;
    this.canvas = h("canvas", { role: "img", "aria-label": "No series" });
    this.corners = Object.fromEntries(["tl", "tr", "bl", "br", "top", "left", "right", "bottom"].map((name) => [name, h("div", { class: `corner ${name}` })]));
    this.notice = h("div", { class: "pane-notice" });
    this.bar = h("div", { class: "pane-bar" }, (this.loaded = h("i")));
    this.element = h("div", { class: "pane", tabindex: "-1" }, this.canvas, Object.values(this.corners), this.notice, this.bar);
    this.source = document.createElement("canvas");
    this.reset(false);
    this.#pointer(focus);
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.element);
    this.listening = frames.onChange((key) => {
      this.#progress();
      if (key === this.picture?.key) this.draw();
    });
  }

  get picture() {
    return this.pictures[this.index] ?? null;
  }

  close() {
    this.stop();
    this.listening();
    this.resized.disconnect();
    this.frames.leave(this);
    cancelAnimationFrame(this.drawing);
  }

  /** Show a series; `message` instead of its pictures where it has none. */
  show(series, pictures, message = null, at = 0) {
    this.stop();
    const same = series?.series_instance_uid === this.series?.series_instance_uid;
    this.series = series;
    this.pictures = pictures;
    this.message = message;
    this.index = Math.min(same ? this.index : at, Math.max(0, pictures.length - 1));
    if (!same) this.reset(false);
    this.#want();
    this.#progress();
    this.draw();
    this.changed();
  }

  /** Everything as at first. */
  reset(draw = true) {
    this.view = { zoom: 1, x: 0, y: 0, turns: 0, flipped: false };
    this.window = null;
    this.inverted = false;
    if (draw) this.draw(), this.changed();
  }

  go(index) {
    const to = Math.max(0, Math.min(this.pictures.length - 1, index));
    if (to === this.index || !this.pictures.length) return;
    this.forward = to > this.index;
    this.index = to;
    this.#want();
    this.draw();
    this.changed();
  }

  step(by) {
    this.go(this.index + by);
  }

  /** Play the stack, or stop it. */
  play() {
    if (this.cine) return this.stop();
    if (this.pictures.length < 2) return;
    const interval = Math.min(500, Math.max(16, this.picture.frameTime || 100));
    this.cine = setInterval(() => {
      const next = (this.index + 1) % this.pictures.length;
      // Waits for what has not come rather than pass over it.
      if (this.frames.arrived(this.pictures[next]) || this.frames.errors.has(this.pictures[next].key)) this.go(next);
      else this.#want();
    }, interval);
    this.changed();
  }

  stop() {
    if (!this.cine) return;
    clearInterval(this.cine);
    this.cine = 0;
    this.changed();
  }

  setWindow(window) {
    this.window = window;
    this.draw();
    this.changed();
  }

  invert() {
    this.inverted = !this.inverted;
    this.draw();
    this.changed();
  }

  turn() {
    this.view.turns = (this.view.turns + 1) % 4;
    this.draw();
  }

  flip() {
    this.view.flipped = !this.view.flipped;
    this.draw();
  }

  /** Zoom by a factor around a point of the pane (CSS pixels; the middle if absent). */
  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    const zoom = Math.min(40, Math.max(0.1, this.view.zoom * factor));
    const by = zoom / this.view.zoom;
    const [dx, dy] = [x - this.element.clientWidth / 2, y - this.element.clientHeight / 2];
    this.view.x = dx - (dx - this.view.x) * by;
    this.view.y = dy - (dy - this.view.y) * by;
    this.view.zoom = zoom;
    this.draw();
  }

  /** One pixel of the image on one of the screen. */
  actual() {
    this.view.zoom = 1 / (this.#fit() * devicePixelRatio);
    this.view.x = this.view.y = 0;
    this.draw();
  }

  /** Windows to choose from: the picture's own, those of its modality, all of it. */
  presets() {
    const picture = this.picture;
    if (!picture || picture.samples > 1) return [];
    return [...offered(picture), ...(PRESETS[picture.modality] ?? []).map((p) => ({ shape: "LINEAR", ...p })), { label: "Whole range", whole: true }];
  }

  /** The window in force: chosen, or the picture's, or all of it. */
  current(frame = this.shown?.frame) {
    const picture = this.picture;
    const chosen = this.window ?? offered(picture)[0];
    if (chosen && !chosen.whole) return chosen;
    return frame ? wholeRange(picture, frame) : { center: 128, width: 256, shape: "LINEAR", label: "" };
  }

  #want() {
    const { pictures, index } = this;
    if (!pictures.length) return this.frames.want(this, []);
    const order = [pictures[index]];
    // Twice as far in the direction of travel.
    for (let ahead = 1, behind = 1; order.length < Math.min(pictures.length, AHEAD); ) {
      const before = order.length;
      for (let i = 0; i < 2; i++) {
        const next = pictures[index + (this.forward ? ahead : -ahead)];
        if (next) order.push(next);
        ahead++;
      }
      const other = pictures[index + (this.forward ? -behind : behind)];
      if (other) order.push(other);
      behind++;
      if (order.length === before && ahead > pictures.length && behind > pictures.length) break;
    }
    this.frames.want(this, order);
  }

  #progress() {
    const { pictures } = this;
    let have = 0;
    for (const picture of pictures) if (this.frames.arrived(picture) || this.frames.errors.has(picture.key)) have++;
    const done = pictures.length ? have / pictures.length : 1;
    this.loaded.style.setProperty("transform", `scaleX(${done})`);
    this.bar.classList.toggle("done", done === 1);
    this.bar.title = `${have} of ${pictures.length} loaded`;
    this.element.dataset.loaded = String(have);
  }

  draw() {
    if (!this.drawing)
      this.drawing = requestAnimationFrame(() => {
        this.drawing = 0;
        this.#draw();
      });
  }

  #fit() {
    const { picture, element, view } = this;
    const [w, h] = view.turns % 2 ? [picture.rows * picture.aspect, picture.columns] : [picture.columns, picture.rows * picture.aspect];
    return Math.min(element.clientWidth / w, element.clientHeight / h) || 1;
  }

  #draw() {
    const { canvas, element, picture } = this;
    const dpr = devicePixelRatio || 1;
    const [width, height] = [Math.round(element.clientWidth * dpr), Math.round(element.clientHeight * dpr)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d", { willReadFrequently: false });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    const best = picture ? this.frames.best(picture) : {};
    this.#explain(best);
    this.shown = best.frame ? { ...best, picture } : null;
    const was = element.dataset.state;
    element.dataset.state = !picture ? "empty" : best.error ? "error" : !best.frame ? "waiting" : best.preview ? "preview" : "whole";
    if (best.frame) {
      const { frame } = best;
      const scale = this.#fit() * this.view.zoom * dpr;
      // While the window is dragged, no more pixels are painted than the screen has.
      const step = this.dragging && !best.preview ? Math.max(1, Math.floor(1 / scale)) : 1;
      const [columns, rows] = [Math.ceil(frame.width / step), Math.ceil(frame.height / step)];
      const { source } = this;
      if (source.width !== columns || source.height !== rows) [source.width, source.height] = [columns, rows];
      const pixels = source.getContext("2d", { willReadFrequently: true });
      const image = new ImageData(columns, rows);
      paint(image, frame, picture, this.current(frame), this.inverted, step);
      pixels.putImageData(image, 0, 0);
      const { turns, flipped, x, y } = this.view;
      const [cos, sin] = [[1, 0], [0, 1], [-1, 0], [0, -1]][turns];
      const [sx, sy] = [scale * (flipped ? -1 : 1), scale * picture.aspect];
      const [a, b, c, d] = [cos * sx, sin * sx, -sin * sy, cos * sy];
      let [e, f] = [width / 2 + x * dpr, height / 2 + y * dpr];
      // At whole pixels the image's own values are on the screen, not mixtures of them.
      const left = e - (a * picture.columns + c * picture.rows) / 2, top = f - (b * picture.columns + d * picture.rows) / 2;
      e = Math.round(left);
      f = Math.round(top);
      context.setTransform(a, b, c, d, e, f);
      context.imageSmoothingEnabled = Math.abs(scale - 1) > 1e-6 || best.preview || picture.aspect !== 1;
      context.imageSmoothingQuality = "high";
      context.drawImage(source, 0, 0, picture.columns, picture.rows);
    }
    this.#overlay(best);
    // Only now is it known what window is in force.
    if (was !== element.dataset.state) this.changed();
  }

  /** What is said where a picture should be. */
  #explain({ error, frame }) {
    const { notice, picture } = this;
    if (this.message) fill(notice, h("p", { class: "pane-title" }, this.message.title), this.message.text ? h("p", null, this.message.text) : null, this.message.action ?? null);
    else if (error)
      fill(
        notice,
        h("p", { class: "pane-title" }, sentence(error.message)),
        error.reason ? h("p", { class: "faint" }, error.reason) : null,
        error.remedy ? h("p", null, sentence(error.remedy)) : null,
        error.again ? h("button", { type: "button", class: "button", on: { click: () => this.frames.again(picture) } }, "Try again") : null,
      );
    else if (picture && !frame) fill(notice, h("div", { class: "spinner", role: "status", "aria-label": "Loading" }));
    else fill(notice);
    notice.classList.toggle("quiet", Boolean(picture && !frame && !error && !this.message));
  }

  #overlay({ frame, preview }) {
    const { corners, picture, series, context } = this;
    const lines = (name, ...texts) => fill(corners[name], texts.filter(Boolean).map((text) => (text instanceof Node ? text : h("div", null, text))));
    if (!picture) {
      for (const name of Object.keys(corners)) lines(name);
      this.canvas.setAttribute("aria-label", series ? `Series ${series.series_number || ""}: ${this.message?.title ?? "no pictures"}` : "No series");
      return;
    }
    const { study } = context;
    const where = `${this.index + 1} / ${this.pictures.length}`;
    const window = this.current(frame);
    const level = picture.samples > 1 ? "" : window.table ? window.label : `C ${tidy(window.center)}  W ${tidy(window.width)}`;
    this.canvas.setAttribute(
      "aria-label",
      `Series ${series.series_number || ""} ${series.series_description || ""}, image ${this.index + 1} of ${this.pictures.length}${level ? `, ${level}` : ""}`,
    );
    const mark = study.verification === "HELD" ? "HELD" : study.verification === "UNVERIFIED" ? "UNVERIFIED" : "";
    if (!context.overlay()) {
      for (const name of Object.keys(corners)) lines(name);
      // A picture whose patient is in doubt says so, whatever else is hidden.
      lines("bottom", mark ? h("strong", { class: "mark" }, mark) : null);
      return;
    }
    const sex = format.SEX[study.patient_sex] ?? study.patient_sex;
    lines("tl", format.personName(study.patient_name) || "No name", study.patient_id, [format.date(study.patient_birth_date), sex, format.age(study.patient_birth_date, study.study_date)].filter(Boolean).join("  "));
    lines("tr", study.study_description, `${format.date(study.study_date)} ${format.time(study.study_time)}`, [series.series_number && `Se ${series.series_number}`, series.series_description].filter(Boolean).join("  "), study.accession_number && `Acc ${study.accession_number}`);
    lines(
      "bl",
      `Im ${where}${picture.of > 1 ? `  (frame ${picture.frame} of ${picture.of})` : picture.number === null ? "" : `  (#${picture.number})`}`,
      [picture.location === null ? "" : `L ${tidy(picture.location)} mm`, picture.thickness ? `T ${tidy(picture.thickness)} mm` : ""].filter(Boolean).join("  "),
      [picture.laterality, picture.view].filter(Boolean).join(" "),
      this.probe ? `(${this.probe.x}, ${this.probe.y})  ${this.probe.text}` : "",
    );
    const notes = [picture.lossy && "lossy source", picture.rendition?.derived && "colours derived", this.inverted && "inverted"].filter(Boolean).join(", ");
    lines("br", notes, `${Math.round(this.#fit() * this.view.zoom * devicePixelRatio * 100)} %`, level, preview ? h("div", { class: "soft" }, "preview") : null);
    const [right, down] = this.#directions();
    const opposite = (letters) => letters.replace(/[RLAPFH]/g, (c) => "LRPAHF"["RLAPFH".indexOf(c)]);
    lines("right", right);
    lines("left", opposite(right));
    lines("bottom", mark ? h("strong", { class: "mark" }, mark) : null, down);
    lines("top", opposite(down));
  }

  /** Where in the patient the right and the lower edge lie. */
  #directions() {
    const { orientation } = this.picture;
    if (orientation.length !== 6) return ["", ""];
    const negate = (v) => v.map((n) => -n);
    let [row, column] = [orientation.slice(0, 3), orientation.slice(3)];
    if (this.view.flipped) row = negate(row);
    for (let i = 0; i < this.view.turns; i++) [row, column] = [negate(column), row];
    return [direction(row), direction(column)];
  }

  /** The pixel of the image under a point of the pane (CSS pixels). */
  #pixel(x, y) {
    const { picture, view, element } = this;
    const scale = this.#fit() * view.zoom;
    let [dx, dy] = [x - element.clientWidth / 2 - view.x, y - element.clientHeight / 2 - view.y];
    for (let i = 0; i < view.turns; i++) [dx, dy] = [dy, -dx];
    if (view.flipped) dx = -dx;
    return [Math.floor(dx / scale + picture.columns / 2), Math.floor(dy / scale / picture.aspect + picture.rows / 2)];
  }

  #read(x, y) {
    const { shown, picture } = this;
    this.probe = null;
    if (!shown || shown.preview || !picture) return;
    const [column, row] = this.#pixel(x, y);
    if (column < 0 || row < 0 || column >= picture.columns || row >= picture.rows) return;
    const { frame } = shown;
    const at = (row * frame.width + column) * frame.samples;
    const text = frame.samples > 1 ? [0, 1, 2].map((i) => frame.data[at + i]).join(" ") : `${tidy(valueAt(picture, frame.data[at]))}${picture.unit && picture.unit !== "US" ? ` ${picture.unit}` : picture.modality === "CT" ? " HU" : ""}`;
    this.probe = { x: column, y: row, text };
  }

  #pointer(focus) {
    const { element } = this;
    const pointers = new Map();
    let drag = null;
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    element.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button, a")) return;
      focus();
      element.focus({ preventScroll: true });
      pointers.set(event.pointerId, event);
      element.setPointerCapture(event.pointerId);
      const tool = event.button === 1 || event.shiftKey ? "pan" : event.button === 2 ? "zoom" : this.context.tool();
      drag = { tool, x: event.clientX, y: event.clientY, startX: event.offsetX, startY: event.offsetY, rest: 0 };
      if (pointers.size === 2) drag.tool = "pinch";
      event.preventDefault();
    });
    element.addEventListener("pointermove", (event) => {
      if (!drag || !pointers.has(event.pointerId)) {
        if (!this.picture) return;
        this.#read(event.offsetX, event.offsetY);
        this.#overlayLater();
        return;
      }
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (drag.tool === "pinch") {
        const other = [...pointers.values()].find((p) => p.pointerId !== event.pointerId);
        const apart = (p, q) => Math.hypot(p.clientX - q.clientX, p.clientY - q.clientY);
        const old = pointers.get(event.pointerId);
        if (other && apart(old, other) > 0) this.zoom(apart(event, other) / apart(old, other));
        this.view.x += (event.clientX - old.clientX) / 2;
        this.view.y += (event.clientY - old.clientY) / 2;
      } else this.#drag(drag, dx, dy);
      pointers.set(event.pointerId, event);
      [drag.x, drag.y] = [event.clientX, event.clientY];
    });
    const end = (event) => {
      pointers.delete(event.pointerId);
      if (pointers.size) return;
      drag = null;
      if (this.dragging) {
        this.dragging = false;
        this.draw();
      }
    };
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
    element.addEventListener("pointerleave", () => {
      this.probe = null;
      this.#overlayLater();
    });
    element.addEventListener("dblclick", (event) => {
      if (event.target.closest("button, a")) return;
      this.view.zoom = 1;
      this.view.x = this.view.y = 0;
      this.draw();
    });
    let rolled = 0;
    element.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        focus();
        if (event.ctrlKey) {
          const box = element.getBoundingClientRect();
          return this.zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
        }
        // A notch of a wheel is one picture, whatever unit it comes in; a touchpad's small steps add up.
        rolled += event.deltaMode === 0 ? event.deltaY / 60 : event.deltaY;
        const steps = Math.abs(event.deltaY) >= 60 && event.deltaMode === 0 ? Math.sign(event.deltaY) * Math.max(1, Math.round(Math.abs(event.deltaY) / 120)) : Math.trunc(rolled);
        if (!steps) return;
        rolled = 0;
        this.step(steps);
      },
      { passive: false },
    );
  }

  #overlayLater() {
    if (!this.drawing && !this.reading)
      this.reading = requestAnimationFrame(() => {
        this.reading = 0;
        if (!this.drawing) this.#overlay(this.shown ?? {});
      });
  }

  #drag(drag, dx, dy) {
    const { picture } = this;
    if (!picture) return;
    if (drag.tool === "pan") {
      this.view.x += dx;
      this.view.y += dy;
      this.draw();
    } else if (drag.tool === "zoom") this.zoom(Math.exp(-dy / 150), drag.startX, drag.startY);
    else if (drag.tool === "scroll") {
      drag.rest += dy;
      const each = Math.max(3, this.element.clientHeight / 2 / this.pictures.length);
      const steps = Math.trunc(drag.rest / each);
      drag.rest -= steps * each;
      if (steps) this.step(steps);
    } else if (drag.tool === "window" && picture.samples === 1 && this.shown) {
      const now = this.current();
      // From a table one goes on with the range that it covers.
      const from = now.table ? wholeRange(picture, this.shown.frame) : now;
      const speed = Math.max(0.002 * from.width, this.shown.frame.whole ? 0.2 : 1e-9) * 1.5;
      const floor = this.shown.frame.whole ? 1 : 1e-6;
      this.dragging = true;
      this.setWindow({ center: round(from.center + dy * speed), width: Math.max(floor, round(from.width + dx * speed)), shape: from.shape, label: "Chosen" });
    }
  }
}

const round = (value) => (Math.abs(value) >= 20 ? Math.round(value * 10) / 10 : value);
const tidy = (value) => (Math.abs(value) >= 100 ? Math.round(value) : Number(Number(value).toPrecision(4)));
