// Formats of numbers, times and rows, and of texts from the application.

import { formatNumber } from "./celery-job.js";
import { h } from "./page.js";

const LONGEST_SHOWN = 400;
const ANSI = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[@-Z\\-_])/g;

export const counted = (value, noun) => `${formatNumber(value)} ${noun}${value === 1 ? "" : "s"}`;

export function duration(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  const two = (value) => String(value).padStart(2, "0");
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${two(seconds % 60)}s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)}h ${two(Math.floor((seconds % 3600) / 60))}m`;
  return `${Math.floor(seconds / 86400)}d ${two(Math.floor((seconds % 86400) / 3600))}h`;
}

// A duration that is only estimated, in one unit.
export function roughly(milliseconds) {
  const seconds = milliseconds / 1000;
  if (seconds < 55) return `${Math.max(5, Math.ceil(seconds / 5) * 5)}s`;
  if (seconds < 3300) return `${Math.ceil(seconds / 60)} min`;
  if (seconds < 79200) return `${Math.round(seconds / 360) / 10} h`;
  return `${Math.round(seconds / 8640) / 10} days`;
}

export function ago(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  if (seconds < 5) return "now";
  if (seconds < 60) return `${seconds}s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const whole = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long" });

// A time of day, with the date unless it is today.
export function moment(text, now) {
  const time = new Date(text);
  const today = new Date(now).toDateString() === time.toDateString();
  const shown = today ? clock.format(time) : `${day.format(time)}, ${clock.format(time)}`;
  return h("time", { dateTime: text, title: whole.format(time) }, shown);
}

export const exactly = (text) => whole.format(new Date(text));

// "3,17-20" with the typography of ranges.
export const ranges = (rows) => rows.replaceAll("-", "–").replaceAll(",", ", ");

// How many rows a text of ranges names.
export const countRows = (rows) =>
  rows.split(",").reduce((sum, range) => {
    const [low, high = low] = range.split("-").map(Number);
    return sum + high - low + 1;
  }, 0);

// Show control characters as symbols and leave out ANSI sequences. Line ends and tabs stay.
export function visible(text) {
  return text
    .replace(ANSI, "")
    .replace(/\r\n?/g, "\n")
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0)))
    .replace(/[\u007f-\u009f]/g, "\ufffd");
}

// A text of an application: isolated from the direction of the page, clipped, with a button that shows all of it.
export function foreign(text, { lines = 6, limit = LONGEST_SHOWN } = {}) {
  const full = visible(text);
  const rows = full.split("\n");
  let short = rows.slice(0, lines).join("\n");
  if (short.length > limit) short = short.slice(0, limit).replace(/[\ud800-\udbff]$/, "");
  const body = h("div", { className: "foreign", dir: "auto" }, short);
  if (short.length === full.length) return body;
  body.textContent = `${short}…`;
  const size = full.length > 2000 ? ` (${formatNumber(Math.ceil(full.length / 1000))} kB)` : "";
  const toggle = h("button", { type: "button", className: "plain", ariaExpanded: "false" }, `Show all${size}`);
  toggle.addEventListener("click", () => {
    const open = toggle.ariaExpanded === "false";
    toggle.ariaExpanded = String(open);
    toggle.textContent = open ? "Show less" : `Show all${size}`;
    body.textContent = open ? full : `${short}…`;
    body.classList.toggle("open", open);
    if (open) body.tabIndex = 0;
    else body.removeAttribute("tabindex");
  });
  return h("div", { className: "clipped" }, body, toggle);
}
