// <celery-job src="/jobs/api/jobs/etl-42"> shows the live progress of one job.
//
// Attributes: src (address of the job's JSON, with ?token= or ?run_token= if needed), compact (one bar for all tags).
// Events: settled when all cells have ended, and also failed if the job did not succeed. detail is the job's JSON.
// Colours: --celery-job-finished, -failed, -running, -waiting, -text, -muted.

const FIRST_EVENT_WITHIN = 8000;
const POLL_EVERY = 2000;
const POLL_AT_LEAST_EVERY = 30000;

export const CLASSES = ["finished", "failed", "cancelled", "notRun", "running", "notStarted"];
export const LABELS = {
  finished: "finished",
  failed: "failed",
  cancelled: "cancelled",
  notRun: "not run",
  running: "running",
  notStarted: "waiting",
};

// Reads a job until it is stopped. Calls onData(job) and onStatus(kind, error), where kind is live, polling, lost,
// unavailable, deleted, missing or denied.
export class JobFeed {
  #events = null;
  #timer = 0;
  #step = null;
  #overdue = false;
  #abort = new AbortController();
  #delay = POLL_EVERY;
  #text = "";
  #hasReceived = false;
  #interrupted = false;
  #onVisible = () => !document.hidden && this.#overdue && this.#run();

  constructor(src, { onData, onStatus = () => {} }) {
    this.src = new URL(src, document.baseURI);
    this.onData = onData;
    this.onStatus = onStatus;
    this.data = null;
  }

  start() {
    document.addEventListener("visibilitychange", this.#onVisible);
    this.#listen();
  }

  stop() {
    document.removeEventListener("visibilitychange", this.#onVisible);
    clearTimeout(this.#timer);
    this.#step = null;
    this.#abort.abort();
    this.#close();
  }

  // Read the job now, for example after a command has changed it.
  refresh() {
    if (!this.#abort.signal.aborted && !this.#events) this.#poll();
  }

  #close() {
    this.#events?.close();
    this.#events = null;
  }

  #after(delay, step) {
    clearTimeout(this.#timer);
    this.#step = step;
    this.#overdue = false;
    this.#timer = setTimeout(() => this.#run(), delay);
  }

  #run() {
    this.#overdue = document.hidden;
    if (!document.hidden && this.#step) this.#step();
  }

  #listen() {
    this.#close();
    if (typeof EventSource !== "function") {
      this.#poll();
      return;
    }
    const address = new URL(this.src);
    address.pathname += "/events";
    address.searchParams.set("view", "summary");
    const events = (this.#events = new EventSource(address));
    let received = false;
    const on = (name, act) =>
      events.addEventListener(name, (event) => {
        if (events !== this.#events) return;
        received = this.#hasReceived = true;
        clearTimeout(this.#timer);
        act(event.data ? JSON.parse(event.data) : {});
      });
    on("summary", (data) => {
      this.onStatus("live");
      this.#take(data);
    });
    on("settled", (data) => {
      this.#close();
      this.#take({ ...this.data, ...data, settled: true });
      this.#lookForRerun();
    });
    on("deleted", () => this.#end("deleted"));
    on("unavailable", (data) => this.onStatus("unavailable", data));
    events.onerror = () => {
      if (events !== this.#events) return;
      if (received && events.readyState !== EventSource.CLOSED) {
        this.onStatus("lost");
        return;
      }
      // The browser reconnects after network errors only. It gives up after an error of the server or a proxy.
      this.#interrupted = this.#interrupted || received;
      this.#close();
      this.#poll();
    };
    this.#after(FIRST_EVENT_WITHIN, () => {
      this.#close();
      this.#poll();
    });
  }

  async #poll() {
    this.#step = null;
    let data;
    try {
      data = await this.#read();
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      if (error.status === 403) {
        this.#end("denied", error);
        return;
      }
      if (error.status === 404) {
        if (this.data) this.#end("deleted");
        else {
          this.onStatus("missing", error);
          this.#after(POLL_AT_LEAST_EVERY, () => this.#poll());
        }
        return;
      }
      this.#interrupted = true;
      this.onStatus(error.status ? "unavailable" : "lost", error);
      this.#back(true);
      return;
    }
    this.onStatus("polling");
    this.#take(data);
    if (data.settled) this.#lookForRerun();
    else if (this.#interrupted) {
      this.#interrupted = false;
      this.#after(POLL_EVERY, () => this.#listen());
    } else {
      const text = JSON.stringify(data);
      this.#back(text === this.#text);
      this.#text = text;
    }
  }

  #back(more) {
    this.#delay = more ? Math.min(this.#delay * 1.5, POLL_AT_LEAST_EVERY) : POLL_EVERY;
    this.#after(this.#delay, () => this.#poll());
  }

  #lookForRerun() {
    this.#interrupted = this.#hasReceived;
    this.#after(POLL_AT_LEAST_EVERY, () => this.#poll());
  }

  async #read() {
    const answer = await fetch(this.src, { cache: "no-store", signal: this.#abort.signal });
    if (answer.ok) return answer.json();
    const body = await answer.json().catch(() => null);
    throw Object.assign(new Error(body?.error?.message ?? `status ${answer.status}`), {
      status: answer.status,
      nearest: body?.error?.nearest ?? [],
    });
  }

  #take(data) {
    this.data = data;
    this.onData(data);
  }

  #end(kind, error) {
    this.stop();
    this.onStatus(kind, error);
  }
}

// Rounded down, so that 100 means that everything is done.
export const percentOf = (summary) => Math.floor(summary.percent ?? 0);

// The tags of a job in the order of its stages. Names that are numbers come first in an object.
export function tagsOf({ tags = {}, tagOrder = [] }) {
  const names = new Set([...tagOrder, ...Object.keys(tags)]);
  return [...names].filter((tag) => Object.hasOwn(tags, tag)).map((tag) => [tag, tags[tag]]);
}

// The JSON counts cells that a cancellation has ended as failed. Count them separately.
export function countsOf(summary, job) {
  const failed = job.cancelled ? Math.min(summary.failed, summary.failedRows) : summary.failed;
  return { ...summary, failed, cancelled: summary.failed - failed };
}

export const formatNumber = (value) => new Intl.NumberFormat("en").format(value ?? 0);

// Create a bar with one part per class. The lengths are the counts of a summary. Running cells show their progress.
export function createBar() {
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  for (const name of CLASSES) bar.appendChild(document.createElement("span")).className = name;
  return bar;
}

export function updateBar(bar, summary, label) {
  CLASSES.forEach((name, number) => {
    bar.children[number].style.flexGrow = summary[name] || 0;
    bar.children[number].hidden = !summary[name];
  });
  const begun = summary.fraction * summary.expected - summary.finished;
  const share = summary.running ? Math.min(1, Math.max(0, begun / summary.running)) : 0;
  bar.style.setProperty("--begun", `${(share * 100).toFixed(1)}%`);
  bar.setAttribute("aria-label", label);
  const text = `${percentOf(summary)}%${describe(summary)}`;
  bar.setAttribute("aria-valuenow", percentOf(summary));
  bar.setAttribute("aria-valuetext", text);
  bar.title = `${label}: ${text}`;
}

const describe = (summary) =>
  CLASSES.filter((name) => summary[name])
    .map((name) => `, ${formatNumber(summary[name])} ${LABELS[name]}`)
    .join("");

const sheet = new CSSStyleSheet();
sheet.replaceSync(`
:host {
  --finished: var(--celery-job-finished, #2f9e6e);
  --failed: var(--celery-job-failed, #d64545);
  --running: var(--celery-job-running, #3d7be0);
  --waiting: var(--celery-job-waiting, #e4e5e9);
  --text: var(--celery-job-text, #1d2129);
  --muted: var(--celery-job-muted, #646b78);
  color: var(--text);
  display: block;
  line-height: 1.4;
  font-variant-numeric: tabular-nums;
}
:host([hidden]), [hidden] { display: none !important; }
.head, .tag { align-items: baseline; column-gap: 12px; display: flex; justify-content: space-between; }
.head { margin-bottom: 8px; }
.name { font-weight: 600; overflow: hidden; text-overflow: ellipsis; unicode-bidi: isolate; white-space: nowrap; }
.tag { font-size: 0.9em; margin: 10px 0 4px; }
.tag .name { font-weight: 400; }
.value { color: var(--muted); white-space: nowrap; }
.bar { background: var(--waiting); border-radius: 3px; display: flex; gap: 1px; height: 6px; overflow: hidden; }
.bar span { min-width: 2px; flex: 0 1 0; transition: flex-grow 0.3s; }
.finished { background: var(--finished); }
.failed { background: var(--failed); }
.notRun { background: repeating-linear-gradient(135deg, var(--muted) 0 1px, transparent 1px 4px); }
.running {
  background: linear-gradient(90deg, var(--running) var(--begun), color-mix(in srgb, var(--running) 40%, var(--waiting)) 0);
}
.cancelled { background: color-mix(in srgb, var(--muted) 55%, var(--waiting)); }
.note { color: var(--muted); font-size: 0.9em; margin-top: 8px; }
.head:has(.name:empty) { display: none; }
.note:empty { display: none; }
.spoken { clip-path: inset(50%); height: 1px; overflow: hidden; position: absolute; white-space: nowrap; width: 1px; }
@media (prefers-color-scheme: dark) {
  :host {
    --finished: var(--celery-job-finished, #46b887);
    --failed: var(--celery-job-failed, #f0716b);
    --running: var(--celery-job-running, #6a9ff5);
    --waiting: var(--celery-job-waiting, #33373f);
    --text: var(--celery-job-text, #e7e9ee);
    --muted: var(--celery-job-muted, #9aa1ae);
  }
}
@media (prefers-reduced-motion: reduce) { .bar span { transition: none; } }
`);

const NOTES = {
  lost: "Connection lost. Reconnecting …",
  unavailable: "The states are not available. Trying again …",
  deleted: "This job was deleted.",
  missing: "There is no such job.",
  denied: "You may not view this job.",
};

class CeleryJob extends HTMLElement {
  static observedAttributes = ["src", "compact"];
  #feed = null;
  #rows = new Map();
  #reported = 0;
  #part = {};

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet];
    const add = (name, parent = root) => {
      const made = document.createElement("div");
      made.className = name;
      return parent.appendChild(made);
    };
    const head = add("head");
    this.#part = { name: add("name", head), value: add("value", head), bars: add("bars") };
    this.#part.note = add("note");
    this.#part.spoken = add("spoken");
    this.#part.spoken.setAttribute("role", "status");
  }

  get data() {
    return this.#feed?.data ?? null;
  }

  connectedCallback() {
    this.#begin();
  }

  disconnectedCallback() {
    this.#feed?.stop();
    this.#feed = null;
  }

  attributeChangedCallback(name, before, after) {
    if (!this.isConnected || before === after) return;
    if (name === "src") this.#begin();
    else if (this.data) this.#draw(this.data);
  }

  #begin() {
    this.#feed?.stop();
    this.#reported = 0;
    this.#feed = null;
    if (!this.getAttribute("src")) return;
    this.#feed = new JobFeed(this.getAttribute("src"), {
      onData: (data) => {
        this.#draw(data);
        this.#report(data);
      },
      onStatus: (kind, error) => {
        const note = NOTES[kind] ?? "";
        this.#part.note.textContent = kind === "denied" && error ? `${note} ${error.message}` : note;
      },
    });
    this.#feed.start();
  }

  #report(data) {
    if (!data.settled || this.#reported === data.generation) return;
    this.#reported = data.generation;
    const names = data.phase === "finished" ? ["settled"] : ["settled", "failed"];
    for (const name of names) this.dispatchEvent(new CustomEvent(name, { detail: data }));
  }

  #draw(data) {
    const { name, value, bars, spoken } = this.#part;
    const compact = this.hasAttribute("compact");
    const title = data.metadata?.title;
    name.textContent = typeof title === "string" ? title : data.jobID;
    value.textContent = `${data.phase} · ${percentOf(data)}%`;
    const announced = `${name.textContent}: ${data.phase}${data.settled ? `, ${percentOf(data)}%` : ""}`;
    if (spoken.textContent !== announced) spoken.textContent = announced;
    const shown = new Map(compact || !data.tags ? [["", data]] : tagsOf(data));
    for (const [tag, row] of this.#rows) {
      if (shown.has(tag)) continue;
      row.box.remove();
      this.#rows.delete(tag);
    }
    for (const [tag, summary] of shown) {
      const row = this.#row(tag);
      bars.append(row.box);
      row.percent.textContent = `${percentOf(summary)}%`;
      updateBar(row.bar, countsOf(summary, data), tag || name.textContent);
    }
  }

  #row(tag) {
    if (this.#rows.has(tag)) return this.#rows.get(tag);
    const box = document.createElement("div");
    const line = box.appendChild(document.createElement("div"));
    line.className = "tag";
    line.hidden = !tag;
    const label = line.appendChild(document.createElement("span"));
    label.className = "name";
    label.textContent = tag;
    const percent = line.appendChild(document.createElement("span"));
    percent.className = "value";
    const row = { box, percent, bar: box.appendChild(createBar()) };
    this.#rows.set(tag, row);
    return row;
  }
}

customElements.define("celery-job", CeleryJob);
