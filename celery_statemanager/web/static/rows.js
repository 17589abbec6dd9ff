// The rows of a job: a heat map for each tag, and the states of the selected row.

import { CLASSES, LABELS, formatNumber } from "./celery-job.js";
import { Grid } from "./grid.js";
import { HeatMap, layoutOf, windowSize } from "./heatmap.js";
import { h, setText } from "./page.js";
import { RowDetail } from "./row-detail.js";
import { counted } from "./text.js";

export class Rows {
  constructor(job, onError) {
    this.grid = new Grid(job, {
      onRead: () => {
        this.element.hidden = this.runs.size === 0;
        this.draw();
        this.detail.refresh();
      },
      onError,
    });
    this.runs = this.grid.runs;
    this.maps = new Map();
    this.range = null;
    this.cursor = 0;
    this.detail = new RowDetail(job, {
      classesOf: (row) => new Map([...this.runs].map(([tag, runs]) => [tag, runs.classOf(row)])),
      onClose: () => {
        this.draw();
        this.box.focus();
      },
      onError,
    });
    this.#build();
  }

  #build() {
    const button = (label, text, onclick) =>
      h("button", { type: "button", className: "button small", "aria-label": label, onclick }, text);
    this.readout = h("p", { className: "readout", id: "readout" });
    this.out = button("Show all rows", "All rows", () => this.#zoomOut());
    this.before = button("Earlier rows", "←", () => this.#shift(-1));
    this.after = button("Later rows", "→", () => this.#shift(1));
    this.nextFailed = button("Next failed row", "Next failed", () => this.#toFailed(1));
    this.input = h("input", {
      id: "row",
      type: "text",
      inputMode: "numeric",
      autocomplete: "off",
      placeholder: "Row",
      "aria-label": "Go to row",
    });
    const goTo = h(
      "form",
      {
        className: "go-to",
        onsubmit: (event) => {
          event.preventDefault();
          const row = Number.parseInt(this.input.value.replaceAll(/[,\s]/g, ""), 10);
          if (row >= 0 && row < this.numTasks) this.goTo(row);
          else setText(this.readout, `This job has the rows 0 to ${formatNumber(this.numTasks - 1)}.`);
        },
      },
      this.input,
      h("button", { className: "button small" }, "Go"),
    );
    this.box = h("div", {
      className: "maps",
      tabIndex: 0,
      role: "application",
      "aria-label":
        "Rows by state. Arrow keys move, Enter opens a row, Escape shows all rows, F finds the next failed row.",
      "aria-describedby": "readout",
      onkeydown: (event) => this.#onKey(event),
      onfocus: () => this.draw(),
      onblur: () => this.draw(),
    });
    this.spoken = h("p", { className: "spoken", role: "status" });
    this.element = h(
      "section",
      { className: "rows", hidden: true },
      h(
        "div",
        { className: "section-head" },
        h("h2", {}, "Rows"),
        this.readout,
        h("div", { className: "tools" }, this.out, this.before, this.after, this.nextFailed, goTo),
      ),
      this.box,
      this.spoken,
      this.detail.element,
    );
    new ResizeObserver(() => this.draw()).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get numTasks() {
    return this.data?.numTasks ?? 0;
  }

  // Take a summary of the job.
  update(data) {
    const first = !this.data;
    this.data = data;
    this.detail.settled = data.settled;
    if (first) this.range = [0, data.numTasks];
    this.grid.update(data);
  }

  #mapOf(tag) {
    if (this.maps.has(tag)) return this.maps.get(tag);
    const canvas = h("canvas", {
      "aria-hidden": "true",
      onpointermove: (event) => this.#showReadout(map.heat.rowAt(event.offsetX, event.offsetY)),
      onpointerleave: () => this.#showReadout(this.detail.row),
      onclick: (event) => {
        const row = map.heat.rowAt(event.offsetX, event.offsetY);
        if (row !== null) this.#open(row);
      },
    });
    const map = {
      heat: new HeatMap(canvas),
      box: h("div", { className: "map" }, h("h3", { dir: "auto" }, tag), canvas),
    };
    this.maps.set(tag, map);
    return map;
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width || !this.range) return;
    const [first, last] = this.range;
    for (const [tag, map] of this.maps) {
      if (this.runs.has(tag)) continue;
      map.box.remove();
      this.maps.delete(tag);
    }
    const focused = document.activeElement === this.box;
    for (const [tag, runs] of this.runs) {
      const map = this.#mapOf(tag);
      if (!map.box.isConnected) this.box.append(map.box);
      map.heat.draw({ runs, first, last, width, selected: this.detail.row, marked: focused ? this.cursor : null });
    }
    const zoomed = first > 0 || last < this.numTasks;
    this.perSquare = layoutOf(width, last - first).perSquare;
    this.columns = layoutOf(width, last - first).columns;
    this.out.hidden = this.before.hidden = this.after.hidden = !zoomed;
    this.before.disabled = first === 0;
    this.after.disabled = last >= this.numTasks;
    this.nextFailed.hidden = ![...this.runs.values()].some((runs) => runs.next("failed", -1, 1) !== null);
    if (!this.box.matches(":hover") && !focused) this.#showReadout(this.detail.row);
  }

  // Describe the square of a row, or the range that is shown.
  #showReadout(row, announce = false) {
    let text;
    if (row === null || !this.range || row < this.range[0] || row >= this.range[1]) {
      const [first, last] = this.range;
      const each = this.perSquare > 1 ? `, ${formatNumber(this.perSquare)} rows per square` : "";
      text = `${formatNumber(first)} – ${formatNumber(last - 1)}${each}`;
    } else if (this.perSquare > 1) {
      const begin = this.#squareStart(row);
      const end = Math.min(begin + this.perSquare, this.range[1]);
      const parts = [...this.runs].map(([tag, runs]) => `${tag}: ${describe(runs.counts(begin, end))}`);
      text = `rows ${formatNumber(begin)} – ${formatNumber(end - 1)} · ${parts.join(" · ")}`;
    } else {
      const parts = [...this.runs].map(([tag, runs]) => [tag, runs.classOf(row)]).filter(([, name]) => name);
      text = `row ${formatNumber(row)} · ${parts.map(([tag, name]) => `${tag} ${LABELS[name]}`).join(" · ")}`;
    }
    setText(this.readout, text);
    if (announce) setText(this.spoken, text);
  }

  #squareStart(row) {
    return this.range[0] + Math.floor((row - this.range[0]) / this.perSquare) * this.perSquare;
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [first, last] = this.range;
    const step = this.perSquare;
    const moves = {
      ArrowLeft: this.cursor - step,
      ArrowRight: this.cursor + step,
      ArrowUp: this.cursor - step * this.columns,
      ArrowDown: this.cursor + step * this.columns,
      Home: first,
      End: last - 1,
    };
    if (event.key in moves) this.#move(Math.min(Math.max(moves[event.key], first), last - 1));
    else if (event.key === "Enter" || event.key === " ") this.#open(this.cursor);
    else if (event.key === "Escape") this.#zoomOut();
    else if (event.key === "PageUp") this.#shift(-1);
    else if (event.key === "PageDown") this.#shift(1);
    else if (event.key === "f") this.#toFailed(1);
    else if (event.key === "F") this.#toFailed(-1);
    else return;
    event.preventDefault();
  }

  #move(row) {
    this.cursor = row;
    if (this.perSquare === 1 && this.detail.row !== null) this.detail.select(row);
    this.draw();
    this.#showReadout(row, true);
  }

  // Zoom to the rows of a square, or select the row.
  #open(row) {
    this.cursor = row;
    if (this.perSquare > 1) {
      const begin = this.#squareStart(row);
      const failed = [...this.runs.values()]
        .map((runs) => runs.next("failed", begin - 1, 1))
        .filter((found) => found !== null);
      const firstFailed = Math.min(...failed);
      this.goTo(firstFailed < begin + this.perSquare ? firstFailed : row, false);
    } else {
      this.detail.select(row);
      this.draw();
    }
    this.#showReadout(this.cursor, true);
  }

  goTo(row, select = true) {
    const size = windowSize(this.element.clientWidth);
    if (this.perSquare > 1 || row < this.range[0] || row >= this.range[1]) {
      const begin = Math.floor(row / size) * size;
      this.range = [begin, Math.min(begin + size, this.numTasks)];
    }
    this.cursor = row;
    if (select) this.detail.select(row);
    this.draw();
    this.#showReadout(row, true);
  }

  #zoomOut() {
    this.range = [0, this.numTasks];
    this.detail.select(null);
    this.draw();
    this.#showReadout(null, true);
    if (document.activeElement === document.body) this.box.focus();
  }

  #shift(step) {
    const [first, last] = this.range;
    const size = windowSize(this.element.clientWidth);
    const begin = first + step * size;
    if ((first === 0 && last === this.numTasks) || begin < 0 || begin >= this.numTasks) return;
    this.range = [begin, Math.min(begin + size, this.numTasks)];
    this.cursor = begin;
    this.detail.select(null);
    this.draw();
    this.#showReadout(null, true);
  }

  #toFailed(step) {
    const from = this.detail.row ?? this.cursor - step;
    const find = (row) =>
      [...this.runs.values()].map((runs) => runs.next("failed", row, step)).filter((found) => found !== null);
    let found = find(from);
    if (!found.length) found = find(step > 0 ? -1 : this.numTasks);
    if (found.length) this.goTo(step > 0 ? Math.min(...found) : Math.max(...found));
  }
}

const describe = (counts) => {
  const present = CLASSES.filter((name) => counts[name]);
  return present.map((name) => `${formatNumber(counts[name])} ${LABELS[name]}`).join(", ") || counted(0, "row");
};
