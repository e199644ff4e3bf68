// Frames: fetched from the door, the smallest picture first, decoded in workers, kept as long as there is room.

import { ApiError, dicomWeb, request } from "../api.js";

const DECODED_BYTES = 384 << 20;
const ENCODED_BYTES = 192 << 20;
const LOADS = 4;
// A first picture is worth a request of its own where it is much smaller than the whole.
const PREVIEW_FROM_BYTES = 32 << 10;
const PREVIEW_PIXELS = 96;

const ORIGINAL = "the original is at hand: radmesh get";

const SYNTAXES = {
  "1.2.840.10008.1.2.5": "RLE Lossless",
  "1.2.840.10008.1.2.4.51": "JPEG Extended, 12 bits",
  "1.2.840.10008.1.2.4.57": "JPEG Lossless",
  "1.2.840.10008.1.2.4.70": "JPEG Lossless",
  "1.2.840.10008.1.2.4.80": "JPEG-LS",
  "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
  "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
  "1.2.840.10008.1.2.4.91": "JPEG 2000",
  "1.2.840.10008.1.2.4.100": "MPEG-2 video",
  "1.2.840.10008.1.2.4.102": "MPEG-4 video",
  "1.2.840.10008.1.2.4.103": "MPEG-4 video",
  "1.2.840.10008.1.2.4.110": "JPEG XL lossless",
  "1.2.840.10008.1.2.4.111": "JPEG XL of a JPEG",
  "1.2.840.10008.1.2.4.112": "JPEG XL",
  "1.2.840.10008.1.2.8.1": "Deflated Image Frame",
};
/** A name of a transfer syntax for people. */
export const syntaxName = (uid) => SYNTAXES[uid] ?? (/^1\.2\.840\.10008\.1\.2\.4\.20[123]$/.test(uid) ? "HTJ2K" : uid);

/** Why a picture is not shown, and what else can be done. */
export class FrameError extends Error {
  constructor(message, { remedy = "", reason = "", again = false } = {}) {
    super(message);
    this.remedy = remedy;
    this.reason = reason;
    this.again = again;
  }
}

/** What was used last stays; at most `most` bytes. */
class Recent {
  constructor(most) {
    this.most = most;
    this.bytes = 0;
    this.kept = new Map();
  }
  get(key) {
    const value = this.kept.get(key);
    if (value) {
      this.kept.delete(key);
      this.kept.set(key, value);
    }
    return value;
  }
  has(key) {
    return this.kept.has(key);
  }
  set(key, value, size) {
    this.drop(key);
    value.kept = size;
    this.kept.set(key, value);
    this.bytes += size;
    for (const [oldest] of this.kept) {
      if (this.bytes <= this.most || this.kept.size === 1) break;
      this.drop(oldest);
    }
  }
  drop(key) {
    const value = this.kept.get(key);
    if (!value) return;
    this.kept.delete(key);
    this.bytes -= value.kept;
  }
}

/** Workers that decode; the least busy one takes the next frame. */
class Decoders {
  constructor() {
    this.next = 0;
    this.waiting = new Map();
    this.workers = [];
  }
  start() {
    const count = Math.max(1, Math.min(3, (navigator.hardwareConcurrency || 2) - 1));
    for (let i = 0; i < count; i++) this.workers.push(this.#worker());
  }
  #worker() {
    const worker = { thread: new Worker(new URL("decode-worker.js", import.meta.url)), busy: new Set() };
    const finish = (id) => {
      const promise = this.waiting.get(id);
      this.waiting.delete(id);
      worker.busy.delete(id);
      return promise;
    };
    worker.thread.addEventListener("message", ({ data }) => {
      const promise = finish(data.id);
      if (data.frame) promise?.resolve(data.frame);
      else promise?.reject(Object.assign(new FrameError(data.error), { unsupported: data.unsupported }));
    });
    worker.thread.addEventListener("error", (event) => {
      event.preventDefault();
      // A decoder that ran out of memory or broke ends with what it had; another takes its place.
      for (const id of [...worker.busy]) finish(id)?.reject(new FrameError("the decoder stopped on this frame"));
      worker.thread.terminate();
      const at = this.workers.indexOf(worker);
      if (at >= 0) this.workers.splice(at, 1);
      this.failures = (this.failures ?? 0) + 1;
      if (this.failures < 8 && at >= 0) this.workers.push(this.#worker());
    });
    return worker;
  }
  decode(work) {
    if (!this.workers.length) {
      if (this.failures >= 8) return Promise.reject(new FrameError("the decoder does not start in this browser", { remedy: "use a current browser, with WebAssembly allowed" }));
      this.start();
    }
    const worker = this.workers.reduce((a, b) => (b.busy.size < a.busy.size ? b : a));
    const id = ++this.next;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      worker.busy.add(id);
      worker.thread.postMessage({ id, ...work });
    });
  }
  stop() {
    for (const { thread } of this.workers) thread.terminate();
    this.workers = [];
    for (const { reject } of this.waiting.values()) reject(new DOMException("closed", "AbortError"));
    this.waiting.clear();
  }
}

/** What a decoder needs to know of a picture. */
const described = ({ rows, columns, samples, bitsAllocated, bitsStored, highBit, signed, planar, photometric, padding, paddingLimit, modality }) => ({
  rows, columns, samples, bitsAllocated, bitsStored, highBit, signed, planar, photometric, padding, paddingLimit,
  // Float Pixel Data has no Bits Stored (PS3.3 C.7.6.24); 64 bits are always such.
  float: bitsAllocated === 64 || (bitsAllocated === 32 && !bitsStored),
  modality,
});

function joined(parts) {
  const out = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const parameter = (header, name) => new RegExp(`;\\s*${name}="?([^";]+)"?`, "i").exec(header ?? "")?.[1] ?? "";

/** The one part of a multipart/related answer, and its content type. */
function unpacked(bytes, type) {
  if (!/^multipart\//i.test(type)) return { bytes, type };
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, 2048));
  const end = head.indexOf("\r\n\r\n");
  if (end < 0) throw new FrameError("the server's answer has no part");
  const boundary = `\r\n--${parameter(type, "boundary")}`;
  const tail = new TextDecoder("latin1").decode(bytes.subarray(-boundary.length - 8));
  const stop = tail.lastIndexOf(boundary);
  return {
    bytes: bytes.subarray(end + 4, stop < 0 ? bytes.length : bytes.length - tail.length + stop),
    type: /content-type:\s*([^\r\n]+)/i.exec(head.slice(0, end))?.[1] ?? "",
  };
}

/** The frames of a study. `changed(key)` is called when there is more of one, or an error. */
export class Frames {
  constructor() {
    this.decoded = new Recent(DECODED_BYTES);
    this.previews = new Recent(DECODED_BYTES >> 3);
    this.encoded = new Recent(ENCODED_BYTES);
    this.errors = new Map();
    this.loads = new Map();
    this.wishes = new Map();
    this.decoders = new Decoders();
    this.listeners = new Set();
    this.closed = false;
    this.stats = { requests: 0, bytes: 0, previews: 0 };
  }

  onChange(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  #changed(key) {
    for (const listener of [...this.listeners]) listener(key);
  }

  /** The best there is of a picture: {frame, preview} or {error} or {}. */
  best(picture) {
    const frame = this.decoded.get(picture.key);
    if (frame) return { frame };
    const error = this.errors.get(picture.key);
    if (error) return { error };
    const preview = this.previews.get(picture.key);
    return preview ? { frame: preview, preview: true } : {};
  }

  /** Whether all of a picture has arrived (it may have to be decoded again). */
  arrived(picture) {
    return this.decoded.has(picture.key) || this.encoded.has(picture.key);
  }

  /** Load pictures for `owner`, in this order; the first is looked at now. */
  want(owner, pictures) {
    this.wishes.set(owner, pictures);
    const shown = new Set([...this.wishes.values()].map((wish) => wish[0]?.key));
    // What nobody looks at gives way to what somebody waits for.
    if ([...shown].some((key) => key && !this.decoded.has(key) && !this.loads.has(key)) && this.loads.size >= LOADS)
      for (const [key, load] of this.loads)
        if (!shown.has(key)) {
          load.abort();
          break;
        }
    this.#next();
  }

  /** Nobody looks for `owner` any more. */
  leave(owner) {
    this.wishes.delete(owner);
  }

  /** A picture was found to be none by the Curator. */
  cannot(picture) {
    const { reason, frame } = picture.rendition;
    this.errors.set(picture.key, new FrameError(`this image has no picture that can be shown${frame ? `: its frame ${frame} is damaged` : ""}`, { reason, remedy: ORIGINAL }));
  }

  /** Try what failed again. */
  again(picture) {
    this.errors.delete(picture.key);
    this.#changed(picture.key);
    this.#next();
  }

  close() {
    this.closed = true;
    this.wishes.clear();
    for (const load of this.loads.values()) load.abort();
    this.decoders.stop();
  }

  #next() {
    if (this.closed) return;
    const wishes = [...this.wishes.values()];
    const longest = Math.max(0, ...wishes.map((wish) => wish.length));
    let room = DECODED_BYTES * 0.8;
    for (let i = 0; i < longest && this.loads.size < LOADS; i++)
      for (const wish of wishes) {
        const picture = wish[i];
        if (!picture) continue;
        // Looking ahead must not drive out what is looked at.
        room -= picture.rows * picture.columns * picture.samples * (picture.bitsAllocated > 8 ? 2 : 1);
        if (room < 0 && i > 0) return;
        if (this.decoded.has(picture.key) || this.errors.has(picture.key) || this.loads.has(picture.key)) continue;
        this.#load(picture, i === 0);
        if (this.loads.size >= LOADS) return;
      }
  }

  async #load(picture, shown) {
    const abort = new AbortController();
    this.loads.set(picture.key, abort);
    try {
      await this.#fetch(picture, shown, abort.signal);
      this.errors.delete(picture.key);
    } catch (error) {
      if (error.name !== "AbortError") this.errors.set(picture.key, explained(error, picture));
    } finally {
      this.loads.delete(picture.key);
      if (!this.closed) {
        this.#changed(picture.key);
        this.#next();
      }
    }
  }

  async #fetch(picture, shown, signal) {
    let whole = this.encoded.get(picture.key);
    if (!whole) {
      const prefix = shown && !this.previews.has(picture.key) ? prefixOf(picture) : null;
      const begin = prefix ? await this.#get(picture, signal, `bytes=0-${prefix.bytes - 1}`) : null;
      if (begin?.partial) {
        const seen = this.#preview(begin, prefix.level, picture);
        const rest = await this.#get(picture, signal, `bytes=${begin.bytes.length}-`, begin.tag);
        await seen;
        whole = rest.partial ? { bytes: joined([begin.bytes, rest.bytes]), syntax: begin.syntax } : rest;
      } else whole = begin ?? (await this.#get(picture, signal));
      this.encoded.set(picture.key, { bytes: whole.bytes, syntax: whole.syntax }, whole.bytes.length);
    }
    const frame = await this.#decode(whole.bytes, whole.syntax, 0, picture);
    this.decoded.set(picture.key, frame, frame.data.byteLength);
    this.previews.drop(picture.key);
  }

  async #preview(begin, level, picture) {
    try {
      const frame = await this.#decode(begin.bytes, begin.syntax, level, picture);
      this.previews.set(picture.key, frame, frame.data.byteLength);
      this.stats.previews++;
      this.#changed(picture.key);
    } catch {
      // The whole frame says what is wrong.
    }
  }

  #decode(bytes, syntax, level, picture) {
    return this.decoders.decode({ bytes, syntax, level, picture: described(picture) }).catch((error) => {
      throw error.unsupported ? Object.assign(error, { syntax }) : error;
    });
  }

  async #get(picture, signal, range, tag) {
    const headers = { Accept: "application/octet-stream; transfer-syntax=*, image/*; transfer-syntax=*;q=0.9, multipart/related;q=0.5" };
    if (range) headers.Range = range;
    if (range && tag) headers["If-Range"] = tag;
    const path = `${dicomWeb(picture.study, picture.series, picture.sop)}/frames/${picture.frame}`;
    const response = await request(path, { headers, signal });
    const received = new Uint8Array(await response.arrayBuffer());
    this.stats.requests++;
    this.stats.bytes += received.length;
    const { bytes, type } = unpacked(received, response.headers.get("Content-Type") ?? "");
    return { bytes, partial: response.status === 206, tag: response.headers.get("ETag"), syntax: parameter(type, "transfer-syntax") || picture.transferSyntax };
  }
}

/** The prefix of a frame that is its first picture: {bytes, level}; null where the whole is as good. */
function prefixOf(picture) {
  const { prefixes, size } = picture;
  if (size < PREVIEW_FROM_BYTES || prefixes.length < 2) return null;
  const levels = prefixes.length - 1;
  for (let i = 0; i < levels; i++) {
    const level = levels - i;
    if (Math.min(picture.rows, picture.columns) >> level >= PREVIEW_PIXELS && prefixes[i] * 2 < size) return { bytes: prefixes[i], level };
  }
  return prefixes[levels - 1] * 2 < size ? { bytes: prefixes[levels - 1], level: 1 } : null;
}

function explained(error, picture) {
  if (error.unsupported)
    return new FrameError(`browsers cannot show ${syntaxName(error.syntax) || "this encoding"}`, { remedy: ORIGINAL, reason: picture.rendition?.reason });
  if (error instanceof ApiError) {
    const later = error.status === 0 || error.status === 503 || error.status === 429;
    return new FrameError(error.message, { remedy: error.remedy, reason: error.reason, again: later || error.status === 404 });
  }
  return new FrameError(error.message, { remedy: error.remedy || ORIGINAL, reason: picture.rendition?.reason });
}
