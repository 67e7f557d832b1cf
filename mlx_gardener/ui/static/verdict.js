// What a version is worth: the evidence as the report tells it, versions side by side, tasks where base and adapter differ.

import { get, of } from "/ui/api.js";
import { go } from "/ui/app.js";
import { marked } from "/ui/diff.js";
import { button, fill, h, number, picture, problem, table } from "/ui/dom.js";

export async function show(main, project, version, signal) {
  const query = version ? `?version=${encodeURIComponent(version)}` : "";
  const found = await get(`${of(project)}/verdict${query}`, signal);
  if (found.version === null) {
    fill(main, h("h1", {}, `Verdict on ${project}`), h("p", {}, `It has no adapter yet. ${found.way_to_an_adapter}`),
      h("p", {}, h("a", { class: "button", href: `#train/${encodeURIComponent(project)}` }, "Train it")));
    return;
  }
  const chooser = h("select", { id: "version", on: { change: (event) => go("verdict", project, event.target.value) } },
    found.versions.map((one) => h("option", { selected: one === found.version }, one)));
  const { evidence } = found;
  fill(main, h("h1", {}, `Verdict on ${project} ${found.version}`),
    h("p", { class: "row" }, h("label", { for: "version" }, "Version"), chooser,
      h("span", { class: "muted" }, `an adapter of ${found.base}${found.active ? ", active" : ""}`)),
    evidence ? told(evidence) : h("p", {}, `It was never measured: mlx-gardener eval ${project} --version ${found.version} does that.`),
    found.versions.length > 1 ? comparing(project, found, signal) : null);
}

function told(evidence) {
  return [
    h("section", { class: `verdict ${evidence.verdict}`, "aria-label": "The verdict" },
      h("p", { class: "headline" }, `${evidence.sign} ${evidence.headline}`), h("p", {}, evidence.meaning), h("p", {}, evidence.reason),
      evidence.remarks.map((text) => h("p", {}, text))),
    evidence.guards.length ? [h("h2", {}, "Checks"), h("ul", { class: "plain" }, evidence.guards.map((guard) =>
      h("li", {}, h("span", { class: `guard ${guard.state}` }, `${guard.sign} ${guard.state}`), ` ${guard.title}. ${guard.reason}`)))] : null,
    h("h2", {}, "Arms"), grid("Figures on code it never saw; the best of each row is bold", evidence.arms),
    evidence.kinds.rows.length ? grid("Exactly right, by kind of task", evidence.kinds) : null,
    evidence.plots.length ? [h("h2", {}, "Changes with their 95 % intervals"), h("div", { class: "charts" }, evidence.plots.map((one) =>
      h("figure", {}, h("figcaption", {}, one.title), picture(one.svg, one.alt))))] : null,
    evidence.power ? h("p", { class: "muted" }, evidence.power) : null,
    evidence.notes.map((note) => h("p", { class: "muted" }, note)),
    samples(evidence.samples),
    h("h2", {}, "What to do now"), h("ul", {}, evidence.steps.map((step) => h("li", {}, step.text,
      step.commands.map((command) => h("code", { class: "command" }, command))))),
    h("details", {}, h("summary", {}, "What the words mean"), h("dl", {}, evidence.glossary.map(([word, meaning]) =>
      h("div", {}, h("dt", {}, word), h("dd", {}, meaning))))),
  ];
}

function grid(caption, found) {
  const best = new Set(found.best.map(([row, column]) => `${row} ${column}`));
  return table(caption, found.columns.map((title, at) => (at ? [title, "number"] : title)),
    found.rows.map((row, at) => row.map((text, column) => (best.has(`${at} ${column}`) ? h("strong", {}, text) : text))));
}

/** Tasks side by side, by language and kind. */
function samples(all) {
  if (!all.length) return null;
  const options = (name, values) => h("select", { id: `only-${name}` }, h("option", { value: "" }, "all"),
    [...values].map(([value, title]) => h("option", { value }, title)));
  const language = options("language", new Map(all.map((one) => [one.language, one.language])));
  const kind = options("kind", new Map(all.map((one) => [one.kind, one.kind_title])));
  const differ = h("input", { type: "checkbox", id: "only-different", checked: true });
  const list = h("div", {});
  const count = h("p", { role: "status", class: "muted" });
  const draw = () => {
    const found = all.filter((one) => (!language.value || one.language === language.value) && (!kind.value || one.kind === kind.value)
      && (!differ.checked || one.base !== one.adapter));
    count.textContent = `${number(found.length)} of ${number(all.length)} kept tasks`;
    fill(list, found.map(sample));
  };
  for (const one of [language, kind, differ]) one.addEventListener("change", draw);
  draw();
  return [h("h2", {}, "Base and adapter side by side"),
    h("div", { class: "row" }, h("div", {}, h("label", { for: "only-language" }, "Language"), language),
      h("div", {}, h("label", { for: "only-kind" }, "Kind"), kind),
      h("div", { class: "check" }, differ, h("label", { for: "only-different" }, "Only where they differ"))), count, list];
}

function sample(one) {
  const known = typeof one.expected === "string";
  const side = (title, text) => h("div", {}, h("h4", {}, title),
    h("pre", { tabindex: "0", role: "group", "aria-label": title }, known && text !== one.expected ? marked(one.expected, text) : text || "(nothing)"));
  return h("article", { class: "sample" }, h("h3", {}, `${one.path}, line ${one.line}`),
    h("p", { class: "muted" }, [one.kind_title, one.language, one.similarity].filter(Boolean).join(", ")),
    one.context ? h("pre", { class: "muted", tabindex: "0", role: "group", "aria-label": "What stands before" }, one.context) : null,
    h("div", { class: "sides" },
      known ? h("div", {}, h("h4", {}, "what stands there"), h("pre", { tabindex: "0", role: "group", "aria-label": "what stands there" }, one.expected)) : null,
      side("base", one.base), side("adapter", one.adapter)),
    known ? h("p", { class: "muted small" }, h("ins", {}, "written and not there"), ", ", h("del", {}, "there and not written")) : null);
}

function comparing(project, found, signal) {
  const other = found.versions.filter((one) => one !== found.version);
  const second = h("select", { id: "other" }, other.map((one, at) => h("option", { selected: at === other.length - 1 }, one)));
  const shown = h("div", {});
  const compare = async () => {
    try {
      fill(shown, beside(await get(`${of(project)}/compare?first=${second.value}&second=${found.version}`, signal)));
    } catch (error) {
      if (!signal.aborted) fill(shown, problem(error));
    }
  };
  return [h("h2", {}, "Compared with another version"),
    h("p", { class: "row" }, h("label", { for: "other" }, `${found.version} against`), second, button("Compare", compare)), shown];
}

function beside(found) {
  const form = (value) => (value === null || value === undefined ? "-" : typeof value === "number" ? value.toFixed(4) : JSON.stringify(value));
  const title = (name) => {
    const arm = ["base_", "adapter_"].find((one) => name.startsWith(one)) || "";
    return found.titles[name.slice(arm.length)] ? `${arm.replace("_", ": ")}${found.titles[name.slice(arm.length)]}` : name.replaceAll("_", " ");
  };
  const columns = [[found.first.version, "number"], [found.second.version, "number"]];
  return [
    found.note ? h("p", { class: "problem" }, found.note) : null,
    table("Figures", ["figure", ...columns], Object.entries(found.metrics).map(([name, pair]) => [title(name), ...pair.map(form)])),
    found.files.length ? table("Bits per byte on the same unseen files, those that changed most first", ["file", ...columns],
      found.files.slice(0, 20).map((one) => [one.path, form(one.first), form(one.second)])) : null,
    Object.keys(found.settings).length ? table("Settings that differ", ["setting", ...columns],
      Object.entries(found.settings).map(([name, pair]) => [name, ...pair.map((value) => JSON.stringify(value))])) : h("p", {}, "Their settings are the same."),
  ];
}
