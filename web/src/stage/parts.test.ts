import { expect, it } from "vitest";

import { isSharp, padded } from "./parts";

const VISIBLE = { xMin: 100, yMin: 0, xMax: 300, yMax: 100 };

it("padded adds a quarter on each side, within the image", () => {
  const part = padded(VISIBLE, { width: 340, height: 200 });
  expect(part).toEqual({ x: 50, y: 0, width: 290, height: 125 });
});

it("a part stays sharp until the image is zoomed, or moved beyond it", () => {
  const part = { region: padded(VISIBLE, { width: 1000, height: 1000 }), scale: 5 };
  expect(isSharp(part, 5, VISIBLE)).toBe(true);
  expect(isSharp(part, 5, { ...VISIBLE, xMax: 350, yMax: 125 })).toBe(true);
  expect(isSharp(part, 5, { ...VISIBLE, xMin: 49 })).toBe(false);
  expect(isSharp(part, 5, { ...VISIBLE, yMax: 126 })).toBe(false);
  expect(isSharp(part, 5.1, VISIBLE)).toBe(false);
  expect(isSharp(null, 5, VISIBLE)).toBe(false);
});
