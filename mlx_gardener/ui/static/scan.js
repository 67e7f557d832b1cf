// What a training would read, folder by folder, and what is left out and why; a folder is left out by a click.

import { get, of, post } from "/ui/api.js";
import { tell } from "/ui/app.js";
import { button, bytes, fill, h, number, problem, table } from "/ui/dom.js";

const SHOWN_DEPTH = 2;

export async function show(main, project, _version, signal) {
  const said = h("div", {});
  const inside = h("div", { class: "tall", "aria-busy": "true" }, h("p", {}, "Reading the repository ..."));
  fill(main, h("h1", {}, `What is read of ${project}`), said, inside);
  let all = false;

  async function change(path, leaveOut) {
    fill(said);
    try {
      await post("leave-out", { project, path, leave_out: leaveOut }, signal);
      tell(leaveOut ? `${path} is left out of trainings and answers from now on.` : `${path} is read again.`);
      await read();
    } catch (error) {
      if (!signal.aborted) fill(said, problem(error));
    }
  }

  async function read() {
    inside.setAttribute("aria-busy", "true");
    const found = await get(`${of(project)}/scan`, signal);
    inside.removeAttribute("aria-busy");
    draw(found);
  }

  function draw(found) {
    const depth = (path) => (path === "" ? 0 : path.split("/").length);
    const folders = found.folders.filter((one) => all || depth(one.path) <= SHOWN_DEPTH);
    fill(inside,
      h("p", {}, `Of ${number(found.files_seen)} files (${bytes(found.bytes_seen)}), ${number(found.files_kept)} would be read: `
        + `${number(found.chunks_kept)} of ${number(found.chunks_found)} chunks (a function, a class, or what lies between).`),
      found.refusal ? h("p", { class: "problem" }, `A training would be refused: ${found.refusal.message} ${found.refusal.next_step}`) : null,
      found.notes.map((note) => h("p", { class: "muted" }, note)),
      table("Folders that are read, with all below them", ["folder", ["files", "number"], ["chunks", "number"], ["code", "number"], "languages", "actions"],
        folders.map((one) => [
          h("span", { class: "folder", "data-depth": String(Math.min(6, depth(one.path))) }, one.path === "" ? "(everything)" : `${one.path}/`),
          number(one.files), number(one.chunks), bytes(one.bytes), shares(one.languages, one.bytes),
          one.path === "" ? null : button("Leave out", () => change(one.path, true), { "aria-label": `Leave out ${one.path}` }),
        ])),
      found.folders.length > folders.length
        ? button(`Show all ${number(found.folders.length)} folders`, () => { all = true; draw(found); }) : null,
      found.folders_found > found.folders.length ? h("p", {}, `${number(found.folders_found - found.folders.length)} more folders are read.`) : null,
      h("h2", {}, "Left out by you"),
      found.left_out.length
        ? h("ul", { class: "plain" }, found.left_out.map((path) => h("li", {}, h("code", {}, path), " ",
          button("Read again", () => change(path, false), { "aria-label": `Read ${path} again` }))))
        : h("p", {}, "Nothing. What is left out here is not trained on and not retrieved; versions that have learned from it stay as they are."),
      h("h2", {}, "Left out by rule"),
      found.dropped.length
        ? table("Files and chunks that are not read", ["because", ["count", "number"], ["size", "number"], "for example"],
          found.dropped.map((one) => [one.title, `${number(one.count)} ${one.unit}`, bytes(one.bytes), one.examples.slice(0, 2).join(", ")]))
        : h("p", {}, "Nothing."),
      h("h2", {}, "Possible secrets"),
      found.secrets.length
        ? [h("p", {}, `In ${number(found.secrets_found)} place${found.secrets_found === 1 ? "" : "s"}; the chunks around them are left out.`),
          h("ul", {}, found.secrets.map((one) => h("li", {}, h("code", {}, `${one.path}:${one.line}`), ` ${one.kind}`)))]
        : h("p", {}, "None was found."),
      h("p", {}, h("a", { class: "button", href: `#train/${encodeURIComponent(project)}` }, "Train on this")));
  }

  await read();
}

function shares(languages, whole) {
  return Object.entries(languages).sort((a, b) => b[1] - a[1]).slice(0, 3)
    .map(([name, size]) => `${name} ${Math.round((100 * size) / Math.max(1, whole))} %`).join(", ");
}
