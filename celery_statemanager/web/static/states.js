// The states of one row as a table: status, progress, message and payload of each tag.

import { LABELS, percentOf } from "./celery-job.js";
import { h } from "./page.js";
import { foreign, moment } from "./text.js";

function classOf(state, counted) {
  if (state.statusName === "CANCELLED") return "cancelled";
  if (state.status < 0) return counted === "notRun" ? counted : "failed";
  if (state.terminal) return "finished";
  return state.status === 0 ? "notStarted" : "running";
}

const statusOf = (state) => {
  const name = state.statusName.replaceAll("_", " ").toLowerCase();
  return /^-?\d+$/.test(name) && state.percent !== null ? "running" : name;
};

// classes: the class in which the grid counts each tag's cell of this row.
export function stateTable(states, now, classes) {
  return h(
    "ul",
    { className: "states" },
    states.map((state) => stateItem(state, now, classOf(state, classes.get(state.tag)))),
  );
}

function stateItem(state, now, shown) {
  const facts = [
    state.percent === null || state.terminal ? null : h("span", { className: "number" }, `${percentOf(state)}%`),
    state.attempt > 1 ? h("span", {}, `attempt ${state.attempt}`) : null,
    state.stalled ? h("span", { className: "bad" }, "stalled") : null,
    state.timestamp ? h("span", {}, moment(state.timestamp, now)) : null,
  ];
  return h(
    "li",
    {},
    h("span", { className: "tag", dir: "auto" }, state.tag),
    h(
      "span",
      { className: "status", "data-class": shown },
      h("span", { className: "dot" }),
      shown === "notRun" ? LABELS.notRun : statusOf(state),
    ),
    h("span", { className: "facts" }, facts),
    state.message ? foreign(state.message) : null,
    state.payload
      ? h("div", { className: "payload" }, foreign(JSON.stringify(state.payload, null, 2), { lines: 12 }))
      : null,
  );
}
