// A canvas that shows the rows of a tag as squares. A row has the same place for all tags. Keys are handled elsewhere.

import { CLASSES } from "./celery-job.js";

const MOST_LINES = 14;
// The width of a square with its gap, and up to how many lines it is used.
const PITCHES = [
  [28, 2],
  [20, 6],
  [14, MOST_LINES],
  [11, MOST_LINES],
];
const SMALLEST = 11;
const GAP_SHARE = 0.18;

// A multiple of ten, so that a reader can count the squares; a multiple of five on narrow screens.
function columnsOf(width, pitch) {
  const step = width < 500 ? 5 : 10;
  return Math.max(step, Math.floor(width / pitch / step) * step);
}

// The largest of 1, 2, 5, 10, 20 … up to a limit.
function roundDown(limit) {
  const power = 10 ** Math.floor(Math.log10(limit));
  return power * [5, 2, 1].find((step) => step * power <= limit);
}

// How many rows can be shown as one square each, as a round number.
export const windowSize = (width) => roundDown(columnsOf(width, SMALLEST) * MOST_LINES);

// The size and the number of the squares for a number of rows. Each stands for 1, 2, 5, 10, 20 … rows.
export function layoutOf(width, count) {
  const fitting = PITCHES.find(([pitch, lines]) => count <= columnsOf(width, pitch) * lines);
  const columns = columnsOf(width, fitting?.[0] ?? SMALLEST);
  const pitch = width / columns;
  let perSquare = 1;
  while (count > columns * MOST_LINES * perSquare) perSquare *= String(perSquare).startsWith("2") ? 2.5 : 2;
  const squares = Math.ceil(count / perSquare);
  return { pitch, columns, perSquare, squares, lines: Math.ceil(squares / columns) };
}

export class HeatMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  draw({ runs, first, last, width, selected, marked }) {
    const layout = (this.layout = layoutOf(width, last - first));
    this.first = first;
    this.last = last;
    const ratio = window.devicePixelRatio || 1;
    const height = Math.ceil(layout.lines * layout.pitch);
    const wide = Math.floor(width);
    if (this.canvas.width !== Math.round(wide * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(wide * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.width = `${wide}px`;
      this.canvas.style.height = `${height}px`;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, wide, height);
    this.colours = coloursOf(this.canvas);
    for (let square = 0; square < layout.squares; square++) {
      const begin = first + square * layout.perSquare;
      const end = Math.min(begin + layout.perSquare, last);
      this.#square(square, runs, begin, end);
    }
    if (marked !== null && marked >= first && marked < last) this.#frame(marked, this.colours.muted);
    if (selected !== null && selected >= first && selected < last) this.#frame(selected, this.colours.text);
  }

  #place(square) {
    const { pitch, columns } = this.layout;
    const gap = Math.max(1, Math.round(pitch * GAP_SHARE));
    const [column, line] = [square % columns, Math.floor(square / columns)];
    return [Math.round(column * pitch), Math.round(line * pitch), Math.floor(pitch) - gap];
  }

  #square(square, runs, begin, end) {
    const [x, y, size] = this.#place(square);
    if (end - begin === 1) {
      const name = runs.classOf(begin);
      if (name) this.#fill(name, x, y, size, size);
      return;
    }
    const counts = runs.counts(begin, end);
    const present = CLASSES.filter((name) => counts[name]);
    const total = present.reduce((sum, name) => sum + counts[name], 0);
    // Each class that is present gets two pixels or more, because one failed row of thousands must be visible.
    const least = Math.min(2, size / (present.length || 1));
    const free = size - least * present.length;
    let at = x;
    for (const name of present) {
      const part = least + (free * counts[name]) / total;
      this.#fill(name, at, y, part, size);
      at += part;
    }
  }

  #fill(name, x, y, width, height) {
    const { context, colours } = this;
    context.fillStyle = colours[name];
    context.fillRect(x, y, width, height);
    if (name !== "notRun") return;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.strokeStyle = colours.hatch;
    context.lineWidth = 1;
    context.beginPath();
    for (let offset = -height; offset < width; offset += 4) {
      context.moveTo(x + offset, y + height);
      context.lineTo(x + offset + height, y);
    }
    context.stroke();
    context.restore();
  }

  #frame(row, colour) {
    const [x, y, size] = this.#place(Math.floor((row - this.first) / this.layout.perSquare));
    this.context.strokeStyle = colour;
    this.context.lineWidth = 2;
    this.context.strokeRect(x - 1, y - 1, size + 2, size + 2);
  }

  // The first row of the square at a point of the canvas, or null.
  rowAt(x, y) {
    const { pitch, columns, perSquare, squares } = this.layout;
    const column = Math.floor(x / pitch);
    const square = Math.floor(y / pitch) * columns + column;
    if (x < 0 || y < 0 || column >= columns || square >= squares) return null;
    return this.first + square * perSquare;
  }
}

function coloursOf(element) {
  const style = getComputedStyle(element);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    finished: read("--finished"),
    failed: read("--failed"),
    cancelled: read("--hatch"),
    running: read("--running"),
    notStarted: read("--waiting"),
    notRun: read("--blocked"),
    text: read("--text"),
    muted: read("--muted"),
    hatch: read("--hatch"),
  };
}
