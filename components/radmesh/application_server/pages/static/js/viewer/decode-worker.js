"use strict";
// Frames become samples here, away from the page's own thread. A message {id, bytes, syntax, level, picture} is answered
// by {id, frame} or {id, error}.

importScripts("../../vendor/openjph/openjphjs.js");

const HTJ2K = new Set(["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"]);
const NATIVE = new Set(["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]);
const JPEG = new Set(["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"]);
const MOST_SAMPLES = 1 << 28;

let codec = null;
const openjph = () =>
  (codec ??= Module({
    locateFile: (name) => new URL(`../../vendor/openjph/${name}`, self.location.href).href,
    // Its complaints come back as errors; the console is for others.
    print() {},
    printErr() {},
  }));

class Unshowable extends Error {}

/** What the SIZ marker says (ISO/IEC 15444-1 A.5.1), and where its Ssiz bytes are. */
function sizeOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 42 || view.getUint32(0) !== 0xff4fff51) throw new Unshowable("the code stream has no header");
  const components = view.getUint16(40);
  if (bytes.length < 42 + 3 * components) throw new Unshowable("the code stream ends in its header");
  return { columns: view.getUint32(8) - view.getUint32(16), rows: view.getUint32(12) - view.getUint32(20), components, depth: bytes[42] };
}

async function htj2k(bytes, level, picture) {
  const openjphjs = await openjph();
  const size = sizeOf(bytes);
  if (size.columns !== picture.columns || size.rows !== picture.rows || size.components !== picture.samples)
    throw new Unshowable(`the code stream is ${size.columns} × ${size.rows} × ${size.components}, its metadata ${picture.columns} × ${picture.rows} × ${picture.samples}`);
  const bits = (size.depth & 0x7f) + 1, signed = size.depth >> 7 === 1;
  const decoder = new openjphjs.HTJ2KDecoder();
  try {
    const encoded = decoder.getEncodedBuffer(bytes.length);
    encoded.set(bytes);
    // openjphjs gives 8 bits and fewer as unsigned bytes and cuts negative values off. Called unsigned, the same stream
    // decodes to the values plus half their range (the level shift of 15444-1 G.1), which is undone below.
    const shifted = signed && bits <= 8;
    if (shifted) for (let i = 0; i < size.components; i++) encoded[42 + 3 * i] &= 0x7f;
    if (level) decoder.decodeSubResolution(level);
    else decoder.decode();
    const complaint = decoder.getLastErrorMessage();
    if (complaint || !decoder.getIsHeaderValid()) throw new Unshowable(`the code stream does not decode: ${complaint || "its header is not valid"}`);
    const { width, height } = level ? decoder.calculateSizeAtDecompositionLevel(level) : { width: size.columns, height: size.rows };
    const decoded = decoder.getDecodedBuffer();
    const samples = width * height * size.components;
    if (decoded.byteLength !== samples * (bits > 8 ? 2 : 1)) throw new Unshowable("the code stream decodes to another size than it says");
    const half = 1 << (bits - 1), low = signed ? -half : 0, high = signed ? half - 1 : 2 * half - 1;
    let data;
    if (bits > 8) data = new (signed ? Int16Array : Uint16Array)(decoded.slice().buffer, 0, samples);
    else if (shifted) data = Int8Array.from(decoded, (v) => Math.min(v - half, high));
    else data = new Uint8Array(decoded.slice().buffer);
    // Low-pass bands reach beyond the range of the samples; the whole picture never does.
    if (level) for (let i = 0; i < samples; i++) data[i] = data[i] < low ? low : data[i] > high ? high : data[i];
    return { width, height, samples: size.components, bits, data };
  } finally {
    decoder.delete();
  }
}

/** Interleave the planes of a colour frame. */
function interleave(planes, samples) {
  const out = new planes.constructor(planes.length), size = planes.length / samples;
  for (let s = 0; s < samples; s++) for (let i = 0; i < size; i++) out[i * samples + s] = planes[s * size + i];
  return out;
}

function native(bytes, syntax, picture) {
  const { rows, columns, samples, bitsAllocated, signed } = picture;
  const count = rows * columns * samples;
  const common = { width: columns, height: rows, samples, bits: picture.bitsStored };
  if (bitsAllocated === 1) {
    if (bytes.length * 8 < count) throw new Unshowable("the frame is shorter than rows × columns");
    const data = new Uint8Array(count);
    for (let i = 0; i < count; i++) data[i] = (bytes[i >> 3] >> (i & 7)) & 1;
    return { ...common, data };
  }
  const size = bitsAllocated / 8;
  if (!count || bytes.length < count * size) throw new Unshowable("the frame is shorter than rows × columns × bits");
  const buffer = bytes.slice(0, count * size).buffer;
  if (syntax === "1.2.840.10008.1.2.2" && size > 1) {
    const raw = new Uint8Array(buffer);
    for (let i = 0; i < raw.length; i += size) raw.subarray(i, i + size).reverse();
  }
  const type = { 8: signed ? Int8Array : Uint8Array, 16: signed ? Int16Array : Uint16Array, 32: picture.float ? Float32Array : signed ? Int32Array : Uint32Array, 64: Float64Array }[bitsAllocated];
  if (!type) throw new Unshowable(`samples of ${bitsAllocated} bits are not shown here`);
  let data = new type(buffer);
  // Bits beyond the stored ones may hold overlays (PS3.5 8.1.1).
  const above = bitsAllocated - 1 - picture.highBit, unused = bitsAllocated - picture.bitsStored;
  if (unused > 0 && bitsAllocated <= 32 && !picture.float) {
    const pad = 32 - bitsAllocated;
    data = data.map(signed ? (v) => (v << (above + pad)) >> (unused + pad) : (v) => (v << (above + pad)) >>> (unused + pad));
  }
  return { ...common, data: samples > 1 && picture.planar ? interleave(data, samples) : data };
}

/** The stream with an Adobe marker that says what its metadata says, where it says nothing itself of its colours. */
function coloured(bytes, picture) {
  for (let at = 2; at + 4 < bytes.length && bytes[at] === 0xff; at += 2 + (bytes[at + 2] << 8) + bytes[at + 3])
    if (bytes[at + 1] === 0xe0 || bytes[at + 1] === 0xee) return bytes;
    else if (bytes[at + 1] === 0xda) break;
  if (picture.samples !== 3) return bytes;
  const marker = [0xff, 0xee, 0, 14, 0x41, 0x64, 0x6f, 0x62, 0x65, 0, 100, 0, 0, 0, 0, picture.photometric === "RGB" ? 0 : 1];
  const out = new Uint8Array(bytes.length + marker.length);
  out.set(bytes.subarray(0, 2));
  out.set(marker, 2);
  out.set(bytes.subarray(2), 2 + marker.length);
  return out;
}

async function jpeg(bytes, picture) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([coloured(bytes, picture)], { type: "image/jpeg" }), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Unshowable(picture.bitsStored > 8 ? "browsers cannot show JPEG of more than 8 bits" : "the JPEG stream is damaged, or of a kind that browsers cannot show");
  }
  const { width, height } = bitmap;
  if (width !== picture.columns || height !== picture.rows) throw new Unshowable(`the JPEG stream is ${width} × ${height}, its metadata ${picture.columns} × ${picture.rows}`);
  const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  canvas.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = canvas.getImageData(0, 0, width, height).data;
  const samples = picture.samples === 1 ? 1 : 3;
  const data = new Uint8Array(width * height * samples);
  for (let i = 0, at = 0; i < rgba.length; i += 4) for (let s = 0; s < samples; s++) data[at++] = rgba[i + s];
  return { width, height, samples, bits: 8, data };
}

/** Lowest and highest value, and the same without padding. */
function measured(frame, picture) {
  const { data } = frame;
  let low = Infinity, high = -Infinity, innerLow = Infinity, innerHigh = -Infinity;
  const from = Math.min(picture.padding ?? NaN, picture.paddingLimit ?? picture.padding ?? NaN);
  const to = Math.max(picture.padding ?? NaN, picture.paddingLimit ?? picture.padding ?? NaN);
  for (const v of data) {
    if (v < low) low = v;
    if (v > high) high = v;
    if (!(v >= from && v <= to)) {
      if (v < innerLow) innerLow = v;
      if (v > innerHigh) innerHigh = v;
    }
  }
  if (!Number.isFinite(low)) [low, high] = [0, 1];
  return { ...frame, range: [low, high], inside: innerHigh >= innerLow ? [innerLow, innerHigh] : null, whole: !picture.float };
}

async function decode({ bytes, syntax, level, picture }) {
  if (!picture.rows || !picture.columns || picture.rows * picture.columns * picture.samples > MOST_SAMPLES)
    throw new Unshowable(`a picture of ${picture.columns} × ${picture.rows} is not shown here`);
  if (HTJ2K.has(syntax)) return htj2k(bytes, level, picture);
  if (NATIVE.has(syntax)) return native(bytes, syntax, picture);
  if (JPEG.has(syntax)) return jpeg(bytes, picture);
  throw new Unshowable("");
}

self.addEventListener("message", async ({ data: { id, ...work } }) => {
  try {
    const frame = measured(await decode(work), work.picture);
    self.postMessage({ id, frame: { ...frame, level: work.level } }, [frame.data.buffer]);
  } catch (error) {
    const known = error instanceof Unshowable;
    self.postMessage({ id, error: known ? error.message : `the frame does not decode: ${error.message ?? error}`, unsupported: known && !error.message });
  }
});
