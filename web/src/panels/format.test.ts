import { describe, expect, it } from "vitest";

import { count, formatMs, formatPart, formatScore, fromHex, toHex } from "./format";
import { formatTimeLeft, timeLeft } from "./time-left";

describe("formatting", () => {
  it("shows durations with two digits or more", () => {
    expect([0.04, 8.44, 9.96, 120.4, 999.6, 1250, 9996, 83_000].map(formatMs)).toEqual([
      "0.0 ms",
      "8.4 ms",
      "10 ms",
      "120 ms",
      "1.00 s",
      "1.25 s",
      "10.0 s",
      "83.0 s",
    ]);
  });

  it("shows small parts of an image as more than nothing", () => {
    expect([0, 0.0003, 0.012, 0.125, 1].map(formatPart)).toEqual([
      "0 %",
      "0.03 %",
      "1.2 %",
      "13 %",
      "100 %",
    ]);
  });

  it("shows scores with two digits, and numbers with their noun", () => {
    expect(formatScore(0.9)).toBe("0.90");
    expect([0, 1, 2].map((number) => count(number, "point"))).toEqual([
      "0 points",
      "1 point",
      "2 points",
    ]);
  });

  it("converts colours to those of the input and back", () => {
    expect(toHex([56, 9, 248])).toBe("#3809f8");
    expect(fromHex("#3809f8")).toEqual([56, 9, 248]);
  });
});

describe("time left", () => {
  it("is that of the rate since the start", () => {
    expect(timeLeft(25, 100, 3000)).toBe(9000);
    expect(timeLeft(100, 100, 3000)).toBe(0);
  });

  it("is not estimated from nothing", () => {
    expect(timeLeft(0, 100, 3000)).toBeNull();
    expect(timeLeft(0, 0, 3000)).toBeNull();
    expect(timeLeft(1, 100, 100)).toBeNull();
    expect(formatTimeLeft(null)).toBe("estimating the time left");
  });

  it("is shown in seconds, and minutes from one on", () => {
    expect([0, 900, 11_200, 59_900, 125_000].map(formatTimeLeft)).toEqual([
      "about 1 s left",
      "about 1 s left",
      "about 12 s left",
      "about 1 min 0 s left",
      "about 2 min 5 s left",
    ]);
  });
});
