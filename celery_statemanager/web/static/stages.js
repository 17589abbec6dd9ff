// The tags of a job in the order of their stages: bars, counts, and why cells that are open have not ended.

import { CLASSES, LABELS, createBar, formatNumber, updateBar } from "./celery-job.js";
import { get, h, jobPath, setText } from "./page.js";
import { foreign, ranges } from "./text.js";

const WHY_EVERY = 5000;
const MOST_REASONS = 3;
const LONGEST_RANGES = 60;

// Reasons of cells that make progress, or whose turn has not come. They are shown on request.
const USUAL = new Set(["running", "waits", "received", "written", "more"]);
const URGENT = ["lost", "stalled", "retrying", "resetting", "unwritten", "queued", "unpublished", "delayed", "paused"];

export class Stages {
  constructor(job, { onError, onRow }) {
    this.job = job;
    this.onError = onError;
    this.onRow = onRow;
    this.rows = new Map();
    this.reasons = [];
    this.opened = new Set();
    this.readAt = -Infinity;
    const labels = CLASSES.map((name) => h("span", { className: "number key", "data-class": name }, h("span", { className: "swatch" }), LABELS[name]));
    this.list = h("ul", { className: "stage-list" });
    this.element = h(
      "section",
      { className: "stages", hidden: true, "aria-label": "Progress by tag" },
      h("div", { className: "stage head" }, h("h2", {}, "Tags"), h("span"), h("span"), h("div", { className: "counts", "aria-hidden": "true" }, labels)),
      this.list,
    );
    setInterval(() => this.#readWhy(), WHY_EVERY);
  }

  update(data) {
    const changed = !this.data || this.data.settled !== data.settled || this.data.phase !== data.phase;
    this.data = data;
    const tags = Object.entries(data.tags ?? {});
    this.element.hidden = !tags.length;
    for (const [tag, row] of this.rows) {
      if (data.tags && tag in data.tags) continue;
      row.item.remove();
      this.rows.delete(tag);
    }
    for (const [tag, summary] of tags) {
      const row = this.#rowOf(tag);
      if (!row.item.isConnected) this.list.append(row.item);
      updateBar(row.bar, summary, tag);
      setText(row.percent, `${summary.percent}%`);
      for (const name of CLASSES) {
        setText(row.counts[name], summary[name] ? formatNumber(summary[name]) : "–");
        row.counts[name].parentElement.classList.toggle("none", !summary[name]);
      }
    }
    if (data.settled) this.#show([]);
    if (changed) this.#readWhy();
  }

  #rowOf(tag) {
    if (this.rows.has(tag)) return this.rows.get(tag);
    const counts = {};
    const cells = CLASSES.map((name) => {
      counts[name] = h("span", {});
      return h("span", { className: "number count", "data-class": name }, counts[name], h("span", { className: "label" }, ` ${LABELS[name]}`));
    });
    const row = { counts, bar: createBar(), percent: h("span", { className: "number percent" }), why: h("div", { className: "why" }) };
    row.item = h(
      "li",
      {},
      h("div", { className: "stage" }, h("span", { className: "tag", dir: "auto" }, tag), row.bar, row.percent, h("div", { className: "counts" }, cells)),
      row.why,
    );
    this.rows.set(tag, row);
    return row;
  }

  async #readWhy() {
    if (!this.data || this.data.settled || document.hidden) return;
    try {
      const { reasons, settled } = await get(jobPath(this.job.jobId, "/why"), { run_token: this.job.runToken });
      this.#show(settled ? [] : reasons);
    } catch (error) {
      this.onError(error);
    }
  }

  #show(reasons) {
    for (const [tag, { why }] of this.rows) {
      const here = reasons.filter((reason) => reason.tag === tag && reason.taskIDs !== null);
      const text = JSON.stringify(here);
      if (why.dataset.shown === text) continue;
      why.dataset.shown = text;
      why.replaceChildren(...this.#parts(tag, here));
    }
  }

  #parts(tag, reasons) {
    const rank = (reason) => (URGENT.includes(reason.code) ? URGENT.indexOf(reason.code) : URGENT.length);
    const stuck = reasons.filter((reason) => !USUAL.has(reason.code)).sort((one, other) => rank(one) - rank(other));
    const usual = reasons.filter((reason) => USUAL.has(reason.code));
    const shown = stuck.slice(0, MOST_REASONS);
    const rest = [...stuck.slice(MOST_REASONS), ...usual];
    const parts = shown.length ? [this.#list(shown)] : [];
    if (rest.length) {
      const more = h("details", { open: this.opened.has(tag), ontoggle: () => this.#keep(tag, more.open) });
      const summary = shown.length ? `${rest.length} more` : "What is open";
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
    return h("ul", {}, reasons.map((reason) => this.#reason(reason)));
  }

  #reason({ taskIDs, code, text }) {
    const all = ranges(taskIDs);
    const short = all.length > LONGEST_RANGES ? `${all.slice(0, all.lastIndexOf(",", LONGEST_RANGES))}, …` : all;
    const first = Number.parseInt(taskIDs, 10);
    const many = /[,-]/.test(taskIDs);
    const link = h("button", { type: "button", className: "plain rows-link", title: all.slice(0, 2000), onclick: () => this.onRow(first) }, `${many ? "rows" : "row"} ${short}`);
    return h("li", { "data-code": code }, link, foreign(text, { limit: 500 }));
  }
}
