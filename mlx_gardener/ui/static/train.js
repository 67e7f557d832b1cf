// A training: what it would take, as the sliders move; and how it goes, whoever started it and however often the page is loaded.

import { follow, get, of, post } from "/ui/api.js";
import { tell } from "/ui/app.js";
import { button, draw, duration, fill, gigabytes, h, number, problem, say, table } from "/ui/dom.js";

const PAUSES = [
  ["memory-pressure", "the machine is critically short of memory"], ["battery", "it runs on battery"],
  ["heat", "it is throttled by heat"], ["display", "a display is on"],
];
const LIVE = ["queued", "training"];

export async function show(main, project, _version, signal) {
  const settings = await get(`${of(project)}/settings`, signal);
  const run = new Run(project, signal);
  const plan = planning(project, settings, signal);
  await run.follow();  // until it is known how it stands: else the plan would move when it shows
  if (!signal.aborted) fill(main, h("h1", {}, `Training of ${project}`), run.element, h("h2", {}, "Plan and start"), plan);
}

// Before it.

function planning(project, settings, signal) {
  const field = (id, label, input, hint = "") => h("div", { class: "field" }, h("label", { for: id }, label), input,
    hint ? h("span", { class: "muted", id: `${id}-hint` }, hint) : null);
  const bases = h("datalist", { id: "bases" });
  const model = h("input", { id: "model", list: "bases", value: settings.model, autocomplete: "off", spellcheck: "false" });
  const most = Math.max(Math.ceil(settings.memory_gb), Math.ceil(settings.budget));
  const budget = h("input", { id: "budget", type: "range", min: "0.25", max: String(most), step: "0.25", value: String(settings.budget) });
  const budgetTold = h("output", { for: "budget" }, "");
  const timeout = h("input", { id: "timeout", type: "range", min: "0", max: "480", step: "1", value: String(settings.timeout) });
  const timeoutTold = h("output", { for: "timeout" }, "");
  const epochs = h("input", { id: "epochs", type: "number", min: "0.01", max: "100", step: "any", value: String(settings.epochs) });
  const pauses = PAUSES.map(([reason, label]) => {
    const input = h("input", { id: reason, type: "checkbox", checked: settings.pause_on.includes(reason) });
    const now = reason === "battery" && settings.on_battery ? " (it is now)" : "";
    return { reason, input, element: h("div", { class: "check" }, input, h("label", { for: reason }, label, now)) };
  });
  const fresh = h("input", { id: "fresh", type: "checkbox" });
  const more = h("textarea", { id: "more", rows: "4", spellcheck: "false", value: settings.more });
  const planned = h("div", { class: "plan", "aria-busy": "true" }, h("p", {}, "Looking at base and repository ..."));
  const said = h("div", {});
  const body = () => ({
    pause_on: pauses.filter(({ input }) => input.checked).map(({ reason }) => reason),
    project, model: model.value, budget: Number(budget.value), timeout: Number(timeout.value),
    epochs: epochs.value === "" ? null : Number(epochs.value), more: more.value, fresh: fresh.checked,
  });
  const showSliders = () => {
    say(budgetTold, `${Number(budget.value)} GB`);
    say(timeoutTold, timeout.value === "0" ? "no limit" : `${timeout.value} min`);
  };
  let asking = new AbortController();
  let waiting = 0;
  signal.addEventListener("abort", () => { asking.abort(); clearTimeout(waiting); });
  const ask = async () => {
    asking.abort();
    asking = new AbortController();
    const { signal: mine } = asking;
    planned.setAttribute("aria-busy", "true");
    try {
      const found = await post("plan", body(), mine);
      fill(planned, shown(found));
    } catch (error) {
      if (mine.aborted) return;
      fill(planned, problem(error));
    }
    planned.removeAttribute("aria-busy");
  };
  const soon = () => { showSliders(); clearTimeout(waiting); waiting = setTimeout(ask, 150); };
  for (const input of [model, budget, timeout, epochs, more]) input.addEventListener("input", soon);
  showSliders();
  ask();
  get("bases", signal).then((found) => fill(bases, found.bases.map((name) => h("option", { value: name })))).catch(() => {});
  return h("form", { class: "training", on: { submit: async (event) => {
    event.preventDefault();
    try {
      const done = await post("train", body(), signal);
      fill(said);
      tell(done.goes_on ? "Goes on with the unfinished training." : "The training has begun.");
      fresh.checked = false;
      scrollTo({ top: 0 });
    } catch (error) {
      fill(said, problem(error));
    }
  } } },
  h("div", { class: "fields" },
    field("model", "Base model", [model, bases], "auto takes the best one that fits"),
    field("budget", "Memory budget", [budget, budgetTold]),
    field("timeout", "Time limit", [timeout, timeoutTold]),
    field("epochs", "Passes over the code", epochs),
    h("fieldset", {}, h("legend", {}, "Pause while"), pauses.map(({ element }) => element)),
    h("div", { class: "check" }, fresh, h("label", { for: "fresh" }, "Begin anew, also where an unfinished training could go on")),
    h("details", {}, h("summary", {}, "More settings"), h("label", { for: "more" }, "One KEY=VALUE in a line, as for --set"), more)),
  planned, said, h("p", { class: "actions" }, button("Start training", () => {}, { type: "submit", class: "main" })));
}

function shown(found) {
  if (!found.parts) return [problem(found.refusal), others(found)];
  const whole = Math.max(found.budget_bytes, found.peak_bytes);
  const told = found.parts.map((part) => `${part.title} ${gigabytes(part.bytes)}`).join(", ");
  const part = (one) => {
    const made = h("span", { class: `part ${one.colour}` });
    made.style.width = `${(100 * one.bytes) / whole}%`;
    return made;
  };
  return [
    h("p", { class: "headline" }, `About ${minutes(found.minutes)}, a peak of ${gigabytes(found.peak_bytes)} of ${gigabytes(found.budget_bytes)}`),
    h("div", { class: "bar", role: "img", "aria-label": `The budget of ${gigabytes(found.budget_bytes)}: ${told}, left ${gigabytes(found.left_bytes)}` }, found.parts.map(part)),
    h("ul", { class: "legend" }, found.parts.map((one) => h("li", {}, h("span", { class: `swatch ${one.colour}` }), `${one.title} ${gigabytes(one.bytes)}`)),
      h("li", {}, h("span", { class: "swatch" }), `left ${gigabytes(found.left_bytes)}`)),
    found.refusal ? h("p", { class: "problem" }, `A training would be refused: ${found.refusal.message} ${found.refusal.next_step}`) : null,
    h("p", {}, `Base: ${found.model} (${found.reason}).`),
    h("p", {}, `It takes ${found.time}.`),
    h("p", {}, `At a time: ${found.rows}; about ${number(found.tokens_per_second)} tokens/s.`),
    found.notes.map((note) => h("p", { class: "muted" }, note)),
    others(found),
  ];
}

function others(found) {
  const rows = found.others.filter((one) => !one.cells || !found.cells || one.cells.join() !== found.cells.join());
  if (!rows.length) return h("p", {}, "Other budgets near this one would change nothing.");
  return table("With other budgets", ["budget", "base", "layers recomputed", "rows at a time", ["tokens/s", "number"]],
    rows.map((one) => [gigabytes(one.budget_bytes), ...(one.cells || ["does not train", "", "", ""])]));
}

const minutes = (value) => (value >= 90 ? `${(value / 60).toFixed(1)} hours` : value < 1.5 ? "a minute" : `${Math.round(value)} minutes`);

// While it happens.

class Run {
  constructor(project, signal) {
    this.project = project;
    this.signal = signal;
    this.phase = h("span", { role: "status" }, "Looking for it ...");
    this.percent = h("span", {});
    this.progress = h("progress", { max: "100", value: 0, "aria-label": "Share of the training that is done" });
    this.message = h("p", { class: "muted oneline" }, "\u00a0");
    this.stop = button("Stop, keep a checkpoint", () => this.does("cancel", "It stops after this step, keeping a checkpoint."), { disabled: true });
    this.resume = button("Resume", () => this.does("resume", "It goes on from its checkpoint."), { disabled: true });
    this.verdict = h("a", { class: "button", href: `#verdict/${encodeURIComponent(project)}`, hidden: true }, "See the verdict");
    this.said = h("div", {});
    this.figures = {};
    const names = ["step", "loss", "validation", "speed", "memory", "time left", "time so far", "base"];
    const list = h("dl", { class: "figures" }, names.map((name) => {
      this.figures[name] = h("dd", {}, "-");
      return h("div", {}, h("dt", {}, name), this.figures[name]);
    }));
    this.memory = h("span", { class: "used" });
    this.memoryBar = h("div", { class: "bar", role: "img", "aria-label": "Memory against the budget" }, this.memory);
    this.loss = h("img", { alt: "Losses over the updates: none yet", width: "400", height: "230" });
    this.memoryChart = h("img", { alt: "Memory over time: nothing yet", width: "400", height: "230" });
    this.time = h("p", { class: "muted" });
    this.warnings = h("ul", { class: "warnings" });
    this.log = h("pre", { class: "log", tabindex: "0", role: "region", "aria-label": "Log of the worker" });
    this.details = h("div", { hidden: true }, this.progress, this.message,
      h("p", { class: "actions" }, this.stop, this.resume, this.verdict), list, this.memoryBar,
      h("div", { class: "charts" }, h("figure", {}, h("figcaption", {}, "Loss"), h("div", { class: "chart" }, this.loss)),
        h("figure", {}, h("figcaption", {}, "Memory against the budget"), h("div", { class: "chart" }, this.memoryChart))),
      this.time, this.warnings, h("h2", {}, "The worker's log"), this.log);
    this.element = h("section", { "aria-label": "The latest training" }, h("p", { class: "headline" }, this.phase, this.percent),
      this.said, this.details);
  }

  async does(path, done) {
    try {
      await post(path, { project: this.project }, this.signal);
      fill(this.said);
      tell(done);
    } catch (error) {
      fill(this.said, problem(error));
    }
  }

  /** Look on; done when how it stands is shown. */
  follow() {
    return new Promise((known) => this.looks(known));
  }

  looks(known) {
    follow(`${of(this.project)}/training`, {
      training: (told) => { this.tells(told); known(); },
      charts: (told) => this.draws(told),
      log: (told) => this.logs(told),
      broken: (error) => { say(this.phase, error.message); known(); },
    }, this.signal).catch((error) => { if (!this.signal.aborted) fill(this.said, problem(error)); }).finally(known);
  }

  tells(told) {
    if (told.status === "not_started") {
      say(this.phase, "It was never trained.");
      return;
    }
    const live = LIVE.includes(told.status);
    this.details.hidden = false;
    this.details.dataset.status = told.status;
    say(this.phase, live ? `${told.phase[0].toUpperCase()}${told.phase.slice(1)}` : ended(told));
    say(this.percent, live ? `, ${Math.floor(told.percent)} %` : "");
    this.progress.value = told.percent;
    say(this.message, told.message || "\u00a0");
    this.stop.disabled = !live;
    this.resume.disabled = live || !told.can_resume;
    this.verdict.hidden = told.status !== "completed";
    const figures = {
      step: told.step === null ? "-" : `${number(told.step)} of ${number(told.total_steps)}`,
      loss: told.loss === null ? "-" : `${told.loss.toFixed(3)} nats/token`,
      validation: told.bits_per_byte === null ? "-" : `${told.bits_per_byte.toFixed(4)} bits per byte`,
      speed: told.tokens_per_second === null ? "-" : `${number(told.tokens_per_second)} tokens/s`,
      memory: told.footprint_bytes === null ? "-" : `${gigabytes(told.footprint_bytes)} of ${gigabytes(told.budget_bytes)}`,
      "time left": told.left_seconds === null ? "-" : `${duration(told.left_seconds)} of training`,
      "time so far": duration(told.seconds),
      base: told.model,
    };
    for (const [name, text] of Object.entries(figures)) say(this.figures[name], text);
    const share = told.footprint_bytes === null ? 0 : told.footprint_bytes / told.budget_bytes;
    this.memory.style.width = `${Math.min(100, 100 * share)}%`;
    this.memory.classList.toggle("over", share > 1);
    this.memoryBar.setAttribute("aria-label", `Memory: ${figures.memory}`);
    say(this.time, told.time);
    if (this.warnings.childElementCount !== told.warnings.length || this.warnings.lastChild?.textContent !== told.warnings.at(-1)) {
      fill(this.warnings, told.warnings.map((text) => h("li", {}, text)));
    }
    fill(this.said, told.error && told.status === "failed" ? problem(told.error) : null);
  }

  draws(told) {
    for (const [image, { svg, alt }] of [[this.loss, told.loss], [this.memoryChart, told.memory]]) {
      if (!svg) {  // of a training that has just begun; what an earlier one drew goes
        image.removeAttribute("src");
        image.alt = "Nothing to draw yet";
        continue;
      }
      image.alt = alt;
      draw(image, svg);
    }
  }

  logs(told) {
    const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 8;
    const kept = told.from_start ? [] : this.log.textContent.split("\n").slice(-2000);
    this.log.textContent = [...kept, ...told.lines].filter((line, at) => line || at).join("\n");
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }
}

function ended(told) {
  if (told.status === "completed") return `Done${told.version ? `: ${told.version}` : ""}, after ${duration(told.seconds)}`;
  if (told.status === "cancelled") return `Stopped at ${Math.floor(told.percent)} %`;
  return `Failed at ${Math.floor(told.percent)} %`;
}
