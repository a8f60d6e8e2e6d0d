import { expect, it } from "vitest";
import { addOutline, type Path } from "./paths";
import { drawn, fromPixels } from "./test-masks";

/** Notes the calls, and points on the curves. */
class Recorder implements Path {
  readonly calls: string[] = [];
  readonly points: [number, number][] = [];

  moveTo(x: number, y: number) {
    this.calls.push("move");
    this.points.push([x, y]);
  }

  lineTo(x: number, y: number) {
    this.calls.push("line");
    this.points.push([x, y]);
  }

  bezierCurveTo(x1: number, y1: number, x2: number, y2: number, x: number, y: number) {
    this.calls.push("curve");
    const [fromX, fromY] = this.points.at(-1) as [number, number];
    for (const t of [0.25, 0.5, 0.75, 1]) {
      const [a, b, c, d] = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
      const at = (p: number, q: number, r: number, s: number) => a * p + b * q + c * r + d * s;
      this.points.push([at(fromX, x1, x2, x), at(fromY, y1, y2, y)]);
    }
  }

  closePath() {
    this.calls.push("close");
  }
}

function record(...args: [Parameters<typeof addOutline>[1], number, boolean?]) {
  const path = new Recorder();
  addOutline(path, ...args);
  return path;
}

const DISC = fromPixels(
  Array.from({ length: 60 * 60 }, (_, index) =>
    Number(Math.hypot((index % 60) - 29.5, Math.floor(index / 60) - 29.5) < 25),
  ),
  { width: 60, height: 60 },
);

it("closes each ring before the next begins", () => {
  const { calls, points } = record(drawn("###.", "#.#.", "###.", "...#"), 1);
  expect(
    calls
      .join(" ")
      .split(" close")
      .map((ring) => ring.trim().split(" ")[0]),
  ).toEqual(["move", "move", ""]);
  expect(points).toContainEqual([2, 1.5]);
});

it("curves outlines that are enlarged, through their corners", () => {
  const { calls, points } = record(DISC, 4);
  expect(calls).toContain("curve");
  const radii = points.map(([x, y]) => Math.hypot(x - 30, y - 30));
  expect(Math.min(...radii)).toBeGreaterThan(24.2);
  expect(Math.max(...radii)).toBeLessThan(25.8);
});

it("draws lines where they are not enlarged, or it is faster", () => {
  expect(record(DISC, 1).calls).not.toContain("curve");
  expect(record(DISC, 4, true).calls).not.toContain("curve");
  expect(record(DISC, 0.1).calls.length).toBeLessThan(record(DISC, 1).calls.length);
});

it("keeps the corners of a square", () => {
  const square = drawn(...Array.from({ length: 20 }, () => "#".repeat(20)));
  const { points } = record(square, 4);
  const corner = Math.min(...points.map(([x, y]) => Math.hypot(x, y)));
  expect(corner).toBeLessThan(0.8);
  for (const [x, y] of points) expect(x >= 0 && y >= 0 && x <= 20 && y <= 20).toBe(true);
});

it("adds nothing for an empty mask", () => {
  expect(record(drawn("..", ".."), 4).calls).toEqual([]);
});
