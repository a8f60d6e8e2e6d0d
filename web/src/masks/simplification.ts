/** Rings with fewer corners. */

import type { Corners } from "./outline";

/** Largest change of a ring's area, as a part of it. */
const MAX_CHANGE = 0.05;
const MAX_ATTEMPTS = 4;

/**
 * Return a closed ring with fewer of its corners; those left out are at most *tolerance* from it.
 *
 * Small and thin rings, which would vanish, are simplified less. Source: Douglas and Peucker 1973.
 */
export function simplify(ring: Corners, tolerance: number): Corners {
  const exact = area(ring);
  for (let attempt = 0; attempt < MAX_ATTEMPTS && tolerance > 0; attempt++) {
    const simplified = withTolerance(ring, tolerance / 2 ** attempt);
    if (Math.abs(area(simplified) - exact) <= MAX_CHANGE * Math.abs(exact)) return simplified;
  }
  return withTolerance(ring, 0);
}

/** Return the area inside a ring, positive if it is clockwise as displayed. */
export function area(ring: Corners): number {
  let twice = 0;
  const length = ring.length;
  for (let index = 0; index < length; index += 2) {
    const next = index + 2 < length ? index + 2 : 0;
    twice +=
      value(ring, index) * value(ring, next + 1) - value(ring, next) * value(ring, index + 1);
  }
  return twice / 2;
}

function withTolerance(corners: Corners, tolerance: number): Corners {
  // Corners that are farthest from another one are never between two on a line.
  const start = 2 * farthestFrom(corners, 0);
  const ring = [...corners.slice(start), ...corners.slice(0, start)];
  const count = ring.length / 2;
  const kept = new Uint8Array(count + 1);
  const opposite = farthestFrom(ring, 0);
  kept[0] = 1;
  kept[opposite] = 1;
  // Pairs of kept corners; corner *count* is the first again.
  const pairs = [0, opposite, opposite, count];
  while (pairs.length > 0) {
    const last = pairs.pop() as number;
    const first = pairs.pop() as number;
    const { index, distance } = farthestBetween(ring, first, last);
    if (distance <= tolerance * tolerance) continue;
    kept[index] = 1;
    pairs.push(first, index, index, last);
  }
  return ring.filter((_, index) => kept[index >> 1] === 1);
}

function farthestFrom(ring: Corners, from: number): number {
  let [found, largest] = [0, -1];
  for (let index = 0; index < ring.length / 2; index++) {
    const dx = value(ring, 2 * index) - value(ring, 2 * from);
    const dy = value(ring, 2 * index + 1) - value(ring, 2 * from + 1);
    if (dx * dx + dy * dy > largest) [found, largest] = [index, dx * dx + dy * dy];
  }
  return found;
}

/** Return the corner between two that is farthest from their line, and its distance squared. */
function farthestBetween(ring: Corners, first: number, last: number) {
  const end = (2 * last) % ring.length;
  const [x, y] = [value(ring, 2 * first), value(ring, 2 * first + 1)];
  const [dx, dy] = [value(ring, end) - x, value(ring, end + 1) - y];
  const squared = dx * dx + dy * dy;
  let [index, distance] = [first, 0];
  for (let corner = first + 1; corner < last; corner++) {
    const [px, py] = [value(ring, 2 * corner) - x, value(ring, 2 * corner + 1) - y];
    // The distance of the segment, not of the line: a ring may go back behind its ends.
    const along = px * dx + py * dy;
    let found = px * px + py * py;
    if (along > squared) found = (px - dx) ** 2 + (py - dy) ** 2;
    // Exactly 0 on the line.
    else if (along > 0) found = (px * dy - py * dx) ** 2 / squared;
    if (found > distance) [index, distance] = [corner, found];
  }
  return { index, distance };
}

function value(ring: Corners, index: number): number {
  return ring[index] as number;
}
