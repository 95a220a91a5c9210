// What the page asks of the service, and what it does when that cannot be done.

import { word } from "./texts.js";

const KEPT = "headstart.token";

/** What went wrong, in the service's own words; or, with `key`, in the page's. */
export class ServiceError extends Error {
  constructor({ status = 0, message = "", key = null, values = {}, retryAfter = null }) {
    super(message || key);
    Object.assign(this, { status, key, values, retryAfter });
  }
}

/** Put an error where it matters, as an element that screen readers say at once; with null, take it away. */
export function tell(place, error, again = null) {
  place.replaceChildren();
  if (!error) return;
  if (error.name === "AbortError") return;
  const said = document.createElement("p");
  if (error.key) word(said, error.key, error.values);
  else {
    said.textContent = error.message;
    said.lang = "en";
    said.dir = "auto";
  }
  place.append(said);
  if (again) {
    const button = document.createElement("button");
    button.type = "button";
    word(button, "again");
    button.addEventListener("click", again);
    place.append(button);
  }
}

function token() {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    return token.here ?? null;
  }
}

export function useToken(text) {
  token.here = text;
  try {
    sessionStorage.setItem(KEPT, text);
  } catch {
    // then it is kept as long as the page is open
  }
}

export function hasToken() {
  return Boolean(token());
}

let locked = () => {};

/** Call this whenever the service asks for a token. */
export function whenLocked(callback) {
  locked = callback;
}

async function answer(method, path, body, { signal, headers = {} } = {}) {
  const all = { ...headers };
  if (token()) all.Authorization = `Bearer ${token()}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  let found;
  try {
    const sent = body === undefined ? undefined : JSON.stringify(body);
    found = await fetch(new URL(path, document.baseURI), {
      method,
      headers: all,
      body: sent,
      signal,
      cache: "no-store",
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServiceError({ key: "lost" });
  }
  if (found.ok) return found;
  const said = await found.json().then(
    (value) => value?.error?.message,
    () => null,
  );
  if (found.status === 401) locked();
  const strange = said ? {} : { key: "strange", values: { status: String(found.status) } };
  throw new ServiceError({
    status: found.status,
    message: said ?? "",
    retryAfter: Number(found.headers.get("Retry-After")) || null,
    ...strange,
  });
}

/** Ask again where the service is busy, up to five times, after as long as it says. */
async function patiently(ask, { signal, waiting = () => {} } = {}) {
  for (let times = 0; ; times++) {
    try {
      return await ask();
    } catch (error) {
      const busy = error.status === 429 || (error.status === 503 && error.retryAfter && error.retryAfter <= 5);
      if (!busy || times === 5) throw error;
      const seconds = Math.min(30, error.retryAfter ?? 2 ** times);
      waiting(seconds);
      await new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, 1000 * seconds);
        signal?.addEventListener("abort", () => {
          clearTimeout(timer);
          reject(new DOMException("stopped", "AbortError"));
        });
      });
    }
  }
}

async function json(method, path, body, options) {
  const found = await patiently(() => answer(method, path, body, options), options);
  try {
    return await found.json();
  } catch {
    throw new ServiceError({ key: "lost" });
  }
}

const task = (id, rest = "") => `v1/tasks/${encodeURIComponent(id)}${rest}`;

export const limits = () => json("GET", "v1/limits");
export const tasks = (after) => json("GET", `v1/tasks?limit=100${after ? `&after=${encodeURIComponent(after)}` : ""}`);
export const oneTask = (id) => json("GET", task(id));
export const create = (body, key, options) =>
  json("POST", "v1/tasks", body, { ...options, headers: { "Idempotency-Key": key } });
export const grow = (id, examples, key, options) =>
  json("POST", task(id, "/examples"), { examples }, { ...options, headers: { "Idempotency-Key": key } });
export const dropClass = (id, label, options) =>
  json("DELETE", task(id, `/classes/${encodeURIComponent(label)}`), undefined, options);
export const forget = (id) => answer("DELETE", task(id));
export const predict = (id, inputs, reject, options) =>
  json("POST", task(id, "/predict"), reject ? { inputs, reject } : { inputs }, options);
export const exported = async (id, to) => {
  const found = await patiently(() => answer("GET", task(id, `/export?to=${to}`)));
  return found.blob();
};

/** Return a key by which the service knows a request that comes again. */
export function requestKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Return items in parts of at most so many, and of at most so many bytes as JSON. */
export function parts(items, most, bytes) {
  const found = [];
  let size = Infinity;
  for (const item of items) {
    const own = JSON.stringify(item).length;
    if (size + own > bytes || found.at(-1).length === most) {
      found.push([]);
      size = 0;
    }
    found.at(-1).push(item);
    size += own + 1;
  }
  return found;
}
