// @ts-check
// The edges, painted on a canvas.

import { extent } from "./nodes.js";

export const BUCKETS = 12;

/** Whether an edge pushes its target up. */
export function raises(edge) {
  return Number.isNaN(edge.contribution) ? edge.weight <= 0 : edge.contribution >= 0;
}

export function endsOf(stage, edge) {
  const s = stage.places.get(edge.source);
  const t = stage.places.get(edge.target);
  if (!s || !t) return null;
  const up = t.y <= s.y;
  const y1 = s.y - (up ? 1 : -1) * extent(stage, edge.source)[1];
  const y2 = t.y + (up ? 1 : -1) * extent(stage, edge.target)[1];
  const bend = up ? Math.max(8, (y1 - y2) * 0.5) : -Math.max(8, (y2 - y1) * 0.5);
  return [s.x, y1, s.x, y1 - bend, t.x, y2 + bend, t.x, y2];
}

export function level(stage, edge) {
  const largest = stage.view.circuit.largestWeight || 1;
  return Math.min(BUCKETS - 1, Math.floor(BUCKETS * Math.sqrt(Math.min(1, Math.abs(edge.weight) / largest))));
}

/** Edges of like weight and sign share a path. Signs alternate as they are painted, lest one hides the other. */
export function bucketed(stage, edges) {
  const buckets = Array.from({ length: BUCKETS }, (_, level) => [0, 1].map((down) => ({ level, down, path: null })));
  for (const edge of edges) {
    const ends = endsOf(stage, edge);
    if (!ends) continue;
    const bucket = buckets[level(stage, edge)][raises(edge) ? 0 : 1];
    if (!bucket.path) bucket.path = new Path2D();
    bucket.path.moveTo(ends[0], ends[1]);
    bucket.path.bezierCurveTo(...ends.slice(2));
  }
  return buckets.flat().filter((bucket) => bucket.path);
}

export function stroke(stage, context, { level, down, path }, colours, strong) {
  const t = (level + 0.5) / BUCKETS;
  const { k } = stage.zoom;
  const fine = Math.min(1, Math.max(0.55, k));
  context.strokeStyle = colours[down];
  context.globalAlpha = strong ? Math.min(1, 0.5 + 0.6 * t) : 0.14 + 0.66 * t;
  context.lineWidth = ((strong ? 1.1 : 0.7) + 4 * t * t) * (fine / k);
  context.setLineDash(down ? [5 / k, 3.5 / k] : []);
  context.stroke(path);
}
