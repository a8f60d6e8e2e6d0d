import { describe, expect, it } from "vitest";

import { shownSteps } from "./steps";

const STEPS = [
  { name: "decode_image", ms: 5 },
  { name: "admit", ms: 0.04 },
  { name: "hash", ms: 0.02 },
];

describe("shownSteps", () => {
  it("adds up short steps, and shows what the steps of the server do not contain", () => {
    const steps = shownSteps({ action: "Encode", place: "server", ms: 8.06, steps: STEPS });
    expect(steps.map(({ name }) => name)).toEqual([
      "decode image",
      "2 below 0.1 ms",
      "network and page",
    ]);
    expect(steps.map(({ ms }) => ms)).toEqual([5, expect.closeTo(0.06), expect.closeTo(3)]);
  });

  it("shows no rest if there is none", () => {
    const steps = shownSteps({ action: "Click", place: "browser", ms: 5.07, steps: STEPS });
    expect(steps.map(({ name }) => name)).toEqual(["decode image", "2 below 0.1 ms"]);
  });

  it("shows nothing of an action without steps", () => {
    expect(shownSteps({ action: "Download", place: "browser", ms: 5, steps: [] })).toEqual([]);
  });
});
