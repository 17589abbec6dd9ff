// The states of the selected row. They are read again until the job has settled.

import { formatNumber } from "./celery-job.js";
import { get, h, jobPath, serverNow } from "./page.js";
import { stateTable } from "./states.js";

const READ_EVERY = 2000;

export class RowDetail {
  #timer = 0;
  #shown = "";

  // classesOf: returns the class of each tag's cell of a row, as the grid counts it.
  constructor(job, { classesOf, onClose, onError }) {
    this.job = job;
    this.classesOf = classesOf;
    this.onClose = onClose;
    this.onError = onError;
    this.row = null;
    this.settled = false;
    this.element = h("section", { className: "row-detail", hidden: true, "aria-label": "Selected row" });
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  // Show a row; null shows none.
  select(row) {
    this.row = row;
    if (row === null) {
      clearTimeout(this.#timer);
      this.element.hidden = true;
      this.#shown = "";
    } else {
      this.#read();
    }
  }

  refresh() {
    if (this.row !== null && !document.hidden) this.#read();
  }

  async #read() {
    const { row } = this;
    clearTimeout(this.#timer);
    try {
      const answer = await get(jobPath(this.job.jobId, "/states"), { run_token: this.job.runToken, task_index: row });
      if (row !== this.row) return;
      this.#show(row, answer.states);
    } catch (error) {
      this.onError(error);
    }
    clearTimeout(this.#timer);
    if (!this.settled && row === this.row) this.#timer = setTimeout(() => this.refresh(), READ_EVERY);
  }

  #show(row, states) {
    const classes = this.classesOf(row);
    const text = JSON.stringify([row, states, [...classes]]);
    if (text === this.#shown) return;
    this.#shown = text;
    const close = () => {
      this.select(null);
      this.onClose();
    };
    this.element.replaceChildren(
      h(
        "div",
        { className: "section-head" },
        h("h3", {}, `Row ${formatNumber(row)}`),
        h("button", { type: "button", className: "plain", onclick: close }, "Close"),
      ),
      states.length
        ? stateTable(states, serverNow(), classes)
        : h("p", { className: "empty" }, "This row has no tasks."),
    );
    this.element.hidden = false;
  }
}
