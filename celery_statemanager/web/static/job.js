// The page of one job. It reads summaries from the events of the job, and the details after changes.

import { Callbacks } from "./callbacks.js";
import { JobFeed, countsOf, createBar, formatNumber, percentOf, tagsOf, updateBar } from "./celery-job.js";
import { Controls } from "./controls.js";
import { Estimate } from "./estimate.js";
import { Failures, MOST_GROUPED } from "./failures.js";
import {
  apiAddress,
  get,
  h,
  jobOfPage,
  jobPage,
  jobPath,
  listPage,
  phaseBadge,
  serverNow,
  setIcon,
  setPhase,
  setText,
} from "./page.js";
import { Rows } from "./rows.js";
import { Stages } from "./stages.js";
import { Why } from "./why.js";
import { duration, foreign, moment, roughly, visible } from "./text.js";

const DETAILS_AT_MOST_EVERY = 2000;
const COST_FACTOR = 10;
const NOTICE_FOR = 8000;
const FINISHED = 2 ** 31 - 1;

const job = jobOfPage();
const estimate = new Estimate();
const part = {
  title: h("h1", { dir: "auto" }),
  about: h("p", { className: "about" }),
  percent: h("span", { className: "big" }),
  badge: phaseBadge(),
  bar: createBar(),
  facts: h("dl", { className: "facts" }),
  reason: h("div", { className: "reason" }),
  notice: h("p", { className: "notice", role: "status", hidden: true }),
  spoken: h("p", { className: "spoken", role: "status" }),
  body: h("div", {}),
};
const rows = new Rows(job, onProblem);
const openRow = (row) => {
  rows.goTo(row);
  rows.element.scrollIntoView({ block: "nearest" });
};
const stages = new Stages(openRow);
const failures = new Failures({
  onRow: openRow,
  onMore: () => {
    feed.src.searchParams.set("failures", MOST_GROUPED); // for polling
    readDetails();
  },
});
const callbacks = new Callbacks();
const why = new Why(job, {
  onReasons: (reasons) => {
    stages.explain(reasons);
    callbacks.explain(reasons);
  },
  onError: onProblem,
});
const controls = new Controls(job, {
  onDone: () => {
    readDetails();
    feed.refresh();
  },
  onNotice: (text) => showNotice(text),
});

let data = null;
let details = {};
let readAt = -Infinity;
let cost = 0;
let waiting = 0;
let noticeTimer = 0;

const feed = new JobFeed(apiAddress(jobPath(job.jobId), { run_token: job.runToken }), { onData: take, onStatus });

function take(received) {
  const before = data;
  if (before && before.createdAt !== received.createdAt) {
    location.reload(); // another job with this id
    return;
  }
  data = received;
  estimate.add(data, serverNow());
  // Only the detailed answer has these fields. The last one remains until the next arrives.
  details = received.failures ? received : { ...details, ...received };
  draw();
  rows.update(data);
  stages.update(data);
  why.update(!data.settled || hasOpenCallbacks());
  const changed =
    !before || ["phase", "settled", "generation", "failed", "notRun"].some((name) => before[name] !== data[name]);
  if (changed) why.read();
  if (changed && !received.failures) readDetails();
  else if (received.failures) drawDetails();
}

function readDetails() {
  if (waiting) return;
  waiting = setTimeout(
    async () => {
      const begun = (readAt = performance.now());
      waiting = 0;
      try {
        const most = feed.src.searchParams.get("failures");
        details = await get(jobPath(job.jobId), { run_token: job.runToken, failures: most });
        cost = performance.now() - begun;
        drawDetails();
        if (details.settled && hasOpenCallbacks()) readDetails();
      } catch (error) {
        onProblem(error);
      }
    },
    Math.max(0, readAt + Math.max(DETAILS_AT_MOST_EVERY, cost * COST_FACTOR) - performance.now()),
  );
}

const hasEnded = (state) => Boolean(state) && (state.status < 0 || state.status === FINISHED);
const hasOpenCallbacks = () =>
  Object.values(details.callbacks ?? {}).some((each) => each.task && each.decidedAt && !hasEnded(each.state));

function drawDetails() {
  failures.update(details);
  callbacks.update(details);
  why.update(!data.settled || hasOpenCallbacks());
  controls.update({ ...details, ...data, actions: details.actions });
  draw();
}

function draw() {
  const { title, owner } = data.metadata ?? {};
  const named = typeof title === "string" && title !== "";
  const shown = visible(named ? title : data.jobID);
  setText(part.title, shown);
  const about = [
    named ? data.jobID : null,
    typeof owner === "string" ? owner : null,
    data.runToken ? `run ${data.runToken}` : null,
  ];
  const texts = about.filter(Boolean).map(visible);
  if (part.about.dataset.shown !== texts.join()) {
    part.about.dataset.shown = texts.join();
    const created = h("bdi", {}, "created ", moment(data.createdAt, serverNow()));
    part.about.replaceChildren(...texts.map((text) => h("bdi", {}, text)), created);
  }
  setText(part.percent, `${percentOf(data)}%`);
  setPhase(part.badge, data.phase);
  updateBar(part.bar, countsOf(data, data), "Progress of the job");
  drawFacts();
  drawReason();
  document.title = `${percentOf(data)}% ${data.phase} · ${shown}`;
  setIcon(data.phase, percentOf(data));
  const spoken = `${shown}: ${data.phase}${data.settled ? `, ${percentOf(data)}%` : ""}`;
  setText(part.spoken, spoken);
}

function rowsDone() {
  const last = tagsOf(data).at(-1)?.[1];
  if (last && last.expected === data.numTasks) return ["rows done", last.finished, data.numTasks];
  return ["tasks done", data.finished, data.expected];
}

function drawFacts() {
  const [label, done, total] = rowsDone();
  const { failed } = countsOf(data, data);
  const left = data.settled ? null : estimate.left(data, serverNow());
  const facts = [
    [label, formatNumber(done), ` of ${formatNumber(total)}`],
    [data.settled ? "took" : "elapsed", duration(elapsed()), ""],
    left === null ? null : ["left", `≈ ${roughly(left)}`, ""],
    failed
      ? [
          "failed",
          formatNumber(failed),
          data.maxFailed === null || data.maxFailed === undefined
            ? ""
            : ` of ${formatNumber(data.maxFailed)} tolerated`,
        ]
      : null,
    data.generation > 1 ? ["run", formatNumber(data.generation), ""] : null,
  ].filter(Boolean);
  const text = JSON.stringify(facts);
  if (part.facts.dataset.shown === text) return;
  part.facts.dataset.shown = text;
  part.facts.replaceChildren(
    ...facts.map(([name, value, note]) =>
      h(
        "div",
        { className: name === "failed" ? "fact bad" : "fact" },
        h("dt", {}, name),
        h("dd", { className: "number" }, value, h("span", { className: "of" }, note)),
      ),
    ),
  );
}

function elapsed() {
  const latch = Object.entries(details.callbacks ?? {}).find(([name]) => name === "settled")?.[1];
  const end = data.settled ? (latch?.decidedAt ?? details.lastActivity) : null;
  return (end ? Date.parse(end) : serverNow()) - Date.parse(data.createdAt);
}

function drawReason() {
  const reason = data.cancelled ? data.cancelled.reason : data.phase === "paused" ? details.outbox?.pauseReason : null;
  const text = reason ?? "";
  if (part.reason.dataset.shown === text) return;
  part.reason.dataset.shown = text;
  part.reason.replaceChildren(...(text ? [foreign(text)] : []));
}

function showNotice(text, keep = false) {
  clearTimeout(noticeTimer);
  part.notice.hidden = !text;
  setText(part.notice, text);
  if (text && !keep) noticeTimer = setTimeout(() => showNotice(""), NOTICE_FOR);
}

const NOTES = {
  lost: "Connection lost. The page shows the last known state and reconnects automatically.",
  deleted: "This job was deleted. The page shows its last known state.",
};

let status = "";

function onStatus(kind, error) {
  const before = status;
  status = kind;
  document.body.dataset.status = kind;
  if (kind === "missing" || kind === "denied") {
    explain(kind, error);
    return;
  }
  if (kind === "deleted") controls.disable();
  if (kind in NOTES) showNotice(NOTES[kind], true);
  else if (kind === "unavailable") showNotice(`${error?.message ?? "the store cannot be read"}. Trying again …`, true);
  else if (before in NOTES || before === "unavailable") showNotice("");
}

// The feed shows all other errors, because its own requests fail in the same way.
function onProblem(error) {
  if (error.status === 403) showNotice(error.message, true);
}

function explain(kind, error) {
  document.title = kind === "missing" ? "Job not found" : "Not allowed";
  const jobs = error.nearest ?? [];
  part.body.replaceChildren(
    h("h1", {}, kind === "missing" ? "There is no such job" : "You may not view this job"),
    h("div", { className: "explain" }, foreign(error.message)),
    jobs.length ? h("h2", {}, "Jobs with similar names") : null,
    h(
      "ul",
      { className: "similar" },
      jobs.map((each) =>
        h(
          "li",
          {},
          h(
            "a",
            { href: jobPage(each.jobID, each.runToken), dir: "auto" },
            visible(each.jobID),
            each.runToken ? ` (run ${visible(each.runToken)})` : "",
          ),
        ),
      ),
    ),
  );
}

setInterval(() => data && !data.settled && !document.hidden && drawFacts(), 1000);

part.body.append(
  h("header", { className: "job-head" }, h("div", { className: "names" }, part.title, part.about), controls.element),
  h("div", { className: "status-line" }, part.percent, part.badge, part.facts),
  h("div", { className: "job-bar" }, part.bar),
  part.reason,
  stages.element,
  rows.element,
  failures.element,
  callbacks.element,
);
document
  .getElementById("page")
  .replaceChildren(
    h("nav", { className: "crumbs", "aria-label": "Pages" }, h("a", { href: listPage() }, "Jobs")),
    part.notice,
    part.body,
    part.spoken,
  );
feed.start();
