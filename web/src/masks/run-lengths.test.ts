import { describe, expect, it } from "vitest";
import {
  areaOf,
  boundsOf,
  checkRuns,
  contains,
  decodeCounts,
  encodeCounts,
  encodeRuns,
  type Shape,
} from "./run-lengths";
import { drawn, pixelsOf, random, various } from "./test-masks";

const MASKS = various(1);

describe("compressed run lengths", () => {
  it.each([
    ["\\1264N0O2O01N102L^2", [44, 2, 6, 6, 4, 6, 3, 8, 2, 8, 3, 6, 4, 6, 6, 2, 84]],
    ["0Xo0hm2mPOh]Q2M", [0, 1000, 3000, 5, 70000, 2]],
  ])("are read and written as pycocotools does: %j", (counts, runs) => {
    expect([...decodeCounts(counts)]).toEqual(runs);
    expect(encodeCounts(Uint32Array.from(runs))).toBe(counts);
  });

  it("return to the same runs", () => {
    for (const { runs } of MASKS) {
      expect([...decodeCounts(encodeCounts(runs))]).toEqual([...runs]);
    }
  });

  it("hold runs and differences up to 2^31 - 1", () => {
    const next = random(2);
    const most = 2 ** 31 - 1;
    const lengths = [
      most,
      0,
      most,
      most,
      0,
      ...Array.from({ length: 200 }, () => next() ** 8 * most),
    ];
    const runs = Uint32Array.from(lengths);
    expect([...decodeCounts(encodeCounts(runs))]).toEqual([...runs]);
  });

  it.each([
    ["4/", "invalid character"],
    ["4p", "invalid character"],
    ["4é", "invalid character"],
    ["4P", "ends within a run"],
    [`${"o".repeat(7)}0`, "too long"],
    ["N", "out of range"],
    ["ooooooO", "out of range"],
  ])("of %j are rejected", (counts, message) => {
    expect(() => decodeCounts(counts)).toThrow(message);
  });

  it("are rejected if they do not sum to the size", () => {
    const size = { width: 2, height: 3 };
    expect([...decodeCounts("33", size)]).toEqual([3, 3]);
    expect(() => decodeCounts("34", size)).toThrow("sum to 7 pixels, 2 x 3 has 6");
    expect(() => decodeCounts("", size)).toThrow("sum to 0 pixels");
    expect(() => checkRuns({ size: { width: 0, height: 3 }, runs: new Uint32Array() })).toThrow(
      "size 0 x 3",
    );
  });
});

describe("runs of pixels", () => {
  it("return to the same pixels", () => {
    for (const mask of MASKS) {
      const pixels = pixelsOf(mask);
      expect([...encodeRuns(pixels, mask.size)]).toEqual([...mask.runs]);
      checkRuns(mask);
    }
  });

  it("go down the columns, starting outside", () => {
    expect([...drawn("#.", "#.", ".#").runs]).toEqual([0, 2, 3, 1]);
  });
});

describe("area, bounds and hit test", () => {
  it("agree with the pixels", () => {
    for (const mask of MASKS) {
      const pixels = pixelsOf(mask);
      expect(areaOf(mask.runs)).toBe(pixels.reduce((sum, value) => sum + value, 0));
      expect(boundsOf(mask)).toEqual(slowBounds(mask));
      for (let y = 0; y < mask.size.height; y++) {
        for (let x = 0; x < mask.size.width; x++) {
          const inside = pixels[y * mask.size.width + x] === 1;
          expect(contains(mask, x, y)).toBe(inside);
          expect(contains(mask, x + 0.99, y + 0.5)).toBe(inside);
        }
      }
    }
  });

  it("have nothing outside the image", () => {
    const full = drawn("##", "##");
    for (const [x, y] of [
      [-0.01, 1],
      [2, 1],
      [1, 2],
      [1, -1],
      [Number.NaN, 1],
    ] as const) {
      expect(contains(full, x, y)).toBe(false);
    }
  });

  it("accept runs of no pixels", () => {
    const mask = { size: { width: 2, height: 3 }, runs: Uint32Array.of(1, 1, 0, 1, 0, 0, 3, 0) };
    expect(boundsOf(mask)).toEqual({ x: 0, y: 1, width: 1, height: 2 });
    expect(areaOf(mask.runs)).toBe(2);
    expect(contains(mask, 0, 2)).toBe(true);
    expect(boundsOf(drawn("..", ".."))).toBeNull();
  });
});

function slowBounds(mask: Shape) {
  const inside = [...pixelsOf(mask)].flatMap((value, index) => (value ? [index] : []));
  if (inside.length === 0) return null;
  const xs = inside.map((index) => index % mask.size.width);
  const ys = inside.map((index) => Math.floor(index / mask.size.width));
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x, y, width: Math.max(...xs) - x + 1, height: Math.max(...ys) - y + 1 };
}
