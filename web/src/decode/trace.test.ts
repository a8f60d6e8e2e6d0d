import { describe, expect, it } from "vitest";
import { trace } from "./trace";
import { type Upsampling, upsamplingBetween } from "./upsampling";

const SIDE = 16;

/** Return every pixel of the image, row by row, with a loop over all weights. */
function pixelsOf(logits: Float32Array, { image, rows, columns, side }: Upsampling): number[] {
  const pixels: number[] = [];
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++) {
      let sum = 0;
      for (let row = 0; row < 3; row++) {
        for (let column = 0; column < 3; column++) {
          const at = ((rows.first[y] ?? 0) + row) * side + (columns.first[x] ?? 0) + column;
          const weight = (rows.weights[row]?.[y] ?? 0) * (columns.weights[column]?.[x] ?? 0);
          sum += weight * (logits[at] ?? 0);
        }
      }
      pixels.push(sum);
    }
  }
  return pixels;
}

function disc(x: number, y: number, radius: number): Float32Array {
  return Float32Array.from({ length: SIDE ** 2 }, (_, index) => {
    const distance = Math.hypot((index % SIDE) - x, Math.floor(index / SIDE) - y);
    return 1.37 * (radius - distance);
  });
}

function runsOf(pixels: readonly boolean[], width: number, height: number): number[] {
  const runs = [0];
  let isInside = false;
  for (let position = 0; position < width * height; position++) {
    const row = position % height;
    if (pixels[row * width + Math.floor(position / height)] !== isInside) {
      isInside = !isInside;
      runs.push(0);
    }
    runs[runs.length - 1] = (runs.at(-1) ?? 0) + 1;
  }
  return runs;
}

describe("trace", () => {
  for (const [width, height] of [
    [60, 40],
    [31, 97],
    [5, 3],
    [1, 1],
  ] as const) {
    it(`finds the pixels of an image of ${width} x ${height}`, () => {
      const image = { width, height };
      const scale = 64 / Math.max(width, height);
      const resized = { width: Math.ceil(width * scale), height: Math.ceil(height * scale) };
      const upsampling = upsamplingBetween(resized, image, 64, SIDE);
      const logits = disc(5.3, 4.1, 4);
      const pixels = pixelsOf(logits, upsampling);
      const found = trace(logits, upsampling, { level: 0, offset: 1 });

      const inside = pixels.map((each) => each > 0);
      expect(Array.from(found.runs)).toEqual(runsOf(inside, width, height));
      expect(found.area).toBe(inside.filter(Boolean).length);
      const count = (level: number) => pixels.filter((each) => each > level).length;
      expect(found.stability).toBeCloseTo(count(-1) ? count(1) / count(-1) : 0, 10);
    });
  }

  it("has a box of the extreme pixels, as the server's", () => {
    const image = { width: SIDE, height: SIDE };
    const upsampling = upsamplingBetween(image, image, SIDE, SIDE);
    const logits = new Float32Array(SIDE ** 2).fill(-1);
    for (const [x, y] of [
      [3, 4],
      [7, 4],
      [5, 9],
    ] as const) {
      logits[y * SIDE + x] = 1;
    }
    const found = trace(logits, upsampling, { level: 0, offset: 0 });
    expect(found.bbox).toEqual({ x: 3, y: 4, width: 4, height: 5 });
    expect(found.area).toBe(3);
  });

  it("has one run for a full and for an empty mask", () => {
    const image = { width: 20, height: 30 };
    const upsampling = upsamplingBetween({ width: SIDE, height: SIDE }, image, SIDE, SIDE);
    const of = (value: number) =>
      trace(new Float32Array(SIDE ** 2).fill(value), upsampling, { level: 0, offset: 1 });
    expect(Array.from(of(-5).runs)).toEqual([600]);
    expect(of(-5)).toMatchObject({ area: 0, stability: 0, bbox: { x: 0, y: 0 } });
    expect(Array.from(of(5).runs)).toEqual([0, 600]);
    expect(of(5)).toMatchObject({ area: 600, stability: 1, bbox: { width: 19, height: 29 } });
  });
});

describe("upsamplingBetween", () => {
  it("has weights that sum to 1, of logits inside the frame", () => {
    const image = { width: 4000, height: 3000 };
    const { rows, columns } = upsamplingBetween({ width: 1024, height: 768 }, image, 1024, 256);
    for (const { first, weights } of [columns, rows]) {
      for (let index = 0; index < first.length; index++) {
        const sum = weights.reduce((total, each) => total + (each[index] ?? 0), 0);
        expect(sum).toBeCloseTo(1, 6);
      }
      expect(first[0]).toBe(0);
      expect(first.at(-1)).toBeLessThanOrEqual(253);
    }
  });
});
