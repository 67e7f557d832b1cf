// A place to try completions: code with a caret; base and adapter, with and without retrieved code, side by side.

import { get, of, post } from "/ui/api.js";
import { button, fill, h, number, problem, say } from "/ui/dom.js";

const ARMS = [
  ["base", "Base", false, false], ["base-retrieval", "Base with retrieval", false, true],
  ["adapter", "Adapter", true, false], ["adapter-retrieval", "Adapter with retrieval", true, true],
];
const KEPT = "mlx-gardener-tried";

export async function show(main, project, _version, signal) {
  const found = await get(of(project), signal);
  if (!found.versions.length) {
    fill(main, h("h1", {}, `Try ${project}`), h("p", {}, `It has no adapter yet. ${found.way_to_an_adapter}`),
      h("p", {}, h("a", { class: "button", href: `#train/${encodeURIComponent(project)}` }, "Train one")));
    return;
  }
  const kept = JSON.parse(sessionStorage.getItem(KEPT) || "{}")[project] || {};
  const active = found.versions.find((one) => one.active) || found.versions.at(-1);
  const version = h("select", { id: "try-version" }, found.versions.map((one) =>
    h("option", { value: one.version, selected: one === active }, `${one.version}${one.active ? " (active)" : ""}`)));
  const path = h("input", { id: "try-path", value: kept.path || "", placeholder: "src/app.py", autocomplete: "off", spellcheck: "false" });
  const tokens = h("input", { id: "try-tokens", type: "number", min: "1", max: "512", value: "48" });
  const code = h("textarea", { id: "try-code", rows: "14", spellcheck: "false", autocapitalize: "off", wrap: "off", value: kept.code || "" });
  const caret = h("p", { class: "muted", id: "try-caret" });
  const checks = ARMS.map(([id, title]) => h("div", { class: "check" }, h("input", { type: "checkbox", id: `arm-${id}`, checked: true }), h("label", { for: `arm-${id}` }, title)));
  const run = button("Complete at the caret", () => {}, { type: "submit", class: "main" });
  const panels = new Map(ARMS.map(([id, title]) => [id, new Panel(title)]));
  const places = () => {
    const before = code.value.slice(0, code.selectionStart).split("\n");
    say(caret, `The caret is at line ${before.length}, column ${before.at(-1).length + 1}. Ctrl+Enter completes there.`);
    const all = JSON.parse(sessionStorage.getItem(KEPT) || "{}");
    sessionStorage.setItem(KEPT, JSON.stringify({ ...all, [project]: { code: code.value, path: path.value, at: code.selectionStart } }));
  };
  let asking = new AbortController();
  signal.addEventListener("abort", () => asking.abort());
  const complete = async (event) => {
    event?.preventDefault();
    asking.abort();
    asking = new AbortController();
    const { signal: mine } = asking;
    places();
    const body = {
      project, version: version.value, path: path.value || null, n_predict: Number(tokens.value) || 48,
      input_prefix: code.value.slice(0, code.selectionStart), input_suffix: code.value.slice(code.selectionEnd),
    };
    const chosen = ARMS.filter(([id]) => document.getElementById(`arm-${id}`).checked);
    for (const [id] of ARMS) panels.get(id).empties(chosen.some(([other]) => other === id));
    for (const [id, , adapter, retrieval] of chosen) {
      if (mine.aborted) return;
      panels.get(id).waits();
      try {
        panels.get(id).tells(await post("try", { ...body, adapter, retrieval }, mine), retrieval);
      } catch (error) {
        if (mine.aborted) return;
        panels.get(id).fails(error);
      }
    }
  };
  for (const event of ["input", "keyup", "click", "focus", "select"]) code.addEventListener(event, places);
  path.addEventListener("input", places);
  code.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) complete(event); });
  fill(main, h("h1", {}, `Try ${project}`),
    h("form", { on: { submit: complete } },
      h("div", { class: "row" }, h("div", {}, h("label", { for: "try-version" }, "Version"), version),
        h("div", {}, h("label", { for: "try-path" }, "The file's path in the repository"), path),
        h("div", {}, h("label", { for: "try-tokens" }, "Tokens at most"), tokens)),
      h("label", { for: "try-code" }, "Code; the answer is written at the caret"), code, caret,
      h("div", { class: "row", role: "group", "aria-label": "What answers" }, checks), h("p", { class: "actions" }, run)),
    h("div", { class: "answers" }, [...panels.values()].map((panel) => panel.element)));
  code.setSelectionRange(kept.at ?? code.value.length, kept.at ?? code.value.length);
  places();
}

/** One answer; its place is there before it is, so that nothing moves. */
class Panel {
  constructor(title) {
    this.figures = h("p", { class: "muted" }, "\u00a0");
    this.text = h("pre", { tabindex: "0", role: "group", "aria-label": `Answer of ${title}` });
    this.more = h("div", {});
    this.element = h("section", { class: "answer", "aria-label": title }, h("h2", {}, title), this.figures, this.text, this.more);
  }

  empties(wanted) {
    this.element.classList.toggle("off", !wanted);
    say(this.figures, wanted ? "waits for its turn" : "not asked");
    this.text.textContent = "";
    fill(this.more);
  }

  waits() {
    this.element.setAttribute("aria-busy", "true");
    say(this.figures, "writes ... (the base is loaded with the first answer)");
  }

  tells(told, retrieval) {
    this.element.removeAttribute("aria-busy");
    say(this.figures, `${number(told.milliseconds)} ms, ${number(told.prompt_tokens)} tokens read, ${number(told.written_tokens)} written`);
    this.text.textContent = told.text || "(nothing)";
    fill(this.more, told.leaves_out_suffix && h("p", { class: "muted" }, "It goes on from what stands before the caret: the base has no fill-in-the-middle markers."), told.pieces.length
      ? h("details", {}, h("summary", {}, `${told.pieces.length} retrieved piece${told.pieces.length === 1 ? "" : "s"} in front`),
        h("ul", {}, told.pieces.map((one) => h("li", {}, `${one.path}:${one.start_line}-${one.end_line}, ${number(one.tokens)} tokens`))),
        h("pre", { tabindex: "0", role: "group", "aria-label": "Retrieved code" }, told.front))
      : retrieval && h("p", { class: "muted" }, decodeURIComponent(told.retrieval).replace(/^none; /, "Nothing was retrieved: ")));
  }

  fails(error) {
    this.element.removeAttribute("aria-busy");
    say(this.figures, "no answer");
    fill(this.more, problem(error));
  }
}
