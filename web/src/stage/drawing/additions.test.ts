import { expect, it } from "vitest";

import { additions } from "./additions";

it("additions is what was appended", () => {
  expect(additions([1, 2], [1, 2, 3, 4])).toEqual([3, 4]);
  expect(additions([1, 2], [1, 2])).toEqual([]);
  expect(additions([], [1])).toEqual([1]);
});

it("additions is null if anything was replaced, moved, or removed", () => {
  expect(additions([1, 2], [1, 3])).toBeNull();
  expect(additions([1, 2], [2, 1])).toBeNull();
  expect(additions([1, 2], [1])).toBeNull();
});
