import { expect, it } from "vitest";
import { area, simplify } from "./simplification";

const SQUARE = [0, 0, 10, 0, 10, 10, 0, 10];

it("keeps corners, and leaves out those between two on a line", () => {
  const ring = [0, 0, 5, 0, 10, 0, 10, 10, 5, 10, 0, 10, 0, 3];
  expect(points(simplify(ring, 0))).toEqual(points(SQUARE));
  expect(points(simplify(SQUARE, 1))).toEqual(points(SQUARE));
});

it("leaves out corners that are near the line, and keeps others", () => {
  const ring = [0, 0, 5, 0.4, 10, 0, 10, 10, 5, 8, 0, 10];
  expect(points(simplify(ring, 0.5))).toEqual(points([0, 0, 10, 0, 10, 10, 5, 8, 0, 10]));
  expect(points(simplify(ring, 0.3))).toEqual(points(ring));
});

it("keeps a spike that is near the line of others, but not near them", () => {
  const ring = [0, 0, 50, 30, 30, 29.5, 100, 29.4, 150, 0, 75, -10];
  expect(points(simplify(ring, 1))).toEqual(points(ring));
  const reversed = [75, -10, 150, 0, 100, 29.4, 30, 29.5, 50, 30, 0, 0];
  expect(points(simplify(reversed, 1))).toEqual(points(ring));
});

it("does not change the area by more than a twentieth", () => {
  const dented = (depth: number) => [0, 0, 30, depth, 60, 0, 60, 1, 0, 1];
  expect(simplify(dented(0.05), 0.5)).toHaveLength(8);
  expect(points(simplify(dented(0.2), 0.5))).toEqual(points(dented(0.2)));
  expect(points(simplify(SQUARE, 50))).toEqual(points(SQUARE));
});

it("has the area inside, positive if clockwise as displayed", () => {
  expect(area(SQUARE)).toBe(100);
  expect(area([0, 0, 0, 10, 10, 10, 10, 0])).toBe(-100);
});

function points(ring: number[]): string[] {
  const corners = ring.flatMap((x, index) => (index % 2 === 0 ? [`${x} ${ring[index + 1]}`] : []));
  return corners.sort();
}
