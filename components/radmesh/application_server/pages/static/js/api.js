// The door's JSON API. Names are those of the protos.

/** A refusal: `reason` for programs, `message` and `remedy` for people. */
export class ApiError extends Error {
  constructor(status, { reason, detail, title, remedy, incident } = {}, retryAfter = 0) {
    super(detail || title || `the server answered ${status}`);
    this.status = status;
    this.reason = reason || (status ? `HTTP_${status}` : "CONNECTION_LOST");
    this.remedy = remedy || "";
    this.incident = incident || "";
    this.retryAfter = retryAfter;
  }
}

let signedOut = () => {};
/** Call `handler` when the session has ended. */
export function onSignedOut(handler) {
  signedOut = handler;
}

/** fetch, whose failures are ApiErrors. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { detail: "the server does not answer", remedy: "check the network; radmesh may be starting" });
  }
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // Something between gave the answer; its status is all there is.
  }
  const error = new ApiError(response.status, body, Number(response.headers.get("Retry-After")) || 0);
  if (response.status === 401 && !options.anonymous) signedOut(error);
  throw error;
}

async function json(method, path, { query, body, ...options } = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {}))
    for (const one of [value].flat()) if (one !== "" && one !== undefined && one !== null) search.append(name, one);
  const response = await request(`/api/v1/${path}${search.size ? `?${search}` : ""}`, {
    method,
    headers: body === undefined ? { Accept: "application/json" } : { Accept: "application/json", "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    ...options,
  });
  return response.status === 204 ? {} : response.json();
}

export const get = (path, query, options) => json("GET", path, { query, ...options });
export const post = (path, body = {}, options) => json("POST", path, { body, ...options });
export const remove = (path) => json("DELETE", path);

const part = encodeURIComponent;
export const studyPath = (uid) => `studies/${part(uid)}`;
export const dicomWeb = (study, series, instance) =>
  `/dicom-web/studies/${part(study)}${series ? `/series/${part(series)}` : ""}${instance ? `/instances/${part(instance)}` : ""}`;

/** The name of a state without that of its axis, such as "HELD". */
export const state = (value) => String(value ?? "").replace(/^(VERIFICATION|ACQUISITION|READING|REPORT|DELIVERY|RENDITION)_STATE_/, "").replace(/^UNSPECIFIED$/, "");
