// @ts-check
// Pointer, wheel and keys on the drawing.

import { attributes } from "./elements.js";
import { extent } from "./nodes.js";

const LONG_PRESS = 450; // ms
const REACH = 16; // how far from a node's middle the pointer still means it

/** The item under a point of the screen, the nearest within reach; -1 where there is none. */
function itemAt(stage, event) {
  const box = stage.svg.getBoundingClientRect();
  const { k, x, y } = stage.zoom;
  const [px, py] = [(event.clientX - box.left - x) / k, (event.clientY - box.top - y) / k];
  let best = -1;
  let least = Infinity;
  for (const [id, place] of stage.places) {
    if (stage.layout.folded.has(id)) continue;
    const [w, h] = extent(stage, id);
    const [dx, dy] = [Math.abs(place.x - px), Math.abs(place.y - py)];
    if (w > 14) {
      if (dx <= w && dy <= h) return id;
      continue;
    }
    const distance = Math.hypot(dx, dy);
    if (distance <= Math.max(REACH / k, w) && distance < least) [best, least] = [id, distance];
  }
  return best;
}

export function listen(stage) {
  const { view, svg, root } = stage;
  const on = { signal: view.listeners.signal };
  const pointers = new Map();
  let drag = null;
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return { distance: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  };
  svg.addEventListener(
    "pointerdown",
    (event) => {
      if (event.button !== 0) return;
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const item = itemAt(stage, event);
      drag = {
        x: event.clientX,
        y: event.clientY,
        from: { ...stage.zoom },
        item,
        moved: false,
        many: event.shiftKey || event.ctrlKey || event.metaKey || view.selecting,
        lasso: (event.shiftKey || view.selecting) && item < 0,
        gap: event.target.closest(".cg-gap"),
      };
      const pressed = drag;
      // A long press of a finger does what Shift and a click do.
      if (event.pointerType === "touch" && item >= 0)
        setTimeout(() => {
          if (drag !== pressed || drag.moved) return;
          drag = null;
          view.click(item, true);
        }, LONG_PRESS);
      if (pointers.size === 2) drag = { pinch: spread(), from: { ...stage.zoom }, moved: true };
    },
    on,
  );
  svg.addEventListener(
    "pointermove",
    (event) => {
      if (pointers.has(event.pointerId)) pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (!drag) {
        if (event.pointerType !== "touch") view.hover(itemAt(stage, event));
        return;
      }
      const box = svg.getBoundingClientRect();
      if (drag.pinch && pointers.size === 2) {
        const now = spread();
        const k = Math.min(6, Math.max(0.1, (drag.from.k * now.distance) / drag.pinch.distance));
        const by = k / drag.from.k;
        stage.move({
          k,
          x: now.x - box.left - (drag.pinch.x - box.left - drag.from.x) * by,
          y: now.y - box.top - (drag.pinch.y - box.top - drag.from.y) * by,
        });
        return;
      }
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      if (!drag.moved) svg.setPointerCapture(event.pointerId);
      drag.moved = true;
      if (drag.lasso) {
        const [x, y] = [Math.min(drag.x, event.clientX) - box.left, Math.min(drag.y, event.clientY) - box.top];
        drag.box = { x, y, width: Math.abs(dx), height: Math.abs(dy) };
        attributes(stage.lasso, { ...drag.box, display: "inline" });
      } else {
        view.hover(-1);
        root.classList.add("cg-dragging");
        stage.move({ k: drag.from.k, x: drag.from.x + dx, y: drag.from.y + dy });
      }
    },
    on,
  );
  const release = (event) => {
    pointers.delete(event.pointerId);
    if (!drag) return;
    root.classList.remove("cg-dragging");
    stage.lasso.setAttribute("display", "none");
    if (drag.lasso && drag.box) view.choose(inside(stage, drag.box), true);
    else if (!drag.moved && event.type === "pointerup") {
      if (drag.gap && drag.item < 0) stage.unfold(Number(drag.gap.dataset.gap));
      else view.click(drag.item, drag.many);
    }
    drag = null;
  };
  svg.addEventListener("pointerup", release, on);
  svg.addEventListener("pointercancel", release, on);
  // A long press would open the browser's menu.
  svg.addEventListener("contextmenu", (event) => pointers.size && event.preventDefault(), on);
  svg.addEventListener("pointerleave", () => !drag && view.hover(-1), on);
  svg.addEventListener(
    "focusin",
    (event) => {
      const item = itemOf(stage, event.target);
      const gap = event.target.closest(".cg-gap");
      if (!event.target.matches(":focus-visible")) return;
      if (item >= 0) view.hover(item);
      else if (gap) stage.revealPlace(stage.gapPlace(Number(gap.dataset.gap)));
    },
    on,
  );
  svg.addEventListener("focusout", () => view.hover(-1), on);
  // A wheel scrolls what does not fit, else the page; with Ctrl, as a pinch sends it, it zooms.
  root.addEventListener(
    "wheel",
    (event) => {
      const box = svg.getBoundingClientRect();
      const over = stage.overflows();
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        stage.zoomBy(Math.exp(-event.deltaY / 250), event.clientX - box.left, event.clientY - box.top);
      } else if ((event.deltaY && over.y) || (event.deltaX && over.x)) {
        event.preventDefault();
        stage.move({
          k: stage.zoom.k,
          x: stage.zoom.x - (over.x ? event.deltaX : 0),
          y: stage.zoom.y - (over.y ? event.deltaY : 0),
        });
      }
    },
    { passive: false, ...on },
  );
  svg.addEventListener(
    "keydown",
    (event) => {
      const gap = event.target.closest(".cg-gap");
      if (gap && (event.key === "Enter" || event.key === " ")) {
        stage.unfold(Number(gap.dataset.gap));
        event.preventDefault();
      }
      const item = itemOf(stage, event.target);
      if (item < 0 || event.ctrlKey || event.metaKey) return;
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (way && event.altKey)
        follow(stage, item, event.key === "ArrowUp" ? "outs" : event.key === "ArrowDown" ? "ins" : null);
      else if (way) step(stage, item, way);
      else if (event.key === "Enter" || event.key === " ") view.click(item, event.shiftKey);
      else if (event.key === "Home") stage.focus(stage.firstItem());
      else if (!view.key(event, item)) return;
      event.preventDefault();
    },
    on,
  );
}

function itemOf(stage, target) {
  const element = target.closest ? target.closest("g[data-node]") : null;
  return element ? Number(element.dataset.node) : -1;
}

function inside(stage, { x, y, width, height }) {
  const { zoom } = stage;
  return [...stage.places]
    .filter(([id, place]) => {
      const [px, py] = [place.x * zoom.k + zoom.x, place.y * zoom.k + zoom.y];
      return stage.view.choosable(id) && px >= x && px <= x + width && py >= y && py <= y + height;
    })
    .map(([id]) => id);
}

/** Moves the focus to the nearest item that way; sideways steps cost more. */
function step(stage, from, [dx, dy]) {
  const here = stage.places.get(from);
  let best = -1;
  let least = Infinity;
  for (const [id, place] of stage.places) {
    if (stage.layout.folded.has(id)) continue;
    const [x, y] = [place.x - here.x, place.y - here.y];
    const along = x * dx + y * dy;
    if (along < 1) continue;
    const cost = along + 3 * Math.abs(x * dy + y * dx);
    if (cost < least) [best, least] = [id, cost];
  }
  if (best >= 0) stage.focus(best);
}

/** Moves the focus along the strongest edge, up or down. */
function follow(stage, from, side) {
  const edges = side ? stage.view.shown[side].get(from) : null;
  if (edges && edges.length) stage.focus(side === "outs" ? edges[0].target : edges[0].source);
}
