// Elements made of text and attributes: nothing that comes from a repository or a model is ever read as markup.

/** An element; `on` has its listeners, a child that is null or false is left out, all else but nodes becomes text. */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, does] of Object.entries(value)) made.addEventListener(event, does);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...nodes(children));
  return made;
}

function nodes(children) {
  return children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false)
    .map((one) => (one instanceof Node ? one : document.createTextNode(String(one))));
}

/** Put `children` in the place of all that is in an element. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/** Change the text of an element, and only if it is another one: what is read out is not read out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function button(label, does, attributes = {}) {
  return h("button", { type: "button", ...attributes, on: { click: does } }, label);
}

/** A table; `columns` are titles, or [title, class] where cells are numbers. On a narrow screen rows become cards. */
export function table(caption, columns, rows, attributes = {}) {
  const heads = columns.map((one) => (Array.isArray(one) ? one : [one, ""]));
  return h("table", { class: "stacks", ...attributes }, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, heads.map(([title, kind]) => h("th", { scope: "col", class: kind }, title)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, at) => at === 0
      ? h("th", { scope: "row" }, cell)
      : h("td", { class: heads[at][1], "data-column": heads[at][0] }, h("span", {}, cell)))))));
}

/** A picture the server drew, as an image: an image runs nothing and fetches nothing. */
export function picture(svg, alt) {
  const size = svg.match(/viewBox="0 0 ([\d.]+) ([\d.]+)"/);
  const image = h("img", { alt, width: size?.[1], height: size?.[2] });  // its place is there before it is
  draw(image, svg);
  return image;
}

/** Another picture in an image; the old one stays until the new one is there, so that nothing flickers. */
export async function draw(image, svg) {
  const address = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  const next = new Image();
  next.src = address;
  try {
    await next.decode();
  } catch {
    URL.revokeObjectURL(address);
    return;
  }
  const old = image.src;
  image.src = address;
  if (old.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(old), 1000);
}

const PLAIN = new Intl.NumberFormat("en");

export const number = (value) => (value === null || value === undefined ? "-" : PLAIN.format(Math.round(value)));

export function bytes(size) {
  if (size === null || size === undefined) return "-";
  if (size < 1000) return `${size} B`;
  if (size < 999500) return `${(size / 1e3).toFixed(0)} kB`;
  return size < 9995e5 ? `${(size / 1e6).toFixed(1)} MB` : `${(size / 1e9).toFixed(2)} GB`;
}

export const gigabytes = (size) => `${(size / 2 ** 30).toFixed(2)} GB`;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

const VERDICTS = { promote: "helped", reject: "rejected", inconclusive: "unclear", unmeasured: "not measured" };

/** A verdict as a word with a sign, so that colour alone says nothing. */
export function verdict(name) {
  if (!name) return "-";
  const sign = { promote: "✓", reject: "✗", inconclusive: "≈" }[name] || "·";
  return h("span", { class: `tag ${name}` }, `${sign} ${VERDICTS[name] || name}`);
}

/** A message that something could not be done. */
export function problem(error) {
  return h("p", { class: "problem", role: "alert" }, error.message, error.next_step ? ` ${error.next_step}` : "");
}

/** Ask before something is lost; gives whether it shall be done. */
export function confirm(title, what, yes, parts = []) {
  return new Promise((answer) => {
    const dialog = h("dialog", { "aria-labelledby": "confirm-title" },
      h("h2", { id: "confirm-title" }, title), what.map((line) => h("p", {}, line)), parts,
      h("p", { class: "actions" }, button("Cancel", () => dialog.close("no"), { autofocus: true }),
        button(yes, () => dialog.close("yes"), { class: "danger" })));
    dialog.addEventListener("close", () => { dialog.remove(); answer(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
