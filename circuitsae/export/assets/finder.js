// @ts-check
// The search box.

import { make } from "./elements.js";

export function finder(view) {
  const list = make("ul", {
    class: "cg-found",
    role: "listbox",
    id: `${view.id}-found`,
    "aria-label": "Found nodes",
    hidden: true,
  });
  const input = make("input", {
    type: "search",
    placeholder: "Find index, label, token",
    "aria-label": "Search nodes",
    role: "combobox",
    "aria-expanded": "false",
    "aria-controls": list.id,
    "aria-autocomplete": "list",
    autocomplete: "off",
    spellcheck: "false",
  });
  view.search = input;
  let found = [];
  let at = -1;
  const open = (on) => {
    list.hidden = !on || !input.value.trim();
    input.setAttribute("aria-expanded", String(!list.hidden));
  };
  const point = (next) => {
    at = next;
    [...list.children].forEach((row, n) => row.setAttribute("aria-selected", String(n === at)));
    if (at >= 0) {
      input.setAttribute("aria-activedescendant", list.children[at].id);
      list.children[at].scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  };
  const take = (n) => {
    if (found[n] === undefined) return;
    open(false);
    view.choose([found[n]]);
  };
  input.addEventListener("input", () => {
    found = view.circuit.find(input.value, 1000);
    view.matches = found;
    list.replaceChildren(
      ...found.slice(0, 12).map((i, n) =>
        make(
          "li",
          {
            role: "option",
            id: `${view.id}-found-${n}`,
            "aria-selected": "false",
            on: { pointerdown: (event) => (event.preventDefault(), take(n)) },
          },
          make("b", { text: view.circuit.name(i) }),
          make("span", { class: "cg-soft", text: ` ${view.circuit.label[i] || view.placeOf(i)}` }),
        ),
      ),
    );
    point(-1);
    open(true);
    if (!found.length)
      list.append(make("li", { class: "cg-soft", role: "option", "aria-disabled": "true", text: "Nothing found" }));
    if (input.value && !found.length) view.say("Nothing found.");
    view.stage.mark();
  });
  input.addEventListener("keydown", (event) => {
    const rows = Math.min(found.length, 12);
    if (event.key === "ArrowDown" && rows) (point((at + 1) % rows), open(true));
    else if (event.key === "ArrowUp" && rows) point((at + rows - 1) % rows);
    else if (event.key === "Enter") take(Math.max(at, 0));
    else if (event.key === "Escape") {
      input.value = "";
      found = view.matches = [];
      open(false);
      view.clear();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  input.addEventListener("blur", () => open(false));
  input.addEventListener("focus", () => open(true));
  return make("div", { class: "cg-find" }, input, list);
}
