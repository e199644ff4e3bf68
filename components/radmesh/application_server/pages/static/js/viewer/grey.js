// From stored values to grey: modality LUT (PS3.3 C.11.1), VOI LUT (C.11.2), inversion. Results are 0 to 255.

/** The function from stored to modality values. */
function modality(picture) {
  const lut = picture.modalityTable;
  if (!lut) return (v) => v * picture.slope + picture.intercept;
  const last = lut.values.length - 1;
  return (v) => lut.values[Math.min(last, Math.max(0, v - lut.first))];
}

/** The function from modality values to 0…1; below and above it may go outside. */
function interest(window) {
  if (window.table) {
    const { first, values, bits } = window.table;
    const last = values.length - 1, top = 2 ** bits - 1;
    return (v) => values[Math.min(last, Math.max(0, Math.round(v) - first))] / top;
  }
  const { center, shape } = window;
  if (shape === "SIGMOID") {
    const width = Math.max(window.width, 1e-9);
    return (v) => 1 / (1 + Math.exp((-4 * (v - center)) / width));
  }
  if (shape === "LINEAR_EXACT") {
    const width = Math.max(window.width, 1e-9);
    return (v) => (v - center) / width + 0.5;
  }
  const width = Math.max(window.width, 1) - 1;
  if (width === 0) return (v) => (v > center - 0.5 ? 1 : 0);
  return (v) => (v - (center - 0.5)) / width + 0.5;
}

/** Whether low values are bright. */
const isInverse = (picture) => picture.photometric === "MONOCHROME1" || picture.inverse;

/** The function from a stored value to 0…255 (not rounded). */
function shade(picture, window, invert) {
  const toModality = modality(picture), toGrey = interest(window);
  const bright = isInverse(picture) !== invert;
  return (v) => {
    const grey = 255 * toGrey(toModality(v));
    return bright ? 255 - grey : grey;
  };
}

/** A window that shows nearly all of a frame, when the image names none. */
export function wholeRange(picture, frame) {
  const value = modality(picture);
  let [low, high] = frame.range;
  // Padding around the field of view would darken everything else (PS3.3 C.7.5.1.1.2).
  if (picture.padding !== null && frame.inside) [low, high] = frame.inside;
  const ends = [value(low), value(high)];
  const [bottom, top] = [Math.min(...ends), Math.max(...ends)];
  return { center: (bottom + top + 1) / 2, width: Math.max(1, top - bottom + 1), shape: "LINEAR", label: "Whole range" };
}

/** Every window that a picture offers by itself; the first is shown at first. */
export function offered(picture) {
  return [
    ...picture.tables.map((table, i) => ({ table, label: table.explanation || `LUT ${i + 1}` })),
    ...picture.windows.filter((w) => w.width > 0),
  ];
}

/** Draw `frame` into `image` (ImageData); every `step`-th column and row of it. */
export function paint(image, frame, picture, window, invert, step = 1) {
  const out = new Uint32Array(image.data.buffer);
  const { width, data, samples } = frame;
  const columns = image.width, rows = image.height;
  const flip = invert ? 0xffffff : 0;
  if (samples > 1) {
    const drop = Math.max(0, frame.bits - 8);
    for (let y = 0, at = 0; y < rows; y++)
      for (let x = 0, from = y * step * width * samples; x < columns; x++, from += step * samples)
        out[at++] = (0xff000000 | (data[from] >> drop) | ((data[from + 1] >> drop) << 8) | ((data[from + 2] >> drop) << 16)) ^ flip;
    return;
  }
  const value = shade(picture, window, invert);
  const grey = new Uint8ClampedArray(1);
  const word = (v) => {
    grey[0] = value(v);
    return 0xff000000 | (grey[0] * 0x010101);
  };
  const [low, high] = frame.range;
  if (frame.whole && high - low < 1 << 17) {
    const shades = new Uint32Array(high - low + 1);
    for (let v = low; v <= high; v++) shades[v - low] = word(v);
    if (step === 1) {
      for (let i = 0; i < out.length; i++) out[i] = shades[data[i] - low];
      return;
    }
    for (let y = 0, at = 0; y < rows; y++)
      for (let x = 0, from = y * step * width; x < columns; x++, from += step) out[at++] = shades[data[from] - low];
    return;
  }
  for (let y = 0, at = 0; y < rows; y++)
    for (let x = 0, from = y * step * width; x < columns; x++, from += step) out[at++] = word(data[from]);
}

/** Modality value of a stored one, for the pointer's read-out. */
export const valueAt = (picture, stored) => modality(picture)(stored);

export const PRESETS = {
  CT: [
    { label: "Soft tissue", center: 40, width: 400 },
    { label: "Lung", center: -600, width: 1500 },
    { label: "Bone", center: 400, width: 1800 },
    { label: "Brain", center: 40, width: 80 },
    { label: "Mediastinum", center: 50, width: 350 },
    { label: "Liver", center: 60, width: 150 },
  ],
};
