// The callbacks of a job, and the progress of each: decided, published, running or ended.

import { h, serverNow, setText } from "./page.js";
import { foreign, moment } from "./text.js";

const FINISHED = 2 ** 31 - 1;
const WHEN = {
  success: "on success",
  failure: "on failure",
  settled: "when settled",
  body: "chord body",
  errbacks: "errbacks",
};

export class Callbacks {
  constructor() {
    this.list = h("ul", { className: "callback-list" });
    this.element = h(
      "section",
      { className: "callbacks", hidden: true, "aria-label": "Callbacks" },
      h("div", { className: "section-head" }, h("h2", {}, "Callbacks")),
      this.list,
    );
  }

  update({ callbacks, settled }) {
    const text = JSON.stringify([callbacks, settled]);
    if (text === this.shown) return;
    this.shown = text;
    const named = Object.entries(callbacks ?? {}).filter(([, each]) => each.task);
    this.element.hidden = !named.length;
    this.list.replaceChildren(...named.map(([name, each]) => this.#item(name, each, settled)));
  }

  // Show why callbacks have not run.
  explain(reasons) {
    for (const item of this.list.children) {
      const text = reasons.find((reason) => reason.taskIDs === null && reason.tag === item.dataset.name)?.text ?? "";
      setText(item.lastChild, text);
    }
  }

  #item(name, each, settled) {
    const [kind, generation] = name.split(".");
    const label = `${WHEN[kind] ?? kind}${generation ? `, run ${generation}` : ""}`;
    const { shown, text, time } = progressOf(each, settled);
    return h(
      "li",
      { "data-name": name },
      h("span", { className: "tag" }, label),
      h("span", { className: "task", dir: "auto" }, each.task),
      h("span", { className: "status", "data-class": shown }, h("span", { className: "dot" }), text),
      h("span", { className: "facts" }, time ? moment(time, serverNow()) : null),
      each.state?.message ? foreign(each.state.message) : null,
      h("p", { className: "why-callback", dir: "auto" }),
    );
  }
}

function progressOf({ decidedAt, publishedAt, state }, settled) {
  if (state?.status === FINISHED) return { shown: "finished", text: "finished", time: state.timestamp };
  if (state?.status < 0) return { shown: "failed", text: "failed", time: state.timestamp };
  if (state && state.version) return { shown: "running", text: "running", time: state.timestamp };
  if (publishedAt) return { shown: "notStarted", text: "published", time: publishedAt };
  if (decidedAt) return { shown: "notStarted", text: "decided", time: decidedAt };
  return { shown: "notStarted", text: settled ? "not needed" : "waiting", time: null };
}
