// All projects, and what can be done with one: added, activated, rolled back, exported, removed.

import { get, of, post } from "/ui/api.js";
import { tell, useNames } from "/ui/app.js";
import { button, bytes, confirm, fill, h, problem, table, verdict } from "/ui/dom.js";

export async function show(main, _project, _version, signal) {
  const rows = h("div", { "aria-busy": "true", class: "list" }, h("p", {}, "Reading the registry ..."));
  const queue = h("div", {});
  const said = h("div", {});
  const path = h("input", { id: "add-path", required: true, placeholder: "/home/me/code/shop", autocomplete: "off", spellcheck: "false" });
  const name = h("input", { id: "add-name", placeholder: "the directory's name", autocomplete: "off", spellcheck: "false" });
  const add = h("form", { class: "row", on: { submit: async (event) => {
    event.preventDefault();
    try {
      const done = await post("add", { path: path.value, name: name.value || null }, signal);
      fill(said);
      path.value = name.value = "";
      tell(`Added ${done.name}. Nothing was read of it yet: Scan shows what would be.`);
      await refresh();
    } catch (error) {
      fill(said, problem(error));
    }
  } } },
  h("div", {}, h("label", { for: "add-path" }, "Repository, by its path on the server's machine"), path),
  h("div", {}, h("label", { for: "add-name" }, "Name (may be left out)"), name),
  button("Add", () => {}, { type: "submit", class: "main" }));
  fill(main, h("h1", {}, "Projects"), add, said, rows, queue);

  async function refresh() {
    const found = await get("projects", signal);
    useNames(found.projects.map((one) => one.name));
    rows.removeAttribute("aria-busy");
    if (!found.projects.length) {
      fill(rows, h("p", {}, "There is no project yet. Add a repository; nothing is read or trained by that."));
      return;
    }
    const cells = new Map();
    const cell = (project, what) => {
      const made = h("span", {}, "...");
      cells.set(`${project} ${what}`, made);
      return made;
    };
    fill(rows, table(`${found.projects.length} in the registry`,
      ["project", "base", "version", "verdict", "since then", ["on disk", "number"], "actions"],
      found.projects.map((one) => [
        [h("a", { href: `#${one.version ? "verdict" : "scan"}/${encodeURIComponent(one.name)}` }, one.name),
          one.active ? h("span", { class: "tag" }, "active") : null,
          one.is_training ? h("a", { class: "tag", href: `#train/${encodeURIComponent(one.name)}` }, "training") : null,
          h("span", { class: "path" }, one.path), one.is_there ? null : h("span", { class: "bad" }, "The directory is not there.")],
        one.base || "-", one.version || "none", one.problem ? h("span", { class: "bad" }, one.problem) : verdict(one.verdict),
        cell(one.name, "since"), cell(one.name, "size"),
        button("Manage", () => manage(one, found.forms, refresh, signal), { "aria-label": `Manage ${one.name}` }),
      ])));
    showQueue(await get("queue", signal));
    const sizes = await get("sizes", signal);
    for (const one of found.projects) {
      const known = sizes[one.name];
      const since = known?.commits_since;
      cells.get(`${one.name} since`).textContent = !one.version ? "-" : since === null || since === undefined ? "not known"
        : since === 1 ? "1 commit" : `${since} commits`;
      cells.get(`${one.name} size`).textContent = known ? bytes(known.bytes) : "-";
    }
  }
  /** What waits for its training; nothing where nothing does. */
  function showQueue(found) {
    const takeOut = (project) => button("Take out", async () => {
      try {
        tell((await post("queue/remove", { project }, signal)).told);
        fill(said);
      } catch (error) {
        fill(said, problem(error));
      }
      showQueue(await get("queue", signal));
    }, { "aria-label": `Take ${project} out of the queue` });
    fill(queue, found.queue.length ? [
      table("Waiting for their training", ["project", ["priority", "number"], "status", ["budget", "number"], "put in", "actions"],
        found.queue.map((one) => [
          one.project, one.priority, one.status, bytes(one.budget_bytes), new Date(one.enqueued_at * 1000).toLocaleString(),
          one.status === "waiting" ? takeOut(one.project) : h("a", { href: `#train/${encodeURIComponent(one.project)}` }, "Show"),
        ])),
      found.runs ? null : h("p", {}, "No process works on the queue: `mlx-gardener queue run` does."),
    ] : []);
  }
  await refresh();
}

/** A dialog with a project's versions and what can be done with them. */
async function manage(project, forms, refresh, signal) {
  const inside = h("div", {}, h("p", {}, "Reading ..."));
  const said = h("div", { role: "status" });
  const dialog = h("dialog", { class: "wide", "aria-labelledby": "manage-title" },
    h("h2", { id: "manage-title" }, project.name), said, inside,
    h("p", { class: "actions" }, button("Close", () => dialog.close())));
  dialog.addEventListener("close", () => { dialog.remove(); refresh(); });
  signal.addEventListener("abort", () => dialog.close());
  document.body.append(dialog);
  dialog.showModal();

  async function doing(what, path, body) {
    fill(said, h("p", {}, `${what} ...`));
    try {
      const done = await post(path, body, signal);
      fill(said, h("p", {}, done.told), (done.notes || []).map((note) => h("p", {}, note)));
      return true;
    } catch (error) {
      fill(said, problem(error));
      return false;
    }
  }

  async function read() {
    const found = await get(of(project.name), signal);
    const act = (label, what, path, body, attributes = {}) =>
      button(label, async () => { if (await doing(what, path, body)) await read(); }, attributes);
    const versions = found.versions.map((one) => [
      [one.version, one.active ? h("span", { class: "tag" }, "active") : null],
      [one.problem ? h("span", { class: "bad" }, one.problem) : verdict(one.verdict)],
      new Date(one.created_at * 1000).toLocaleString(), one.base, bytes(one.bytes),
      h("span", { class: "actions" },
        act("Activate", `Activating ${one.version}`, "activate", { project: project.name, version: one.version },
          { "aria-label": `Activate ${one.version}`, disabled: one.active && found.active }),
        button("Remove", async () => {
          const sure = await confirm(`Remove ${one.version} of ${project.name}?`, [
            `Its weights, evidence and report (${bytes(one.bytes)}) are deleted and cannot be had back but by training again.`,
            one.active ? "It is the active version: editors get none until another one is activated." : "It is not the active version."],
          "Remove for good");
          if (sure && await doing(`Removing ${one.version}`, "remove", { project: project.name, version: one.version })) await read();
        }, { "aria-label": `Remove ${one.version}`, class: "danger" })),
    ]);
    const stale = h("p", {}, "");
    fill(inside, h("p", { class: "path" }, found.path),
      h("p", { class: "actions" },
        h("a", { class: "button", href: `#scan/${encodeURIComponent(project.name)}` }, "Scan"),
        h("a", { class: "button", href: `#train/${encodeURIComponent(project.name)}` }, "Train"),
        act("Make it the active project", "Activating", "activate", { project: project.name }, { disabled: found.active }),
        act("Roll back", "Rolling back", "rollback", { project: project.name }, { disabled: !found.versions_before.length }),
        button("What has changed since?", async () => {
          stale.textContent = "Reading the repository ...";
          try {
            stale.textContent = (await get(`${of(project.name)}/staleness`, signal)).sentence || "There is no active version, or the repository is gone.";
          } catch (error) {
            stale.textContent = error.message;
          }
        }, { disabled: !project.version })),
      stale,
      versions.length ? table("Versions", ["version", "verdict", "made", "base", ["size", "number"], "actions"], versions)
        : h("p", {}, `No adapter yet. ${found.way_to_an_adapter}`),
      versions.length ? exporting(found, forms, doing) : null,
      h("h3", {}, "Remove the project"),
      h("p", {}, `${found.versions.length} version${found.versions.length === 1 ? "" : "s"}, ${found.runs} run${found.runs === 1 ? "" : "s"} with their checkpoints, ${bytes(found.bytes)} in all. The repository is not touched.`),
      button("Remove the project", async () => {
        const lost = found.versions.map((one) => `${one.version}${one.active ? " (active)" : ""}`).join(", ") || "no versions";
        const sure = await confirm(`Remove ${project.name}?`, [
          `Lost are: ${lost}; ${found.runs} run${found.runs === 1 ? "" : "s"} with checkpoints and logs; its index for retrieval; ${bytes(found.bytes)} in all.`,
          `The repository at ${found.path} is not touched.`], "Remove for good");
        if (sure && await doing("Removing", "remove", { project: project.name })) { tell(`Removed ${project.name}.`); dialog.close(); }
      }, { class: "danger" }));
  }

  try {
    await read();
  } catch (error) {
    if (!signal.aborted) fill(inside, problem(error));
  }
}

function exporting(found, forms, doing) {
  const version = h("select", { id: "export-version" }, found.versions.map((one) => h("option", { selected: one.active }, one.version)));
  const form = h("select", { id: "export-form" }, Object.entries(forms).map(([name, what]) => h("option", { value: name }, `${name}: ${what}`)));
  const place = h("input", { id: "export-place", placeholder: "/home/me/exported", autocomplete: "off", spellcheck: "false" });
  return h("form", { class: "row", on: { submit: (event) => {
    event.preventDefault();
    doing("Writing and comparing with the adapter, which may take a while", "export",
      { project: found.name, version: version.value, form: form.value, destination: place.value });
  } } },
  h("div", {}, h("label", { for: "export-version" }, "Export version"), version),
  h("div", {}, h("label", { for: "export-form" }, "in the form"), form),
  h("div", {}, h("label", { for: "export-place" }, "to the new directory"), place),
  button("Export", () => {}, { type: "submit" }));
}
