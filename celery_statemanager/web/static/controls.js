// Pause, resume, cancel and rerun, for the actions that the requester may take.

import { formatNumber } from "./celery-job.js";
import { h, jobPath, post } from "./page.js";
import { countRows, counted, ranges } from "./text.js";

export class Controls {
  constructor(job, { onDone, onNotice }) {
    this.job = job;
    this.onDone = onDone;
    this.onNotice = onNotice;
    this.element = h("div", { className: "controls", role: "group", "aria-label": "Controls" });
    this.dialog = h("dialog", { "aria-labelledby": "question" });
    document.body.append(this.dialog);
  }

  update(data) {
    const names = possible(data);
    const text = names.join();
    this.data = data;
    if (text === this.shown) return;
    this.shown = text;
    const focused = this.element.contains(document.activeElement);
    this.element.replaceChildren(
      ...names.map((name) =>
        h(
          "button",
          { type: "button", className: `button ${name}`, onclick: () => this.#ask(name) },
          COMMANDS[name].label,
        ),
      ),
    );
    if (focused) this.element.firstChild?.focus();
  }

  disable() {
    this.update({ actions: [] });
  }

  #ask(name) {
    const command = COMMANDS[name];
    const error = h("p", { className: "bad", role: "alert" });
    const fields = command.fields(this.data);
    const go = h("button", { className: `button main ${name}` }, command.verb);
    const form = h(
      "form",
      {
        onsubmit: async (event) => {
          event.preventDefault();
          go.disabled = true;
          error.textContent = "";
          try {
            const answer = await post(
              jobPath(this.job.jobId, `/${name}`),
              { run_token: this.job.runToken },
              fields.read(),
            );
            this.dialog.close();
            this.onNotice(command.report(answer ?? {}));
            this.onDone();
          } catch (problem) {
            error.textContent = problem.status
              ? problem.message
              : "The server did not answer. Check whether the job has changed.";
            go.disabled = false;
          }
        },
      },
      h("h2", { id: "question" }, command.question),
      h("p", {}, command.explain(this.data)),
      fields.inputs,
      error,
      h(
        "div",
        { className: "buttons" },
        h("button", { type: "button", className: "button", onclick: () => this.dialog.close() }, "Back"),
        go,
      ),
    );
    this.dialog.replaceChildren(form);
    this.dialog.showModal();
  }
}

function possible({ actions = [], settled, phase, outbox, failed, notRun }) {
  const cancelled = phase === "cancelled";
  const paused = outbox?.paused ?? phase === "paused";
  const names = [];
  if (actions.includes("pause") && !settled && !cancelled && outbox !== null) names.push(paused ? "resume" : "pause");
  if (actions.includes("cancel") && !settled && !cancelled) names.push("cancel");
  if (actions.includes("rerun") && outbox !== null && (failed || notRun)) names.push("rerun");
  return names;
}

function reasonField() {
  const input = h("input", { type: "text", id: "reason", maxLength: 500, autocomplete: "off" });
  return {
    inputs: [h("label", { htmlFor: "reason" }, "Reason (optional)"), input],
    read: () => (input.value.trim() ? { reason: input.value.trim() } : {}),
  };
}

function rowsField() {
  const input = h("input", { type: "text", id: "which", value: "failed", autocomplete: "off", spellcheck: false });
  return {
    inputs: [h("label", { htmlFor: "which" }, "Rows: “failed”, or for example 3,17-20"), input],
    read: () => ({ which: input.value.trim() || "failed" }),
  };
}

const COMMANDS = {
  pause: {
    label: "Pause",
    verb: "Pause job",
    question: "Pause this job?",
    explain: () => "Rows that have not begun are held back. Rows that have begun continue.",
    fields: reasonField,
    report: ({ paused }) =>
      paused === false ? "Not paused: the job has settled, was cancelled, or is already paused." : "Paused.",
  },
  resume: {
    label: "Resume",
    verb: "Resume job",
    question: "Resume this job?",
    explain: () => "The rows that were held back are published.",
    fields: () => ({ inputs: [], read: () => ({}) }),
    report: ({ resumed }) => (resumed === false ? "The job is not paused." : "Resumed."),
  },
  cancel: {
    label: "Cancel",
    verb: "Cancel job",
    question: "Cancel this job?",
    explain: ({ notStarted, running }) => {
      const stop = running === 1 ? "1 running task stops" : `${formatNumber(running)} running tasks stop`;
      return `${counted(notStarted, "task")} will not begin.${running ? ` ${stop} at the next write of a state.` : ""}`;
    },
    fields: reasonField,
    report: ({ cancelled }) =>
      cancelled === false ? "Not cancelled: the job has settled or is already cancelled." : "Cancelled.",
  },
  rerun: {
    label: "Rerun",
    verb: "Rerun rows",
    question: "Run failed rows again?",
    explain: ({ failed, notRun }) =>
      `${counted(failed, "task")} failed${notRun ? `, and ${formatNumber(notRun)} did not run because of this` : ""}. Each row starts again at the stage that failed.`,
    fields: rowsField,
    report: ({ rows, skipped }) => {
      const again = rows ? `${counted(countRows(rows), "row")} again: ${ranges(rows)}.` : "No row can run again.";
      return skipped ? `${again} Skipped: ${ranges(skipped)}.` : again;
    },
  },
};
