import { signal } from "@preact/signals";
import { afterEach, beforeEach, expect, it, vi } from "vitest";

import { drawOnChange } from "./frames";

let waiting = new Map<number, FrameRequestCallback>();
let requests = 0;

beforeEach(() => {
  waiting = new Map();
  vi.stubGlobal("requestAnimationFrame", (callback: FrameRequestCallback) => {
    waiting.set(++requests, callback);
    return requests;
  });
  vi.stubGlobal("cancelAnimationFrame", (id: number) => waiting.delete(id));
});

afterEach(() => {
  vi.unstubAllGlobals();
});

function nextFrame(): void {
  const callbacks = [...waiting.values()];
  waiting.clear();
  for (const callback of callbacks) callback(0);
}

it("draws once per frame, however many changes there are", () => {
  const x = signal(0);
  const drawn: number[] = [];
  drawOnChange(() => drawn.push(x.value));
  expect(drawn).toEqual([]);
  nextFrame();
  x.value = 1;
  x.value = 2;
  expect(waiting.size).toBe(1);
  nextFrame();
  expect(drawn).toEqual([0, 2]);
});

it("draws nothing while nothing changes, or what changes was not read", () => {
  const [isShown, x] = [signal(true), signal(0)];
  let count = 0;
  drawOnChange(() => {
    count++;
    if (isShown.value) x.value;
  });
  nextFrame();
  isShown.value = false;
  nextFrame();
  x.value = 5;
  nextFrame();
  expect(count).toBe(2);
});

it("draws no more after its end", () => {
  const x = signal(0);
  let count = 0;
  const end = drawOnChange(() => {
    count += 1 + 0 * x.value;
  });
  nextFrame();
  x.value = 1;
  end();
  nextFrame();
  x.value = 2;
  nextFrame();
  expect(count).toBe(1);
});
