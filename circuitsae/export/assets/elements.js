// @ts-check
// Elements, made without markup: whatever a stranger's text holds, it goes in as text.

export const SVG = "http://www.w3.org/2000/svg";

export function attributes(element, given) {
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on")
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else element.setAttribute(name, value === true ? "" : value);
  }
}

export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  attributes(element, given);
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export function draw(tag, given = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  attributes(element, given);
  element.append(...children);
  return element;
}

/**
 * What has the keyboard's focus.
 * @returns {any}
 */
export function focused() {
  return document.activeElement;
}

const ICONS = {
  plus: "M8 3v10M3 8h10",
  minus: "M3 8h10",
  fit: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  full: "M9.5 2.5h4v4M13.2 2.8 9 7M6.5 13.5h-4v-4M2.8 13.2 7 9",
  close: "M4 4l8 8M12 4l-8 8",
  pin: "M8 10v4M5 2.5h6M6 2.5v4L4.2 9.3c-.2.4 0 .7.4.7h6.8c.4 0 .6-.3.4-.7L10 6.500v-4",
  down: "M4 6.500l4 4 4-4",
};

export function icon(name) {
  return draw(
    "svg",
    { class: "cg-icon", viewBox: "0 0 16 16", "aria-hidden": "true" },
    draw("path", { d: ICONS[name] }),
  );
}

/** A button with an icon, named by its label, or with a text, explained by it. */
export function button(content, label, listener, given = {}) {
  const drawn = content in ICONS;
  return make(
    "button",
    {
      type: "button",
      "aria-label": drawn ? label : null,
      title: label === content ? null : label,
      on: { click: listener },
      ...given,
    },
    drawn ? icon(content) : content,
  );
}
