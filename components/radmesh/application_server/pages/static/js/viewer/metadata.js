// What the DICOM JSON of a series (PS3.18 F.2) says about its pictures.

export const all = (ds, tag) => ds?.[tag]?.Value ?? [];
export const first = (ds, tag) => all(ds, tag)[0];
export const text = (ds, tag) => {
  const value = first(ds, tag);
  return value === undefined || value === null ? "" : String(value.Alphabetic ?? value);
};
const number = (ds, tag, otherwise) => {
  const value = Number(first(ds, tag));
  return first(ds, tag) === undefined || Number.isNaN(value) ? otherwise : value;
};
const numbers = (ds, tag) => all(ds, tag).map(Number).filter((n) => !Number.isNaN(n));

/** A LUT of a sequence item (PS3.3 C.11.1.1, C.11.2.1.1); null where its table is not in the metadata. */
function table(item) {
  const [length, from, bits] = numbers(item, "00283002");
  const data = item?.["00283006"];
  if (bits === undefined || !data) return null;
  let values = data.Value;
  if (data.InlineBinary) {
    const raw = Uint8Array.from(atob(data.InlineBinary), (c) => c.charCodeAt(0));
    // Tables of 8 bits may have their entries in 8 bits or in 16.
    values = raw.length >= 2 * (length || 65536) ? new Uint16Array(raw.buffer, 0, raw.length >> 1) : raw;
  }
  return values?.length ? { first: from > 32767 ? from - 65536 : from, bits, values, explanation: text(item, "00283003") } : null;
}

const tables = (ds, tag) => all(ds, tag).map(table).filter(Boolean);

/** The windows of a data set or of a functional group item (PS3.3 C.11.2.1.2). */
function windows(ds) {
  const centers = numbers(ds, "00281050"), widths = numbers(ds, "00281051");
  return centers.slice(0, widths.length).map((center, i) => ({
    center,
    width: widths[i],
    shape: text(ds, "00281056") || "LINEAR",
    label: String(all(ds, "00281055")[i] ?? "") || (i ? `Window ${i + 1}` : "As sent"),
  }));
}

/** A macro of the functional groups of a frame, its own before the shared one (PS3.3 C.7.6.16). */
const macro = (shared, own, tag) => all(own, tag)[0] ?? all(shared, tag)[0];

/** Every picture of a series, in the order in which the instances came; `renditions`: SOP Instance UID → what was made of it. */
export function picturesOf(metadata, study, series, renditions) {
  const pictures = [];
  for (const ds of metadata) {
    const sop = text(ds, "00080018");
    const rendition = renditions.get(sop) ?? null;
    const of = Math.max(1, number(ds, "00280008", 1));
    const shared = all(ds, "52009229")[0];
    const instance = {
      study, series, sop, rendition, of,
      sopClass: text(ds, "00080016"),
      number: number(ds, "00200013", null),
      modality: text(ds, "00080060"),
      rows: number(ds, "00280010", 0),
      columns: number(ds, "00280011", 0),
      samples: number(ds, "00280002", 1),
      bitsAllocated: number(ds, "00280100", 0),
      bitsStored: number(ds, "00280101", number(ds, "00280100", 0)),
      highBit: number(ds, "00280102", number(ds, "00280101", 1) - 1),
      signed: number(ds, "00280103", 0) === 1,
      planar: number(ds, "00280006", 0) === 1,
      photometric: text(ds, "00280004") || rendition?.photometric_interpretation || "MONOCHROME2",
      inverse: text(ds, "20500020") === "INVERSE",
      padding: number(ds, "00280120", null),
      paddingLimit: number(ds, "00280121", null),
      transferSyntax: text(ds, "00083002") || rendition?.transfer_syntax_uid || "",
      modalityTable: tables(ds, "00283000")[0] ?? null,
      frameTime: number(ds, "00181063", 0) || (number(ds, "00180040", 0) ? 1000 / number(ds, "00180040", 1) : 0),
      lossy: text(ds, "00282110") === "01",
      laterality: text(ds, "00200062") || text(ds, "00200060"),
      view: text(ds, "00185101"),
    };
    for (let frame = 1; frame <= of; frame++) {
      const own = all(ds, "52009230")[frame - 1];
      const transformation = macro(shared, own, "00289145") ?? ds;
      const voi = macro(shared, own, "00289132") ?? ds;
      const measures = macro(shared, own, "00289110") ?? ds;
      const plane = macro(shared, own, "00209113") ?? ds;
      const orientation = macro(shared, own, "00209116") ?? ds;
      const spacing = [numbers(measures, "00280030"), numbers(ds, "00181164"), numbers(ds, "00280034")].find((s) => s.length === 2 && s[0] > 0 && s[1] > 0);
      pictures.push({
        ...instance,
        key: `${sop}/${frame}`,
        frame,
        slope: number(transformation, "00281053", 1) || 1,
        intercept: number(transformation, "00281052", 0),
        unit: text(transformation, "00281054"),
        windows: windows(voi),
        tables: tables(voi, "00283010"),
        aspect: spacing ? spacing[0] / spacing[1] : 1,
        thickness: number(measures, "00180050", null),
        location: number(ds, "00201041", null),
        position: numbers(plane, "00200032"),
        orientation: numbers(orientation, "00200037"),
        ...prefixesOf(rendition, frame),
      });
    }
  }
  return pictures;
}

/** Size and prefixes of a frame in the web cache, where they are known. */
function prefixesOf(rendition, frame) {
  const known = rendition?.frames?.[frame - 1];
  return { size: Number(known?.size ?? 0), prefixes: (known?.resolution_offsets ?? []).map(Number) };
}

/** The letter of a direction in the patient (PS3.3 C.7.6.1.1.1), such as "L" or "PH". */
export function direction(vector) {
  if (vector?.length !== 3) return "";
  return [["R", "L"], ["A", "P"], ["F", "H"]]
    .map((ends, axis) => ({ letter: ends[vector[axis] > 0 ? 1 : 0], size: Math.abs(vector[axis]) }))
    .filter(({ size }) => size > 0.3)
    .sort((a, b) => b.size - a.size)
    .slice(0, 2)
    .map(({ letter }) => letter)
    .join("");
}
