// The tags of a job in the order of their stages: bars, counts, and the reasons why cells have not ended.

import { LABELS, countsOf, createBar, formatNumber, percentOf, tagsOf, updateBar } from "./celery-job.js";
import { h, setText } from "./page.js";
import { countRows, foreign, ranges } from "./text.js";

const MOST_REASONS = 3;
const LONGEST_RANGES = 24;
const COLUMNS = ["finished", "failed", "notRun", "running", "notStarted"];

// Codes of cells that make progress or wait for their turn. Their reasons are shown on request.
const USUAL = new Set(["running", "waits", "received", "written", "more"]);
const AGES = /\d+ (s|min|h|d) ago|\(\d+ \w+ more\)/g;
const OWN_TURN = /^(waits for its turn|being published)/;
const URGENT = [
  "lost",
  "silent",
  "stalled",
  "retrying",
  "resetting",
  "unwritten",
  "queued",
  "unpublished",
  "delayed",
  "paused",
];

export class Stages {
  constructor(onRow) {
    this.onRow = onRow;
    this.rows = new Map();
    this.opened = new Set();
    this.keys = COLUMNS.map((name) =>
      h(
        "span",
        { className: "number key", "data-class": name },
        h("span", { className: "swatch" }),
        h("span", {}, LABELS[name]),
      ),
    );
    this.list = h("ul", { className: "stage-list" });
    this.element = h(
      "section",
      { className: "stages", hidden: true, "aria-label": "Progress by tag" },
      h(
        "div",
        { className: "stage head" },
        h("h2", {}, "Tags"),
        h("span"),
        h("span"),
        h("div", { className: "counts", "aria-hidden": "true" }, this.keys),
      ),
      this.list,
    );
  }

  update(data) {
    const tags = tagsOf(data);
    this.element.hidden = !tags.length;
    for (const [tag, row] of this.rows) {
      if (data.tags && tag in data.tags) continue;
      row.item.remove();
      this.rows.delete(tag);
    }
    for (const [tag, summary] of tags) {
      const row = this.#rowOf(tag);
      if (!row.item.isConnected) this.list.append(row.item);
      const counts = countsOf(summary, data);
      updateBar(row.bar, counts, tag);
      setText(row.percent, `${percentOf(summary)}%`);
      columnsOf(data).forEach((name, number) => {
        const cell = row.cells[number];
        cell.dataset.class = name;
        cell.classList.toggle("none", !counts[name]);
        setText(cell.firstChild, counts[name] ? formatNumber(counts[name]) : "–");
        setText(cell.lastChild, ` ${LABELS[name]}`);
      });
    }
    columnsOf(data).forEach((name, number) => {
      this.keys[number].dataset.class = name;
      setText(this.keys[number].lastChild, LABELS[name]);
    });
  }

  #rowOf(tag) {
    if (this.rows.has(tag)) return this.rows.get(tag);
    const cells = COLUMNS.map(() =>
      h("span", { className: "number count" }, h("span", {}), h("span", { className: "label" })),
    );
    const row = {
      cells,
      bar: createBar(),
      percent: h("span", { className: "number percent" }),
      why: h("div", { className: "why" }),
    };
    row.item = h(
      "li",
      {},
      h(
        "div",
        { className: "stage" },
        h("span", { className: "tag", dir: "auto" }, tag),
        row.bar,
        row.percent,
        h("div", { className: "counts" }, cells),
      ),
      row.why,
    );
    this.rows.set(tag, row);
    return row;
  }

  explain(reasons) {
    // While a task runs, messages that wait in a queue are usual.
    const active = reasons.some((reason) => reason.code === "running");
    const isUsual = ({ code, text }) =>
      USUAL.has(code) || (active && code === "queued") || (code === "unpublished" && OWN_TURN.test(text));
    for (const [tag, { why }] of this.rows) {
      const here = merged(reasons.filter((reason) => reason.tag === tag && reason.taskIDs !== null));
      const stuck = here.filter((reason) => !isUsual(reason));
      const text = JSON.stringify([stuck, here]);
      if (why.dataset.shown === text) continue;
      why.dataset.shown = text;
      why.replaceChildren(...this.#parts(tag, stuck, here.filter(isUsual)));
    }
  }

  #parts(tag, stuck, usual) {
    const rank = (reason) => (URGENT.includes(reason.code) ? URGENT.indexOf(reason.code) : URGENT.length);
    stuck.sort((one, other) => rank(one) - rank(other));
    const shown = stuck.slice(0, MOST_REASONS);
    const rest = [...stuck.slice(MOST_REASONS), ...usual];
    const parts = shown.length ? [this.#list(shown)] : [];
    if (rest.length) {
      const more = h("details", { open: this.opened.has(tag), ontoggle: () => this.#keep(tag, more.open) });
      const summary = shown.length ? `${rest.length} more` : "Why rows are open";
      more.append(h("summary", {}, summary), this.#list(rest));
      parts.push(more);
    }
    return parts;
  }

  #keep(tag, open) {
    if (open) this.opened.add(tag);
    else this.opened.delete(tag);
  }

  #list(reasons) {
    return h(
      "ul",
      {},
      reasons.map((reason) => this.#reason(reason)),
    );
  }

  #reason({ taskIDs, code, text }) {
    const all = ranges(taskIDs);
    const cut = Math.max(all.lastIndexOf(",", LONGEST_RANGES), 0) || LONGEST_RANGES;
    const short = all.length > LONGEST_RANGES ? `${all.slice(0, cut)} … (${formatNumber(countRows(taskIDs))})` : all;
    const first = Number.parseInt(taskIDs, 10);
    const many = /[,-]/.test(taskIDs);
    const link = h(
      "button",
      { type: "button", className: "plain rows-link", title: all.slice(0, 2000), onclick: () => this.onRow(first) },
      `${many ? "rows" : "row"} ${short}`,
    );
    return h("li", { "data-code": code }, link, foreign(text, { limit: 500 }));
  }
}

// Merge reasons whose texts differ only in the age of the last write.
function merged(reasons) {
  const found = new Map();
  for (const reason of reasons) {
    const key = JSON.stringify([reason.code, reason.text.replace(AGES, "")]);
    const first = found.get(key);
    if (first) first.taskIDs += `,${reason.taskIDs}`;
    else found.set(key, { ...reason });
  }
  return [...found.values()];
}

// A cancelled job has no waiting rows.
const columnsOf = (job) => (job.cancelled ? [...COLUMNS.slice(0, -1), "cancelled"] : COLUMNS);
