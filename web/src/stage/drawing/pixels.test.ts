import { describe, expect, it } from "vitest";

import { sourceRectangle } from "./pixels";

const BITMAP = { width: 2000, height: 1500 };
const WHOLE = { x: 0, y: 0, width: 4000, height: 3000 };
const ALL = { xMin: 0, yMin: 0, xMax: 4000, yMax: 3000 };

describe("sourceRectangle", () => {
  it("is the whole bitmap if all of it is visible", () => {
    expect(sourceRectangle(WHOLE, ALL, BITMAP)).toEqual([0, 0, 2000, 1500]);
  });

  it("is the visible part in whole pixels, with one more on each side for interpolation", () => {
    const visible = { xMin: 101, yMin: 201, xMax: 301, yMax: 401 };
    expect(sourceRectangle(WHOLE, visible, BITMAP)).toEqual([49, 99, 103, 103]);
  });

  it("is in pixels of a bitmap that covers a region only", () => {
    const region = { x: 1000, y: 2000, width: 100, height: 200 };
    const bitmap = { width: 50, height: 100 };
    expect(sourceRectangle(region, ALL, bitmap)).toEqual([0, 0, 50, 100]);
    const visible = { xMin: 1040, yMin: 0, xMax: 4000, yMax: 2020 };
    expect(sourceRectangle(region, visible, bitmap)).toEqual([19, 0, 31, 11]);
  });

  it("is null if the region is beyond the edge of the screen", () => {
    const visible = { xMin: 2000, yMin: 2000, xMax: 3000, yMax: 3000 };
    const region = { x: 0, y: 0, width: 100, height: 100 };
    expect(sourceRectangle(region, visible, BITMAP)).toBeNull();
  });
});
