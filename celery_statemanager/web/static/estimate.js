// Estimate when a job ends, from its speed over the last minute.

const WINDOW = 60000;
const SHORTEST = 8000;
const LEAST_CHANGES = 3;

export class Estimate {
  #samples = [];
  #generation = 0;

  add({ fraction, generation, phase }, now) {
    if (generation !== this.#generation || phase === "paused") this.#samples = [];
    this.#generation = generation;
    if (this.#samples.at(-1)?.fraction === fraction) return;
    this.#samples.push({ fraction, now });
    while (this.#samples.length > LEAST_CHANGES && now - this.#samples[1].now > WINDOW) this.#samples.shift();
  }

  // The milliseconds that are left; null if there are too few samples for an estimate.
  left({ fraction, createdAt, generation, phase, running }, now) {
    if (!["running", "failing"].includes(phase) || !running || fraction <= 0) return null;
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    let speed = null;
    if (this.#samples.length >= LEAST_CHANGES && last.now - first.now >= SHORTEST) {
      speed = (last.fraction - first.fraction) / (now - first.now);
    } else if (generation === 1 && fraction >= 0.05 && now - Date.parse(createdAt) >= SHORTEST) {
      speed = fraction / (now - Date.parse(createdAt));
    }
    if (speed === null || speed <= 0) return null;
    const left = (1 - fraction) / speed;
    return left > 30 * 86400000 ? null : left;
  }
}
