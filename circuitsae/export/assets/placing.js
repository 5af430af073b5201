// @ts-check
// Where captions can stand without covering one another. No DOM here.

/**
 * A text that is to stand at a node: the node's middle and half its size, the text's width and font size. `above` asks
 * for the place over the node first; `must` tries other places too before it gives up. A node `within` a box, such as
 * the window, has its text there too.
 * @typedef {{x: number, y: number, w: number, h: number, width: number, size: number, above?: boolean,
 *   must?: boolean, within?: Box}} Wanted
 *
 * @typedef {[number, number, number, number]} Box left, top, right, bottom
 */

/** @returns {boolean} whether two boxes have a point in common */
function overlap(a, b) {
  return a[0] < b[2] && a[2] > b[0] && a[1] < b[3] && a[3] > b[1];
}

/**
 * Places captions in the order given. None covers another or a box of `solid`; one that need not be there covers no node
 * either, and one that must does so only where there is no other place near it.
 *
 * @param {Wanted[]} wanted
 * @param {Box[]} solid
 * @param {(box: Box, n: number) => boolean} covers whether a box covers a node other than the caption's own
 * @returns {({x: number, y: number} | null)[]} the middle of each text's base line; `null` where there is no room
 */
export function placeCaptions(wanted, solid, covers) {
  /** @type {Box[]} */
  const taken = [...solid];
  return wanted.map(({ x, y, w, h, width, size, above, must, within }, n) => {
    const inside = within && x > within[0] && x < within[2] && y > within[1] && y < within[3];
    const [half, line] = [width / 2, size * 1.2];
    const below = [0, 1, 2].map((step) => [x, y + h + size + step * line]);
    const over = [0, 1, 2].map((step) => [x, y - h - 0.32 * size - step * line]);
    const beside = [1, -1].map((side) => [x + side * (w + half + 0.3 * size), y + 0.35 * size]);
    const [first, second] = above ? [over, below] : [below, over];
    const places = must ? [first[0], second[0], ...beside, ...first.slice(1), ...second.slice(1)] : [first[0]];
    const out = (box) =>
      inside && (box[0] < within[0] || box[2] > within[2] || box[1] < within[1] || box[3] > within[3]);
    for (const strict of must ? [true, false] : [true])
      for (const [cx, base] of places) {
        /** @type {Box} */
        const box = [cx - half - 1, base - 0.95 * size, cx + half + 1, base + 0.27 * size];
        if (out(box) || taken.some((other) => overlap(box, other)) || (strict && covers(box, n))) continue;
        taken.push(box);
        return { x: cx, y: base };
      }
    return null;
  });
}
