import { describe, expect, it } from "vitest";

import { checkBytes, checkSize, formatBytes } from "./limits";

const LIMITS = { maxImagePixels: 64_000_000, maxImageSide: 10_000, maxImageBytes: 20_000_000 };

describe("limits of images", () => {
  it("accepts what is at the limits", () => {
    checkBytes(20_000_000, LIMITS);
    checkSize({ width: 10_000, height: 6_400 }, LIMITS);
  });

  it("names the limit that a file exceeds", () => {
    expect(() => checkBytes(31_400_000, LIMITS)).toThrow("31 MB, the limit of the server is 20 MB");
    expect(() => checkBytes(0, LIMITS)).toThrow("empty");
  });

  it("names the limit that an image exceeds", () => {
    expect(() => checkSize({ width: 10_001, height: 1 }, LIMITS)).toThrow("10000 on a side");
    expect(() => checkSize({ width: 9_000, height: 9_000 }, LIMITS)).toThrow(
      "9000 × 9000 pixels (81 megapixels), the limit of the server is 64 megapixels",
    );
  });

  it("formats numbers of bytes", () => {
    expect([12, 2_340, 45_000, 3_210_000, 31_400_000].map(formatBytes)).toEqual([
      "12 bytes",
      "2.3 kB",
      "45 kB",
      "3.2 MB",
      "31 MB",
    ]);
  });
});
