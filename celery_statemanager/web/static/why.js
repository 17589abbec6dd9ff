// Reads why a job has not settled, while a cell or a callback is open and the page is visible.

import { get, jobPath } from "./page.js";

const READ_EVERY = 5000;
const READ_AT_MOST_EVERY = 1000;

export class Why {
  #open = false;
  #timer = 0;
  #readAt = -Infinity;

  constructor(job, { onReasons, onError }) {
    this.job = job;
    this.onReasons = onReasons;
    this.onError = onError;
    document.addEventListener("visibilitychange", () => this.read());
  }

  // Set whether a cell or a callback is open.
  update(open) {
    const before = this.#open;
    this.#open = open;
    if (!open) this.onReasons([]);
    else if (!before) this.read();
  }

  // Read after a change, at most once a second.
  read() {
    clearTimeout(this.#timer);
    if (!this.#open || document.hidden) return;
    this.#timer = setTimeout(() => this.#readNow(), Math.max(0, this.#readAt + READ_AT_MOST_EVERY - performance.now()));
  }

  async #readNow() {
    this.#readAt = performance.now();
    try {
      const { reasons } = await get(jobPath(this.job.jobId, "/why"), { run_token: this.job.runToken });
      if (this.#open) this.onReasons(reasons);
    } catch (error) {
      this.onError(error);
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.read(), READ_EVERY);
  }
}
