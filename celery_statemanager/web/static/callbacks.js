// The callbacks of a job: what runs when it has succeeded, failed or settled, and how far that has got.

import { h, serverNow } from "./page.js";
import { foreign, moment } from "./text.js";

const WHEN = { success: "on success", failure: "on failure", settled: "when settled", body: "chord body", errbacks: "errbacks" };

export class Callbacks {
  constructor() {
    this.list = h("ul", { className: "callback-list" });
    this.element = h("section", { className: "callbacks", hidden: true, "aria-label": "Callbacks" }, h("div", { className: "section-head" }, h("h2", {}, "Callbacks")), this.list);
  }

  update({ callbacks, settled }) {
    const text = JSON.stringify([callbacks, settled]);
    if (text === this.shown) return;
    this.shown = text;
    const named = Object.entries(callbacks ?? {}).filter(([, each]) => each.task);
    this.element.hidden = !named.length;
    this.list.replaceChildren(...named.map(([name, each]) => this.#item(name, each, settled)));
  }

  #item(name, each, settled) {
    const [kind, generation] = name.split(".");
    const label = `${WHEN[kind] ?? kind}${generation ? `, run ${generation}` : ""}`;
    const { shown, text, time } = progressOf(each, settled);
    return h(
      "li",
      {},
      h("span", { className: "tag" }, label),
      h("span", { className: "task", dir: "auto" }, each.task),
      h("span", { className: "status", "data-class": shown }, h("span", { className: "dot" }), text),
      h("span", { className: "facts" }, time ? moment(time, serverNow()) : null),
      each.state?.message ? foreign(each.state.message) : null,
    );
  }
}

function progressOf({ decidedAt, publishedAt, state }, settled) {
  if (state?.terminal) {
    const failed = state.status < 0;
    return { shown: failed ? "failed" : "finished", text: state.statusName.replaceAll("_", " ").toLowerCase(), time: state.timestamp };
  }
  if (state && state.version) return { shown: "running", text: "running", time: state.timestamp };
  if (publishedAt) return { shown: "notStarted", text: "published", time: publishedAt };
  if (decidedAt) return { shown: "notStarted", text: "decided", time: decidedAt };
  return { shown: "notStarted", text: settled ? "not needed" : "waiting", time: null };
}
