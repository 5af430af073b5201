// @ts-check
// Numbers and tokens as text. No DOM here.

export const MINUS = "\u2212";

/** A number with three significant digits and a true minus sign; a sign always when `signed`. */
export function format(value, signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  const size = Math.abs(value);
  let text;
  if (size === 0) text = "0";
  else if (size >= 1e5 || size < 1e-4) text = size.toExponential(1).replace("e+", "e").replace("-", MINUS);
  else if (size >= 1000) text = Math.round(size).toLocaleString("en-US");
  else text = String(Number(size.toPrecision(3)));
  if (value < 0) return MINUS + text;
  return signed && size > 0 ? "+" + text : text;
}

export function percent(share) {
  if (!Number.isFinite(share)) return "\u2013";
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "<0.1%";
  return (value < 10 ? Number(value.toFixed(1)) : Math.round(value)) + "%";
}

export function count(n) {
  return n.toLocaleString("en-US");
}

export function plural(n, word, words = word + "s") {
  return `${count(n)} ${n === 1 ? word : words}`;
}

/** A token's text with what can't be seen made visible; its spaces stay. */
export function visible(text) {
  return text
    .replace(/\r?\n/g, "\u23ce")
    .replace(/\t/g, "\u21e5")
    .replace(/[\u0000-\u001f\u007f]/g, "\ufffd");
}

export function quoted(text) {
  return `\u201c${visible(text)}\u201d`;
}

/** Cuts a text so that it is no wider than `width`, as `measure` has it. */
export function cutTo(text, width, measure) {
  if (measure(text) <= width) return text;
  const characters = Array.from(text);
  let n = characters.length - 1;
  while (n > 1 && measure(characters.slice(0, n).join("") + "\u2026") > width) n -= 1;
  return characters.slice(0, n).join("") + "\u2026";
}

/** Cuts a text by whole characters, never through a surrogate pair. */
export function cut(text, length) {
  const characters = Array.from(text);
  return characters.length <= length ? text : characters.slice(0, length - 1).join("") + "\u2026";
}
