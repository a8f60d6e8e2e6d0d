import { describe, expect, it } from "vitest";
import type { Rgb } from "../types";
import { byRows, MaskSet, paint } from "./labels";
import { areaOf } from "./run-lengths";
import { drawn, fromPixels, pixelsOf, random } from "./test-masks";

const RED: Rgb = [255, 0, 0];
const BLUE: Rgb = [0, 0, 255];

describe("a set of masks", () => {
  const small = drawn(".....", ".##..", ".....");
  const large = drawn("####.", "####.", "####.");
  const apart = drawn("....#", ".....", ".....");

  it("labels pixels with the smallest mask, in any order of them", () => {
    const masks = new MaskSet([small, large, apart], 100);
    expect(rows(masks, [0, 1, 2])).toEqual(["11112", "1001.", "1111."].map(spread));
    const reversed = new MaskSet([apart, large, small], 100);
    expect(rows(reversed, [0, 1, 2])).toEqual(["11110", "1221.", "1111."].map(spread));
  });

  it("shows only those that are chosen; labels stay the same", () => {
    const masks = new MaskSet([small, large, apart], 100);
    expect(rows(masks, [2, 1])).toEqual(["11112", "1111.", "1111."].map(spread));
    expect(rows(masks, [0])).toEqual([".....", ".00..", "....."].map(spread));
    expect(rows(masks, [])).toEqual([".....", ".....", "....."].map(spread));
  });

  it("agrees with the pixels of many masks", () => {
    const next = random(9);
    const size = { width: 23, height: 19 };
    const shapes = Array.from({ length: 40 }, () => {
      const share = next();
      return fromPixels(
        Array.from({ length: 23 * 19 }, () => Number(next() < share)),
        size,
      );
    });
    const pixels = shapes.map(pixelsOf);
    const areas = shapes.map(({ runs }) => areaOf(runs));
    const labels = byRows(new MaskSet(shapes, 23).label(shapes.keys()), size);
    labels.forEach((label, index) => {
      const here = [...shapes.keys()].filter((each) => pixels[each]?.[index]);
      const smallest = Math.min(...here.map((each) => areas[each] as number));
      if (here.length === 0) expect(label).toBe(-1);
      else expect(here.includes(label) && areas[label] === smallest).toBe(true);
    });
  });

  it("is reduced to the longer side", () => {
    const masks = new MaskSet([large], 2);
    expect(masks.size).toEqual({ width: 2, height: 1 });
  });

  it("has masks of one size", () => {
    expect(() => new MaskSet([small, drawn("#")], 10)).toThrow("different sizes");
    expect(new MaskSet([], 10).label([])).toHaveLength(1);
  });

  function rows(masks: MaskSet, shown: number[]) {
    const { width, height } = masks.size;
    const labels = [...byRows(masks.label(shown), masks.size)];
    return Array.from({ length: height }, (_, y) => labels.slice(y * width, (y + 1) * width));
  }

  function spread(row: string) {
    return [...row].map((character) => (character === "." ? -1 : Number(character)));
  }
});

describe("painted labels", () => {
  const labels = Int16Array.from([
    ...[0, 0, 0, -1],
    ...[0, 0, 0, -1],
    ...[0, 0, 1, -1],
    ...[0, 0, 0, -1],
  ]);
  const size = { width: 4, height: 4 };

  it("have the colour inside, opaque edges, and nothing outside", () => {
    const pixels = paint(labels, size, [RED, BLUE], 0.4);
    const at = (x: number, y: number) => [...pixels.subarray(4 * (4 * y + x), 4 * (4 * y + x) + 4)];
    expect(at(0, 0)).toEqual([255, 0, 0, 102]);
    expect(at(2, 0)).toEqual([255, 0, 0, 255]);
    expect(at(1, 2)).toEqual([255, 0, 0, 255]);
    expect(at(2, 2)).toEqual([0, 0, 255, 255]);
    expect(at(3, 2)).toEqual([0, 0, 0, 0]);
  });

  it("have no edge at the border of the image", () => {
    const whole = paint(new Int16Array(6), { width: 3, height: 2 }, [RED], 0.4);
    expect([...whole].filter((_, index) => index % 4 === 3)).toEqual(Array(6).fill(102));
  });
});
