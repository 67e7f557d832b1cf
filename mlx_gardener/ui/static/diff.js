// What is other between two short texts, word by word: the longest words that both have in this order stay as they are.

import { h } from "/ui/dom.js";

const MOST_WORDS = 600;

/** Nodes of `written`, with what is not in `expected` inserted and what is missing deleted. */
export function marked(expected, written) {
  const a = words(expected), b = words(written);
  const same = common(a, b);
  const made = [];
  const put = (tag, text) => {
    const last = made.at(-1);
    if (last && last.tag === tag) last.text += text;
    else made.push({ tag, text });
  };
  let i = 0, j = 0;
  for (const [x, y] of [...same, [a.length, b.length]]) {
    while (i < x) put("del", a[i++]);
    while (j < y) put("ins", b[j++]);
    if (i < a.length && j < b.length) { put("", a[i++]); j++; }
  }
  return made.map(({ tag, text }) => (tag ? h(tag, {}, text) : text));
}

const words = (text) => (text.match(/\w+|\s+|[^\w\s]/gu) || []).slice(0, MOST_WORDS);

/** Places of a longest common subsequence, in order. */
function common(a, b) {
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const found = [];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) found.push([i++, j++]);
    else if (best[i + 1][j] >= best[i][j + 1]) i++;
    else j++;
  }
  return found;
}
