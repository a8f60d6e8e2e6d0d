/**
 * Polygons around masks, from their runs, by the conventions of the API.
 *
 * The outline passes halfway between the centres of neighbouring pixels of which one is in the
 * mask, so the pixels whose centres are inside the polygons are those of the mask. Pixels that
 * touch at a corner belong to one part. Time and memory depend on the length of the outline.
 */

import type { Polygon, Ring } from "../types";
import { forEachInterval, type Shape } from "./run-lengths";
import { simplify } from "./simplification";

/** Corners of a ring: x and y in turn. */
export type Corners = number[];

/** A part of a mask: its exterior, clockwise as displayed, and holes, counterclockwise. */
export interface Part {
  readonly exterior: Corners;
  readonly holes: Corners[];
}

/**
 * Return polygons around a mask, one for each part.
 *
 * Corners are moved by at most *tolerance* pixels. Polygons that are not exact (tolerance 0) may
 * touch or cross each other within it.
 */
export function outline(shape: Shape, tolerance: number): Polygon[] {
  return trace(shape).map(({ exterior, holes }) => ({
    exterior: toRing(simplify(exterior, tolerance)),
    holes: holes.map((hole) => toRing(simplify(hole, tolerance))),
  }));
}

/** Return the exact outline of a mask, with a corner wherever the direction changes. */
export function trace(shape: Shape): Part[] {
  const edges = new Edges(shape);
  const parts: Part[] = [];
  /** The number of the part that each ring belongs to. */
  const partOf: number[] = [];
  // By columns, from the top: a ring is found at its first edge.
  edges.forEach((edge, x, y) => {
    if (edges.ring(edge) >= 0) return;
    const ring = partOf.length;
    if (edge % 2 === 0) {
      partOf.push(parts.length);
      parts.push({ exterior: follow(edges, ring, x, y, EAST), holes: [] });
      return;
    }
    // The pixels above a hole belong to its part, and the edge above them is known.
    const part = partOf[edges.ring(edge - 1)] as number;
    partOf.push(part);
    parts[part]?.holes.push(follow(edges, ring, x + 1, y, WEST));
  });
  return parts;
}

/** Directions in the order of right turns: east, south, west, north. */
const EAST = 0;
const WEST = 2;
const DX = [1, 0, -1, 0] as const;
const DY = [0, 1, 0, -1] as const;
/** The pixel ahead of a corner to the right of each direction, and to the left, from the corner. */
const RIGHT_X = [0, -1, -1, 0] as const;
const RIGHT_Y = [0, 0, -1, -1] as const;

/**
 * Walk along the edges of pixels with the mask on the right, from a corner back to it.
 *
 * Returns the centres of those edges where the direction changes before or after.
 */
function follow(edges: Edges, ring: number, startX: number, startY: number, start: number) {
  const corners: Corners = [];
  let [x, y, direction] = [startX, startY, start];
  let turned = true;
  do {
    edges.mark(ring, x, y, direction);
    const [dx, dy] = [DX[direction] as number, DY[direction] as number];
    const next = edges.turn(x + dx, y + dy, direction);
    if (turned || next !== direction) corners.push(x + dx / 2, y + dy / 2);
    turned = next !== direction;
    x += dx;
    y += dy;
    direction = next;
  } while (x !== startX || y !== startY || direction !== start);
  return corners;
}

/**
 * The horizontal edges of a mask: those above (even) and below (odd) the intervals of its columns.
 */
class Edges {
  /** Rows of the edges; column by column, ascending. */
  readonly #rows: Uint32Array;
  /** The first edge of each column from *left*, and the end. */
  readonly #first: Uint32Array;
  readonly #left: number;
  readonly #rings: Int32Array;

  constructor(shape: Shape) {
    const rows: number[] = [];
    const first: number[] = [];
    let left = 0;
    forEachInterval(shape, (x, top, bottom) => {
      if (first.length === 0) left = x;
      while (first.length <= x - left) first.push(rows.length);
      const start = first.at(-1) as number;
      // Runs of no pixels leave intervals that touch.
      if (rows.length > start && rows.at(-1) === top) rows[rows.length - 1] = bottom;
      else rows.push(top, bottom);
    });
    first.push(rows.length);
    this.#rows = Uint32Array.from(rows);
    this.#first = Uint32Array.from(first);
    this.#left = left;
    this.#rings = new Int32Array(rows.length).fill(-1);
  }

  /** Call *visit* with the number of each edge, its column and row. */
  forEach(visit: (edge: number, x: number, y: number) => void): void {
    for (let column = 0; column + 1 < this.#first.length; column++) {
      const end = this.#first[column + 1] as number;
      for (let edge = this.#first[column] as number; edge < end; edge++) {
        visit(edge, this.#left + column, this.#rows[edge] as number);
      }
    }
  }

  /** Return the ring that an edge belongs to, or -1. */
  ring(edge: number): number {
    return this.#rings[edge] as number;
  }

  /** Note the ring of an edge from a corner of pixels in a direction; only of horizontal ones. */
  mark(ring: number, x: number, y: number, direction: number): void {
    if (direction === EAST) this.#rings[this.#above(x, y)] = ring;
    // The interval above the edge ends there.
    else if (direction === WEST) this.#rings[this.#above(x - 1, y - 1) + 1] = ring;
  }

  /** Return the next direction at a corner. */
  turn(x: number, y: number, direction: number): number {
    const left = (direction + 3) % 4;
    // To the left first: pixels that touch at a corner are connected.
    if (this.#inside(x + (RIGHT_X[left] as number), y + (RIGHT_Y[left] as number))) return left;
    const ahead = this.#inside(
      x + (RIGHT_X[direction] as number),
      y + (RIGHT_Y[direction] as number),
    );
    return ahead ? direction : (direction + 1) % 4;
  }

  #inside(x: number, y: number): boolean {
    return this.#above(x, y) >= 0;
  }

  /** Return the edge above the interval that has a pixel; negative if none has it. */
  #above(x: number, y: number): number {
    const column = x - this.#left;
    if (column < 0 || column + 1 >= this.#first.length) return -1;
    let low = this.#first[column] as number;
    const start = low;
    let high = this.#first[column + 1] as number;
    // The number of edges of the column that are above the pixel.
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#rows[middle] as number) <= y) low = middle + 1;
      else high = middle;
    }
    return (low - start) % 2 === 1 ? low - 1 : -1;
  }
}

function toRing(corners: Corners): Ring {
  const ring: [number, number][] = [];
  for (let index = 0; index < corners.length; index += 2) {
    ring.push([corners[index] as number, corners[index + 1] as number]);
  }
  return ring;
}
