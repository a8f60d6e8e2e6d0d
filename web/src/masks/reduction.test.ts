import { describe, expect, it } from "vitest";
import { fitted, reduce } from "./reduction";
import { areaOf, boundsOf, type Shape } from "./run-lengths";
import { drawn, fromPixels, pixelsOf, reducedPixels, various } from "./test-masks";

function ellipse(width: number, height: number): Shape {
  const pixels = Array.from({ length: width * height }, (_, index) => {
    const x = ((index % width) + 0.5) / width - 0.5;
    const y = (Math.floor(index / width) + 0.5) / height - 0.5;
    return Number(x * x + y * y < 0.16);
  });
  return fromPixels(pixels, { width, height });
}

describe("the fitted size", () => {
  it("has the image's aspect ratio and never grows", () => {
    expect(fitted({ width: 4000, height: 3000 }, 1024)).toEqual({ width: 1024, height: 768 });
    expect(fitted({ width: 300, height: 400 }, 1024)).toEqual({ width: 300, height: 400 });
    expect(fitted({ width: 5000, height: 1 }, 100)).toEqual({ width: 100, height: 1 });
  });
});

describe("a reduced mask", () => {
  it("of the same size has the same pixels", () => {
    for (const mask of various(3)) expect(reducedPixels(mask, mask.size)).toEqual(pixelsOf(mask));
  });

  it.each([2, 3, 3.7, 10])("of a smooth shape is the shape at pixel centres, by %d", (by) => {
    const mask = ellipse(211, 160);
    const size = { width: Math.round(211 / by), height: Math.round(160 / by) };
    const pixels = reducedPixels(mask, size);
    const original = pixelsOf(mask);
    let [both, either, missing] = [0, 0, 0];
    pixels.forEach((value, index) => {
      const x = Math.floor((((index % size.width) + 0.5) * 211) / size.width);
      const y = Math.floor(((Math.floor(index / size.width) + 0.5) * 160) / size.height);
      const expected = original[y * 211 + x] as number;
      both += value & expected;
      either += value | expected;
      missing += expected & ~value;
    });
    expect(missing).toBe(0);
    // The rest are columns at the ends, which have no column at a centre.
    expect(either - both).toBeLessThanOrEqual(2 * (size.height / 4));
    expect(both / either).toBeGreaterThan(0.95);
  });

  it("keeps a pixel of every thin part", () => {
    const size = { width: 100, height: 80 };
    for (let x = 0; x < size.width; x += 7) {
      const point = Array.from({ length: 8000 }, (_, index) => Number(index === 33 * 100 + x));
      expect(reduce(fromPixels(point, size), { width: 10, height: 8 })).toHaveLength(3);
      const line = Array.from({ length: 8000 }, (_, index) => Number(index % 100 === x));
      const reduced = reduce(fromPixels(line, size), { width: 10, height: 8 });
      expect([...reduced]).toEqual([Math.floor(x / 10), 0, 8]);
    }
    for (let y = 0; y < size.height; y += 7) {
      const line = Array.from({ length: 8000 }, (_, index) =>
        Number(Math.floor(index / 100) === y),
      );
      const pixels = reducedPixels(fromPixels(line, size), { width: 10, height: 8 });
      expect(pixels.reduce((sum, value) => sum + value, 0)).toBe(10);
    }
  });

  it("of noise stays within the size", () => {
    for (const mask of various(4)) {
      const to = { width: Math.ceil(mask.size.width / 3), height: Math.ceil(mask.size.height / 2) };
      const reduced = reduce(mask, to);
      expect(reduced.length > 0).toBe(areaOf(mask.runs) > 0);
      for (let at = 0; at < reduced.length; at += 3) {
        const [x = -1, top = -1, bottom = -1] = reduced.subarray(at, at + 3);
        expect(x >= 0 && x < to.width && top >= 0 && top < bottom && bottom <= to.height).toBe(
          true,
        );
      }
    }
  });

  it("of one pixel of the image is full or empty", () => {
    expect([...reducedPixels(drawn("..", ".#"), { width: 1, height: 1 })]).toEqual([1]);
    expect([...reducedPixels(drawn("..", ".."), { width: 1, height: 1 })]).toEqual([0]);
    expect(boundsOf(drawn(".#"))).toEqual({ x: 1, y: 0, width: 1, height: 1 });
  });
});
