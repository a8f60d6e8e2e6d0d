import { describe, expect, it } from "vitest";
import type { Polygon, Ring } from "../types";
import { outline, trace } from "./outline";
import { areaOf, type Shape } from "./run-lengths";
import { area } from "./simplification";
import { drawn, fromPixels, pixelsOf, various } from "./test-masks";

/** Return whether a point is inside a ring, by the edges to its left. */
function isInside(ring: Ring, x: number, y: number): boolean {
  let inside = false;
  ring.forEach(([x1, y1], index) => {
    const [x2, y2] = ring[(index + 1) % ring.length] as readonly [number, number];
    if (y1 > y !== y2 > y && x1 + ((y - y1) / (y2 - y1)) * (x2 - x1) < x) inside = !inside;
  });
  return inside;
}

/** Return the pixels whose centres are inside polygons, and not in their holes. */
function filled(polygons: readonly Polygon[], { size }: Shape): Uint8Array {
  return Uint8Array.from({ length: size.width * size.height }, (_, index) => {
    const x = (index % size.width) + 0.5;
    const y = Math.floor(index / size.width) + 0.5;
    const around = polygons.filter(
      ({ exterior, holes }) =>
        isInside(exterior, x, y) && !holes.some((hole) => isInside(hole, x, y)),
    );
    expect(around.length).toBeLessThanOrEqual(1);
    return around.length;
  });
}

describe("the exact outline", () => {
  it("encloses the centres of the mask's pixels", () => {
    for (const mask of [...various(5), ...various(6), ...various(7)]) {
      expect(filled(outline(mask, 0), mask)).toEqual(pixelsOf(mask));
    }
  });

  it("of a pixel is the square through the middles of its edges", () => {
    const [only] = outline(drawn("...", ".#."), 0);
    // Clockwise, from the bottom.
    const expected = [
      [1.5, 2],
      [1, 1.5],
      [1.5, 1],
      [2, 1.5],
    ];
    expect(only).toEqual({ exterior: expected, holes: [] });
  });

  it("has no corner on a line between two others", () => {
    const triangle = drawn(
      ...Array.from({ length: 40 }, (_, y) => "#".repeat(40 - y).padEnd(40, ".")),
    );
    for (const mask of [...various(10), triangle]) {
      for (const { exterior, holes } of outline(mask, 0)) {
        for (const ring of [exterior, ...holes]) {
          const corners = ring.map((_, index) => ring.at(index - 1) as Ring[number]);
          corners.forEach(([x, y], index) => {
            const [x1, y1] = corners.at(index - 1) as Ring[number];
            const [x2, y2] = corners.at(index + 1 - corners.length) as Ring[number];
            expect((x - x1) * (y2 - y) === (y - y1) * (x2 - x)).toBe(false);
          });
        }
      }
    }
  });

  it("of a full image has its border, without corners on a line", () => {
    const [only, ...others] = outline(drawn("####", "####", "####"), 0);
    expect(others).toEqual([]);
    expect(only?.exterior).toHaveLength(8);
    expect(only?.exterior).toContainEqual([0, 0.5]);
    expect(only?.exterior).toContainEqual([3.5, 3]);
  });

  it("of an empty mask has no polygons", () => {
    expect(outline(drawn("..", ".."), 1)).toEqual([]);
  });

  it("has holes in their part, and islands in holes as parts", () => {
    const mask = drawn(
      "#########.",
      "#.......#.",
      "#.#####.#.",
      "#.#.#.#.#.",
      "#.#####.##",
      "#.......#.",
      "#########.",
    );
    const found = outline(mask, 0);
    expect(found.map(({ holes }) => holes.length)).toEqual([1, 2]);
    expect(Math.min(...(found[1]?.exterior.map(([x]) => x) ?? []))).toBe(2);
  });

  it("joins pixels that touch at a corner, and separates holes that do", () => {
    expect(outline(drawn("#.", ".#"), 0)).toHaveLength(1);
    const [ring] = outline(drawn("####", "#.##", "##.#", "####"), 0);
    expect(ring?.holes).toHaveLength(2);
  });

  it("runs clockwise around parts, counterclockwise around holes", () => {
    for (const mask of various(8)) {
      for (const { exterior, holes } of trace(mask)) {
        expect(area(exterior)).toBeGreaterThan(0);
        for (const hole of holes) expect(area(hole)).toBeLessThan(0);
      }
    }
  });

  it("accepts runs of no pixels", () => {
    const split = { size: { width: 1, height: 6 }, runs: Uint32Array.of(1, 2, 0, 2, 1) };
    expect(outline(split, 0)).toEqual(outline(drawn(".", "#", "#", "#", "#", "."), 0));
  });
});

describe("a simplified outline", () => {
  const disc = fromPixels(
    Array.from({ length: 200 * 200 }, (_, index) => {
      const [x, y] = [(index % 200) - 99.5, Math.floor(index / 200) - 99.5];
      const radius = Math.hypot(x, y);
      return Number(radius < 90 && radius > 40);
    }),
    { width: 200, height: 200 },
  );

  it.each([0.5, 1, 3])("is at most %d pixels from the exact one", (tolerance) => {
    const [exact, simple] = [outline(disc, 0), outline(disc, tolerance)];
    expect(simple[0]?.holes).toHaveLength(1);
    const count = ({ exterior }: Polygon) => exterior.length;
    expect(count(simple[0] as Polygon)).toBeLessThan(count(exact[0] as Polygon) / 2);
    for (const [x, y] of exact[0]?.exterior ?? []) {
      expect(distance(simple[0]?.exterior ?? [], x, y)).toBeLessThanOrEqual(tolerance);
    }
  });

  it("keeps nearly all pixels", () => {
    const pixels = filled(outline(disc, 0.5), disc);
    const original = pixelsOf(disc);
    let different = 0;
    pixels.forEach((value, index) => {
      different += value ^ (original[index] as number);
    });
    expect(different / areaOf(disc.runs)).toBeLessThan(0.01);
  });

  it("keeps small and thin parts", () => {
    const mask = drawn("#.......", "..#####.", "........", "#......#", "#......#");
    const found = outline(mask, 5);
    expect(found).toHaveLength(4);
    for (const { exterior } of found) expect(exterior.length).toBeGreaterThanOrEqual(4);
    expect(filled(found, mask)).toEqual(pixelsOf(mask));
  });
});

/** Return the distance of a point from a ring. */
function distance(ring: Ring, x: number, y: number): number {
  const distances = ring.map(([x1, y1], index) => {
    const [x2, y2] = ring[(index + 1) % ring.length] as readonly [number, number];
    const squared = (x2 - x1) ** 2 + (y2 - y1) ** 2;
    const along = ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / squared;
    const part = Math.max(0, Math.min(1, along));
    return Math.hypot(x - x1 - part * (x2 - x1), y - y1 - part * (y2 - y1));
  });
  return Math.min(...distances);
}
