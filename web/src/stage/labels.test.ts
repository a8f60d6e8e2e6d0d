import { expect, it } from "vitest";

import { labelAt } from "./labels";

const LABELS = { labels: Int16Array.of(0, 1, 2, -1, 4, 5), size: { width: 3, height: 2 } };
const IMAGE = { width: 300, height: 100 };

it("labelAt finds the mask in rows and columns of a smaller size", () => {
  expect(labelAt(LABELS, IMAGE, { x: 0, y: 0 })).toBe(0);
  expect(labelAt(LABELS, IMAGE, { x: 99.9, y: 49.9 })).toBe(0);
  expect(labelAt(LABELS, IMAGE, { x: 100, y: 0 })).toBe(1);
  expect(labelAt(LABELS, IMAGE, { x: 50, y: 50 })).toBe(-1);
});

it("labelAt counts the far edges to the last pixel", () => {
  expect(labelAt(LABELS, IMAGE, { x: 300, y: 100 })).toBe(5);
});
