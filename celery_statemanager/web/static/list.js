// The page of all jobs: newest first, with live bars, a search and a filter.

import { countsOf, createBar, formatNumber, percentOf, updateBar } from "./celery-job.js";
import { get, h, jobPage, listPage, phaseBadge, serverNow, setIcon, setPhase, setText } from "./page.js";
import { ago, exactly, visible } from "./text.js";

const POLL_EVERY = 2000;
const POLL_SETTLED_EVERY = 10000;
const POLL_AT_LEAST_EVERY = 30000;
const TYPING_PAUSE = 250;
const PAGE_SIZE = 50;
const PHASES = ["", "running", "waiting", "failing", "paused", "finished", "failed", "cancelled"];

const query = new URLSearchParams(location.search);
const wanted = {
  text: query.get("text") ?? "",
  phase: PHASES.includes(query.get("phase") ?? "") ? (query.get("phase") ?? "") : "",
  cursor: query.get("cursor") ?? "",
};

const search = h("input", {
  type: "search",
  id: "search",
  placeholder: "Search by name, title or owner",
  autocomplete: "off",
  spellcheck: false,
  "aria-label": "Search by name, title or owner",
  value: wanted.text,
});
const phases = h(
  "div",
  { className: "phases", role: "group", "aria-label": "Phase" },
  PHASES.map((phase) =>
    h(
      "button",
      {
        type: "button",
        className: "choice",
        ariaPressed: String(phase === wanted.phase),
        onclick: () => choose(phase),
      },
      phase || "all",
    ),
  ),
);
const notice = h("p", { className: "notice", role: "status", hidden: true });
const head = h(
  "div",
  { className: "job-row head", "aria-hidden": "true" },
  ["Job", "Phase", "Progress", "", "Tasks", "Failed", "Created"].map((label) => h("span", {}, label)),
);
const list = h("ul", { className: "jobs" });
const empty = h("p", { className: "empty", hidden: true });
const newest = h("a", { className: "button", hidden: true }, "← Newest");
const older = h("a", { className: "button", hidden: true }, "Older →");
const pages = h("nav", { className: "pages", "aria-label": "Pages" }, newest, older);
const rows = new Map();

let timer = 0;
let failures = 0;
let delay = POLL_EVERY;
let request = null;

function choose(phase) {
  wanted.phase = phase;
  for (const button of phases.children) button.ariaPressed = String(button.textContent === (phase || "all"));
  change();
}

// Show the first page for the current search and phase, and store both in the address.
function change() {
  wanted.cursor = "";
  history.replaceState(null, "", listPage({ text: wanted.text, phase: wanted.phase }));
  read();
}

function rowOf(job) {
  const key = JSON.stringify([job.jobID, job.runToken, job.createdAt]);
  if (rows.has(key)) return rows.get(key);
  const badge = phaseBadge();
  const bar = createBar();
  const part = {
    title: h("span", { className: "title", dir: "auto" }),
    detail: h("span", { className: "detail", dir: "auto" }),
    percent: h("span", { className: "number percent" }),
    tasks: h("span", { className: "number tasks" }),
    failed: h("span", { className: "number failed-count" }),
    created: h("time", { className: "number created", dateTime: job.createdAt, title: exactly(job.createdAt) }),
  };
  const link = h("a", { className: "stretched", href: jobPage(job.jobID, job.runToken) }, part.title);
  const item = h(
    "li",
    { className: "job-row" },
    h("div", { className: "name" }, link, part.detail),
    badge,
    bar,
    part.percent,
    part.tasks,
    part.failed,
    part.created,
  );
  const row = { key, item, badge, bar, ...part };
  rows.set(key, row);
  return row;
}

function draw(job) {
  const row = rowOf(job);
  const { title, owner } = job.metadata ?? {};
  const named = typeof title === "string" && title !== "";
  const details = [
    named ? job.jobID : null,
    typeof owner === "string" ? owner : null,
    job.runToken ? `run ${job.runToken}` : null,
  ];
  setText(row.title, visible(named ? title : job.jobID));
  setText(row.detail, details.filter(Boolean).map(visible).join(" · "));
  setPhase(row.badge, job.phase);
  const counts = countsOf(job, job);
  updateBar(row.bar, counts, "progress");
  setText(row.percent, `${percentOf(job)}%`);
  setText(row.tasks, `${formatNumber(job.finished)} / ${formatNumber(job.expected)}`);
  setText(row.failed, counts.failed ? formatNumber(counts.failed) : "");
  setText(row.created, ago(serverNow() - Date.parse(job.createdAt)));
  return row;
}

function show({ jobs, cursor }) {
  const shown = jobs.map(draw);
  const keys = new Set(shown.map((row) => row.key));
  for (const [key, row] of rows) {
    if (keys.has(key)) continue;
    row.item.remove();
    rows.delete(key);
  }
  shown.forEach((row, number) => {
    if (list.children[number] !== row.item) list.insertBefore(row.item, list.children[number] ?? null);
  });
  head.hidden = !shown.length;
  empty.hidden = shown.length > 0;
  if (!shown.length) setText(empty, explainEmpty(cursor));
  newest.hidden = !wanted.cursor;
  newest.href = listPage({ text: wanted.text, phase: wanted.phase });
  older.hidden = !cursor;
  if (cursor) older.href = listPage({ text: wanted.text, phase: wanted.phase, cursor });
  const active = jobs.filter((job) => !job.settled).length;
  document.title = active ? `Jobs (${active} active)` : "Jobs";
  return active > 0;
}

function explainEmpty(cursor) {
  if (cursor) return "None of the newest 1,000 jobs matches. Select “Older” to search older jobs.";
  if (wanted.text || wanted.phase) return "No job matches.";
  return "There are no jobs yet. A job appears here as soon as it is submitted.";
}

async function read() {
  clearTimeout(timer);
  request?.abort();
  const mine = (request = new AbortController());
  try {
    const active = show(await get("jobs", { ...wanted, limit: PAGE_SIZE }, mine.signal));
    failures = 0;
    notice.hidden = true;
    delay = active ? POLL_EVERY : Math.min(POLL_SETTLED_EVERY, delay + POLL_EVERY);
  } catch (error) {
    if (mine.signal.aborted) return;
    notice.hidden = false;
    if (error.status === 403 || error.status === 400) {
      setText(notice, error.message);
      return;
    }
    failures += 1;
    delay = Math.min(POLL_AT_LEAST_EVERY, POLL_EVERY * 1.5 ** failures);
    setText(notice, error.status ? `${error.message}. Trying again …` : "Connection lost. Reconnecting …");
  }
  timer = setTimeout(poll, delay);
}

function poll() {
  if (!document.hidden) read();
}

document.addEventListener("visibilitychange", poll);
search.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    wanted.text = search.value.trim();
    change();
  }, TYPING_PAUSE);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.closest("input, textarea")) return;
  event.preventDefault();
  search.focus();
});

setIcon("running", 62);
document
  .getElementById("page")
  .replaceChildren(
    h("header", { className: "list-head" }, h("h1", {}, "Jobs"), search),
    phases,
    notice,
    h("section", { "aria-label": "Jobs" }, head, list, empty),
    pages,
  );
read();
