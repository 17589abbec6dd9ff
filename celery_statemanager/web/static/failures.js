// Failures grouped by cause, with the rows that failed and the tasks that did not run because of them.

import { countsOf, formatNumber } from "./celery-job.js";
import { h } from "./page.js";
import { countRows, counted, foreign, ranges } from "./text.js";

const LONGEST_RANGES = 120;
const CANCELLED = -7;
export const MOST_GROUPED = 10000;

export class Failures {
  // onMore: called when the user wants the first 10,000 failed tasks to be grouped.
  constructor({ onRow, onMore }) {
    this.onRow = onRow;
    this.list = h("ul", { className: "failure-list" });
    this.text = h("span", {});
    this.more = h(
      "button",
      {
        type: "button",
        className: "plain",
        onclick: () => {
          this.more.hidden = true;
          onMore();
        },
      },
      `Group the first ${formatNumber(MOST_GROUPED)}`,
    );
    this.rest = h("p", { className: "empty rest" }, this.text, " ", this.more);
    this.element = h(
      "section",
      { className: "failures", hidden: true, "aria-label": "Failures" },
      h("div", { className: "section-head" }, h("h2", {}, "Failures")),
      this.list,
      this.rest,
    );
  }

  update(details) {
    const { failures: all, otherNotRun, cancelled } = details;
    // The head of the page shows why a job was cancelled.
    const failures = cancelled ? all?.filter((group) => group.status !== CANCELLED) : all;
    const otherFailed = Math.max(0, details.otherFailed - cancelledCells(details));
    const text = JSON.stringify([failures, otherFailed, otherNotRun]);
    if (text === this.shown) return;
    this.shown = text;
    this.element.hidden = !failures?.length;
    this.list.replaceChildren(...(failures ?? []).map((group) => this.#group(group)));
    const rest = [
      otherFailed ? `${counted(otherFailed, "more failed task")} ${otherFailed === 1 ? "is" : "are"} not grouped.` : "",
      otherNotRun ? `${counted(otherNotRun, "more task")} did not run.` : "",
    ];
    this.text.textContent = rest.filter(Boolean).join(" ");
    this.rest.hidden = !this.text.textContent;
  }

  #group(group) {
    const status = group.statusName.replaceAll("_", " ").toLowerCase();
    const notRun = Object.entries(group.notRun ?? {}).filter(([, rows]) => rows);
    return h(
      "li",
      { className: "failure" },
      h(
        "div",
        { className: "cause" },
        h("span", { className: "number" }, formatNumber(group.count ?? (group.taskIDs ? countRows(group.taskIDs) : 0))),
        h("span", { className: "tag", dir: "auto" }, group.tag),
        h("span", { className: "code" }, status),
      ),
      h(
        "div",
        { className: "evidence" },
        group.message ? foreign(group.message, { lines: 4 }) : h("div", { className: "foreign none" }, "no message"),
        h(
          "p",
          { className: "where" },
          group.taskIDs ? this.#rows(group.taskIDs) : null,
          notRun.map(([tag, rows]) =>
            h("span", { className: "not-run" }, h("bdi", {}, tag), " not run: ", this.#rows(rows)),
          ),
        ),
      ),
    );
  }

  #rows(rows) {
    const all = ranges(rows);
    const short = all.length > LONGEST_RANGES ? `${all.slice(0, all.lastIndexOf(",", LONGEST_RANGES))}, …` : all;
    const many = /[,-]/.test(rows);
    return h(
      "button",
      {
        type: "button",
        className: "plain rows-link",
        title: all.slice(0, 2000),
        onclick: () => this.onRow(Number.parseInt(rows, 10)),
      },
      `${many ? "rows" : "row"} ${short}`,
    );
  }
}

// The number of cells without a group that a cancellation has ended.
function cancelledCells(details) {
  const grouped = (details.failures ?? []).filter((group) => group.status === CANCELLED);
  return countsOf(details, details).cancelled - grouped.reduce((sum, group) => sum + group.count, 0);
}
