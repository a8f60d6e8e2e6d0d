import { beforeEach, expect, test, vi } from "vitest";

import type { Mask, Prediction, PredictOptions, Prompt } from "../types";
import * as document from "./document";
import * as prompting from "./prompting";

interface Call {
  readonly prompt: Prompt;
  readonly signal: AbortSignal | undefined;
  readonly answer: (prediction: Prediction) => void;
}

const { calls } = vi.hoisted(() => ({ calls: [] as Call[] }));

vi.mock("./connection", () => ({ failed: vi.fn() }));
vi.mock("./image", () => ({ onChange: vi.fn() }));
vi.mock("./decoding", () => ({
  predict: (_: string, prompt: Prompt, { signal }: PredictOptions) =>
    new Promise<Prediction>((resolve, reject) => {
      calls.push({ prompt, signal, answer: resolve });
      signal?.addEventListener("abort", () => reject(signal.reason));
    }),
}));

const POINT = { x: 1, y: 2, foreground: true };
const MASK: Mask = {
  size: { width: 1, height: 1 },
  runs: new Uint32Array([0, 1]),
  area: 1,
  bbox: { x: 0, y: 0, width: 1, height: 1 },
  predictedIou: 0.5,
  stabilityScore: 1,
  token: 1,
};

async function answerAll(): Promise<void> {
  for (const { answer } of calls) answer({ masks: [MASK], steps: [] });
  await vi.waitFor(() => expect(prompting.waiting.value).toBe(false));
}

function answered(): number[] {
  return document.objects.value.map(({ answers }) => answers.length);
}

beforeEach(async () => {
  await answerAll();
  document.reset();
  calls.length = 0;
});

test("an object that is begun before the last one is answered does not end its call", async () => {
  prompting.addPoint(POINT);
  prompting.newObject();
  prompting.addPoint(POINT);
  expect(calls.map(({ signal }) => signal?.aborted)).toEqual([false, false]);
  await answerAll();
  expect(answered()).toEqual([1, 1]);
});

test("a further point ends the call for the earlier ones of its object", () => {
  prompting.addPoint(POINT);
  prompting.addPoint(POINT);
  expect(calls.map(({ signal }) => signal?.aborted)).toEqual([true, false]);
});

test("a click that was undone before its answer is requested again by a redo", async () => {
  prompting.addPoint(POINT);
  prompting.undoPrompt();
  expect(calls[0]?.signal?.aborted).toBe(true);
  expect(prompting.waiting.value).toBe(false);
  prompting.redoPrompt();
  expect(calls).toHaveLength(2);
  await answerAll();
  expect(answered()).toEqual([1]);
});

test("a step in the history does not end the calls of other objects", async () => {
  prompting.addPoint(POINT);
  prompting.newObject();
  prompting.addPoint(POINT);
  prompting.undoPrompt();
  expect(calls.map(({ signal }) => signal?.aborted)).toEqual([false, true]);
  await answerAll();
  expect(answered()).toEqual([1]);
});
