// The class of every cell of a job. It is read again after the counts of classes have changed, less often if a read takes
// long.

import { tagsOf } from "./celery-job.js";
import { get, jobPath } from "./page.js";

const READ_AT_MOST_EVERY = 1000;
const COST_FACTOR = 10;
// Two cells that exchange their classes do not change the counts.
const READ_AFTER_ANY_CHANGE_EVERY = 15000;
const COUNTS = ["expected", "notStarted", "running", "finished", "failed", "notRun", "failedRows"];

const countsOf = ({ tags, generation, cancelled, settled }) =>
  JSON.stringify([
    generation,
    Boolean(cancelled),
    settled,
    Object.entries(tags ?? {}).map(([tag, summary]) => [tag, ...COUNTS.map((name) => summary[name])]),
  ]);

// The class of each expected row of a tag, as runs [class, first, count] in the order of the rows.
export class Runs {
  constructor(rows, runs) {
    this.rows = rows;
    this.runs = runs;
  }

  // The number of the run that holds a row, or of the first one after it.
  #at(row) {
    let low = 0;
    let high = this.runs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.runs[middle][1] + this.runs[middle][2] <= row) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  classOf(row) {
    const run = this.runs[this.#at(row)];
    return run && run[1] <= row ? run[0] : null;
  }

  // Counts by class of the rows first … last - 1.
  counts(first, last) {
    const found = {};
    for (let number = this.#at(first); number < this.runs.length; number++) {
      const [name, begin, count] = this.runs[number];
      if (begin >= last) break;
      found[name] = (found[name] ?? 0) + Math.min(begin + count, last) - Math.max(begin, first);
    }
    return found;
  }

  // The next row of a class after a row, or the one before it; null if there is none.
  next(name, row, step) {
    let number = this.#at(step > 0 ? row + 1 : row);
    if (step > 0) {
      for (; number < this.runs.length; number++) {
        const [found, begin] = this.runs[number];
        if (found === name) return Math.max(begin, row + 1);
      }
      return null;
    }
    for (number = Math.min(number, this.runs.length - 1); number >= 0; number--) {
      const [found, begin, count] = this.runs[number];
      if (found === name && begin < row) return Math.min(begin + count, row) - 1;
    }
    return null;
  }
}

export class Grid {
  #reading = false;
  #again = false;
  #readAt = -Infinity;
  #cost = 0;
  #counts = "";

  constructor(job, { onRead, onError }) {
    this.job = job;
    this.onRead = onRead;
    this.onError = onError;
    this.runs = new Map();
    document.addEventListener("visibilitychange", () => this.#again && this.#read());
  }

  // Take a summary of the job.
  update(data) {
    this.data = data;
    const counts = countsOf(data);
    if (counts === this.#counts && performance.now() < this.#readAt + READ_AFTER_ANY_CHANGE_EVERY) return;
    this.#counts = counts;
    this.#read();
  }

  async #read() {
    this.#again = true;
    if (this.#reading || document.hidden) return;
    this.#reading = true;
    const wait = this.#readAt + Math.max(READ_AT_MOST_EVERY, this.#cost * COST_FACTOR) - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    const begun = performance.now();
    this.#again = false;
    try {
      const { tags } = await get(jobPath(this.job.jobId, "/grid"), { run_token: this.job.runToken });
      for (const tag of this.runs.keys()) if (!(tag in tags)) this.runs.delete(tag);
      for (const [tag, { rows, runs }] of tagsOf({ tags, tagOrder: this.data.tagOrder }))
        this.runs.set(tag, new Runs(rows, runs));
      this.onRead();
    } catch (error) {
      this.#counts = ""; // the next summary reads it
      this.onError(error);
    }
    this.#readAt = performance.now();
    this.#cost = this.#readAt - begun;
    this.#reading = false;
    if (this.#again) this.#read();
  }
}
