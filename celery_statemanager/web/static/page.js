// Functions of both pages: elements, requests to the API, the favicon.

const root = new URL("..", import.meta.url);
const query = new URLSearchParams(location.search);

// The named parameters of this page. Every request and every link needs the token.
const ownParameters = (names) =>
  Object.fromEntries(names.filter((name) => query.has(name)).map((name) => [name, query.get(name)]));

// Create an element. Texts become text nodes, never markup. null, undefined and false are omitted.
export function h(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && !key.includes("-") && key !== "list" && key !== "form") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// Replace an element's text only if it differs, so that a selection and screen readers are not disturbed.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function apiAddress(path, parameters = {}) {
  const address = new URL(`api/${path}`, root);
  for (const [key, value] of Object.entries({ ...ownParameters(["token"]), ...parameters })) {
    if (value !== null && value !== undefined && value !== "") address.searchParams.set(key, value);
  }
  return address;
}

export function jobPath(jobId, rest = "") {
  return `jobs/${encodeURIComponent(jobId)}${rest}`;
}

export function jobPage(jobId, runToken) {
  const address = new URL(jobPath(jobId), root);
  for (const [key, value] of Object.entries({ ...ownParameters(["token"]), run_token: runToken })) {
    if (value) address.searchParams.set(key, value);
  }
  return address.href;
}

export function listPage(parameters = {}) {
  const address = new URL(".", root);
  for (const [key, value] of Object.entries({ ...ownParameters(["token"]), ...parameters })) {
    if (value) address.searchParams.set(key, value);
  }
  return address.href;
}

// The id and the run of the job that this page shows.
export function jobOfPage() {
  const segment = location.pathname.slice(new URL("jobs/", root).pathname.length);
  return { jobId: decodeURIComponent(segment), runToken: query.get("run_token") };
}

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.nearest = body?.error?.nearest ?? [];
  }
}

let clockOffset = 0;

// The present time by the server's clock, in milliseconds.
export const serverNow = () => Date.now() + clockOffset;

async function request(address, options = {}) {
  const answer = await fetch(address, { cache: "no-store", ...options });
  const date = Date.parse(answer.headers.get("date") ?? "");
  // The header contains whole seconds, so small differences are not corrected.
  if (date) clockOffset = Math.abs(date - Date.now()) > 5000 ? date - Date.now() : 0;
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(answer.status, body);
  return body;
}

export const get = (path, parameters, signal) => request(apiAddress(path, parameters), { signal });

export const post = (path, parameters, body) =>
  request(apiAddress(path, parameters), {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Requested-With": "celery-statemanager" },
    body: JSON.stringify(body),
  });

const TONES = {
  waiting: "#8a909c",
  running: "#3d7be0",
  failing: "#d64545",
  paused: "#8a909c",
  finished: "#2f9e6e",
  failed: "#d64545",
  cancelled: "#8a909c",
};

// Show a phase and a percentage as a ring in the tab.
export function setIcon(phase, percent) {
  const length = 2 * Math.PI * 11;
  const ring = (colour, share, opacity) =>
    `<circle cx="16" cy="16" r="11" fill="none" stroke="${colour}" stroke-opacity="${opacity}" stroke-width="7" ` +
    `stroke-dasharray="${(share * length).toFixed(1)} 99" transform="rotate(-90 16 16)"/>`;
  const colour = TONES[phase] ?? TONES.waiting;
  const rings = ring(colour, 1, 0.28) + ring(colour, percent / 100, 1);
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">${rings}</svg>`;
  const address = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  const link = document.querySelector("link[rel=icon]");
  if (link.href !== address) link.href = address;
}

export function phaseBadge() {
  return h("span", { className: "phase" }, h("span", { className: "dot", ariaHidden: "true" }), h("span", {}));
}

export function setPhase(badge, phase) {
  badge.dataset.phase = phase;
  setText(badge.lastChild, phase);
}
