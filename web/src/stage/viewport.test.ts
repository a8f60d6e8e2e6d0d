import { describe, expect, it } from "vitest";

import {
  boxBetween,
  canvasRatio,
  clamp,
  fitted,
  isInside,
  MARGIN,
  pan,
  resize,
  reveal,
  toImage,
  toScreen,
  visiblePart,
  zoomAt,
} from "./viewport";

const IMAGE = { width: 4000, height: 3000 };
const CONTAINER = { width: 832, height: 632 };

describe("fitted", () => {
  it("shows the whole image with a margin, centred", () => {
    const viewport = fitted(IMAGE, CONTAINER);
    expect(viewport).toEqual({ x: MARGIN, y: MARGIN, scale: 0.2 });
  });

  it("centres an image whose shape differs from the container's", () => {
    const { x, y, scale } = fitted({ width: 400, height: 100 }, CONTAINER);
    expect(scale).toBe(2);
    expect({ x, y }).toEqual({ x: MARGIN, y: (632 - 200) / 2 });
  });

  it("magnifies a tiny image by a limited factor", () => {
    expect(fitted({ width: 4, height: 4 }, CONTAINER).scale).toBe(8);
  });

  it("returns finite numbers for a container without a size", () => {
    const { x, y, scale } = fitted(IMAGE, { width: 0, height: 0 });
    expect([x, y, scale].every(Number.isFinite)).toBe(true);
    expect(scale).toBeGreaterThan(0);
  });
});

describe("screen and image", () => {
  it("are inverse to one another", () => {
    const viewport = { x: -31, y: 12.5, scale: 3.25 };
    const position = { x: 17.5, y: 99.25 };
    expect(toImage(viewport, toScreen(viewport, position))).toEqual(position);
  });

  it("have the centre of the first pixel at half a pixel", () => {
    expect(toScreen({ x: 10, y: 20, scale: 8 }, { x: 0.5, y: 0.5 })).toEqual({ x: 14, y: 24 });
  });
});

describe("zoomAt", () => {
  it("keeps what is under the pointer there", () => {
    const at = { x: 300, y: 250 };
    const before = fitted(IMAGE, CONTAINER);
    const after = zoomAt(before, 4, at, IMAGE, CONTAINER);
    expect(after.scale).toBeCloseTo(0.8);
    expect(toImage(after, at).x).toBeCloseTo(toImage(before, at).x);
    expect(toImage(after, at).y).toBeCloseTo(toImage(before, at).y);
  });

  it("returns to the fitted image, and not further", () => {
    const whole = fitted(IMAGE, CONTAINER);
    const near = zoomAt(whole, 10, { x: 100, y: 100 }, IMAGE, CONTAINER);
    expect(zoomAt(near, 0.01, { x: 700, y: 20 }, IMAGE, CONTAINER)).toEqual(whole);
  });

  it("has a largest scale", () => {
    const viewport = zoomAt(fitted(IMAGE, CONTAINER), 1e6, { x: 9, y: 9 }, IMAGE, CONTAINER);
    expect(viewport.scale).toBe(32);
  });
});

describe("pan", () => {
  it("does not move an image that is shown as a whole", () => {
    const whole = fitted(IMAGE, CONTAINER);
    expect(pan(whole, { x: 50, y: -80 }, IMAGE, CONTAINER)).toEqual(whole);
  });

  it("stops where an edge of the image is a margin inside the container", () => {
    const zoomed = clamp({ x: -100, y: -100, scale: 1 }, IMAGE, CONTAINER);
    const corner = pan(zoomed, { x: 1e5, y: -1e5 }, IMAGE, CONTAINER);
    expect(corner.x).toBe(MARGIN);
    expect(corner.y).toBe(CONTAINER.height - MARGIN - IMAGE.height);
  });
});

describe("reveal", () => {
  const zoomed = { x: -500, y: -500, scale: 1 };

  it("does not move the image for a position that is visible", () => {
    expect(reveal(zoomed, { x: 900, y: 800 }, IMAGE, CONTAINER)).toBe(zoomed);
  });

  it("brings a position beyond the edge just inside", () => {
    const viewport = reveal(zoomed, { x: 2000, y: 100 }, IMAGE, CONTAINER);
    const { x, y } = toScreen(viewport, { x: 2000, y: 100 });
    expect({ x, y }).toEqual({ x: CONTAINER.width - MARGIN, y: MARGIN });
  });
});

describe("resize", () => {
  it("keeps the centre", () => {
    const before = { x: -1000, y: -900, scale: 1 };
    const larger = { width: 1032, height: 732 };
    const after = resize(before, IMAGE, CONTAINER, larger);
    const was = toImage(before, { x: CONTAINER.width / 2, y: CONTAINER.height / 2 });
    expect(toImage(after, { x: larger.width / 2, y: larger.height / 2 })).toEqual(was);
  });

  it("does not show less than the fitted image would", () => {
    const larger = { width: 2032, height: 1532 };
    const after = resize(fitted(IMAGE, CONTAINER), IMAGE, CONTAINER, larger);
    expect(after.scale).toBeCloseTo(0.5);
  });
});

describe("boxBetween", () => {
  it("orders corners of a drag in any direction", () => {
    const box = { xMin: 10, yMin: 20, xMax: 30, yMax: 40 };
    expect(boxBetween({ x: 30, y: 20 }, { x: 10, y: 40 }, IMAGE)).toEqual(box);
    expect(boxBetween({ x: 30, y: 40 }, { x: 10, y: 20 }, IMAGE)).toEqual(box);
  });

  it("leaves out what is outside the image", () => {
    const box = boxBetween({ x: -5, y: 2990 }, { x: 4200, y: 3100 }, IMAGE);
    expect(box).toEqual({ xMin: 0, yMin: 2990, xMax: 4000, yMax: 3000 });
  });
});

it("visiblePart is the part of the image in the container", () => {
  const part = visiblePart({ x: -100, y: 16, scale: 2 }, IMAGE, CONTAINER);
  expect(part).toEqual({ xMin: 50, yMin: 0, xMax: 466, yMax: 308 });
});

it("isInside includes the edges of the image, and nothing beyond", () => {
  expect(isInside({ x: 0, y: 3000 }, IMAGE)).toBe(true);
  expect(isInside({ x: -0.01, y: 5 }, IMAGE)).toBe(false);
  expect(isInside({ x: 5, y: 3000.01 }, IMAGE)).toBe(false);
});

it("canvasRatio is that of the screen, less for very many pixels", () => {
  expect(canvasRatio(CONTAINER, 2)).toBe(2);
  const huge = { width: 3840, height: 2160 };
  expect(canvasRatio(huge, 2)).toBe(1);
});
