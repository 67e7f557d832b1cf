// Which page is shown: the address behind # names it, so that reloading and going back do what they should.

import { get, keepToken, takeToken } from "/ui/api.js";
import { button, fill, h, problem } from "/ui/dom.js";

const PAGES = { projects: "Projects", scan: "Scan", train: "Train", verdict: "Verdict", try: "Try it" };
const main = document.getElementById("main");
const chooser = document.getElementById("project");
let leaving = new AbortController();
let names = [];

function place() {
  const [page, project, version] = location.hash.slice(1).split("/").map(decodeURIComponent);
  return { page: page in PAGES ? page : "projects", project: project || "", version: version || "" };
}

export function go(page, project = "", version = "") {
  const parts = [page, project, version].filter(Boolean).map(encodeURIComponent);
  location.hash = parts.join("/");
}

/** Say in a line what was done; screen readers read it out. */
export function tell(text) {
  const told = document.getElementById("told");
  told.textContent = text;
  setTimeout(() => { if (told.textContent === text) told.textContent = ""; }, 10000);
}

function showPages({ page, project }) {
  fill(document.getElementById("pages"), Object.entries(PAGES).map(([name, title]) => {
    const parts = name === "projects" ? [name] : [name, project].filter(Boolean).map(encodeURIComponent);
    return h("a", { href: `#${parts.join("/")}`, "aria-current": name === page ? "page" : null }, title);
  }));
}

function showNames({ project }) {
  fill(chooser, names.map((name) => h("option", { value: name, selected: name === project }, name)));
  chooser.disabled = names.length === 0;
}

/** The names of the projects, after one came or went; the first of them is chosen where none is. */
export function useNames(found) {
  names = found;
  showNames(place());
}

async function show(takesFocus) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const wanted = place();
  if (wanted.page !== "projects" && names.length === 0) {
    try {
      useNames((await get("projects", signal)).projects.map((one) => one.name));
    } catch (error) {
      if (!signal.aborted && error.status !== 401) fill(main, h("h1", {}, PAGES[wanted.page]), problem(error));
      return;
    }
  }
  if (wanted.page !== "projects" && !names.includes(wanted.project)) {
    if (names.length && !wanted.project) return go(wanted.page, chooser.value || names[0]);
    fill(main, h("h1", {}, PAGES[wanted.page]),
      h("p", {}, wanted.project ? `There is no project ${wanted.project}. ` : "There is no project yet. ",
        h("a", { href: "#projects" }, wanted.project ? "These are there." : "Add a repository first.")));
    return showPages(wanted);
  }
  showPages(wanted);
  showNames(wanted);
  document.title = `${PAGES[wanted.page]}${wanted.project ? ` of ${wanted.project}` : ""} - mlx-gardener`;
  try {
    const found = await import(`/ui/${wanted.page}.js`);
    await found.show(main, wanted.project, wanted.version, signal);
    if (takesFocus && !signal.aborted) main.focus({ preventScroll: true });
  } catch (error) {
    if (!signal.aborted && error.status !== 401) fill(main, h("h1", {}, PAGES[wanted.page]), problem(error));
  }
}

function askForToken() {
  leaving.abort();
  const field = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
  fill(main, h("h1", {}, "A token is needed"),
    h("p", {}, "The command that started this server printed an address with a token in it: open that, or type the token here."),
    h("form", { on: { submit: (event) => { event.preventDefault(); keepToken(field.value); names = []; show(true); } } },
      h("label", { for: "token" }, "Token"), field, button("Go on", () => {}, { type: "submit", class: "main" })));
  field.focus();
}

document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
chooser.addEventListener("change", () => {
  const { page } = place();
  go(page === "projects" ? "verdict" : page, chooser.value);
});
addEventListener("token-needed", askForToken);
// What a page asked for and nobody waits for any more, as it was left, is no fault; whatever else nobody caught is said.
addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") event.preventDefault();
  else if (event.reason?.status !== 401) tell(event.reason?.message || String(event.reason));
});
addEventListener("hashchange", () => { takeToken(); show(true); });
takeToken();
show(false);
