import { expect, it } from "vitest";
import { cutAround, intersection, squareAround } from "./render";

const IMAGE = { width: 400, height: 300 };

it("shows a mask with a margin", () => {
  const shown = squareAround({ x: 100, y: 100, width: 50, height: 100 }, IMAGE);
  expect(shown).toEqual({ x: 60, y: 85, width: 130, height: 130 });
});

it("stays within the image", () => {
  const shown = squareAround({ x: 0, y: 250, width: 50, height: 50 }, IMAGE);
  expect(shown).toEqual({ x: 0, y: 235, width: 65, height: 65 });
});

it("shows the whole image for a large or empty mask, centred", () => {
  const whole = { x: 0, y: -50, width: 400, height: 400 };
  expect(squareAround({ x: 0, y: 0, width: 390, height: 300 }, IMAGE)).toEqual(whole);
  expect(squareAround(null, IMAGE)).toEqual(whole);
});

it("shows the surroundings of a pixel", () => {
  const shown = squareAround({ x: 200, y: 100, width: 1, height: 1 }, IMAGE);
  expect(shown).toEqual({ x: 188.5, y: 88.5, width: 24, height: 24 });
});

it("draws the part of the image that has the mask, its edge included, in whole pixels", () => {
  const scale = { x: 0.5, y: 0.5 };
  const size = { width: 200, height: 150 };
  const cut = cutAround({ x: 101, y: 50, width: 20, height: 10 }, scale, 3, size);
  expect(cut).toEqual({ x: 47, y: 22, width: 17, height: 11 });
});

it("draws nothing beyond the image, and at least a pixel", () => {
  const scale = { x: 1, y: 1 };
  const whole = cutAround({ x: 0, y: 0, ...IMAGE }, scale, 3, IMAGE);
  expect(whole).toEqual({ x: 0, y: 0, ...IMAGE });
  expect(cutAround(null, scale, 0, IMAGE)).toEqual({ x: 0, y: 0, width: 1, height: 1 });
});

it("intersects boxes", () => {
  const box = { x: 10, y: 20, width: 30, height: 40 };
  const overlapping = { x: 0, y: 50, width: 15, height: 100 };
  expect(intersection(box, overlapping)).toEqual({ x: 10, y: 50, width: 5, height: 10 });
  expect(intersection(box, { ...overlapping, x: 40 })).toBeNull();
});
