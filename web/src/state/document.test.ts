import { beforeEach, expect, test } from "vitest";

import type { Mask, Prompt } from "../types";
import * as document from "./document";

const CLICK: Prompt = { points: [{ x: 1, y: 2, foreground: true }] };
const TWO: Prompt = { points: [...CLICK.points, { x: 3, y: 4, foreground: false }] };

function mask(predictedIou: number): Mask {
  const bbox = { x: 0, y: 0, width: 1, height: 1 };
  const size = { width: 1, height: 1 };
  return {
    size,
    runs: new Uint32Array([0, 1]),
    area: 1,
    bbox,
    predictedIou,
    stabilityScore: 1,
    token: 1,
  };
}

beforeEach(() => document.reset());

test("the first prompt begins an object, the second belongs to it", () => {
  const id = document.setPrompt(CLICK);
  expect(document.setPrompt(TWO)).toBe(id);
  expect(document.objects.value.map(({ prompt }) => prompt)).toEqual([TWO]);
});

test("the answer with the highest predicted IoU is chosen", () => {
  const id = document.setPrompt(CLICK);
  document.setAnswers(id, CLICK, [mask(0.5), mask(0.9), mask(0.7)]);
  expect(document.activeObject.value?.chosen).toBe(1);
});

test("answers to an earlier prompt are ignored", () => {
  const id = document.setPrompt(CLICK);
  document.setPrompt(TWO);
  document.setAnswers(id, CLICK, [mask(0.5)]);
  expect(document.activeObject.value?.answers).toEqual([]);
});

test("until the server has answered, an object shows the answers to its earlier prompt", () => {
  const id = document.setPrompt(CLICK);
  document.setAnswers(id, CLICK, [mask(0.5)]);
  document.setPrompt(TWO);
  const { answers, answered, prompt } = document.objects.value[0] ?? {};
  expect(answers).toHaveLength(1);
  expect(answered).toBe(CLICK);
  expect(prompt).toBe(TWO);
});

test("undo and redo restore prompts, answers and names", () => {
  const id = document.setPrompt(CLICK);
  document.setAnswers(id, CLICK, [mask(0.5)]);
  document.rename(id, "coin");
  document.setPrompt(TWO);
  document.undo();
  expect(document.objects.value[0]).toMatchObject({ name: "coin", prompt: CLICK, answered: CLICK });
  document.undo();
  expect(document.objects.value[0]?.name).toBe("object 1");
  document.undo();
  expect(document.objects.value).toEqual([]);
  expect(document.canUndo.value).toBe(false);
  for (let step = 0; step < 3; step++) document.redo();
  expect(document.objects.value[0]).toMatchObject({ name: "coin", prompt: TWO });
  expect(document.canRedo.value).toBe(false);
});

test("a new step makes those that were undone unreachable", () => {
  document.setPrompt(CLICK);
  document.setPrompt(TWO);
  document.undo();
  document.setPrompt({ points: [] });
  expect(document.canRedo.value).toBe(false);
});

test("removing the active object lets the next click begin another", () => {
  const id = document.setPrompt(CLICK);
  document.remove(id);
  expect(document.activeObject.value).toBeNull();
  expect(document.setPrompt(CLICK)).not.toBe(id);
});

test("several objects are added in one step of the history", () => {
  document.addObjects(
    [mask(0.5), mask(0.6)].map((each) => ({ prompt: { points: [] }, answers: [each] })),
  );
  expect(document.objects.value).toHaveLength(2);
  expect(document.activeObject.value).toBeNull();
  document.undo();
  expect(document.objects.value).toEqual([]);
});

test("a prompt without points and box has no answers", () => {
  const id = document.setPrompt(CLICK);
  document.setAnswers(id, CLICK, [mask(0.5)]);
  document.setPrompt({ points: [] });
  expect(document.objects.value[0]?.answers).toEqual([]);
});

test("an answer that arrives later is also that of the states in the history", () => {
  const id = document.setPrompt(CLICK);
  document.activate(null);
  document.setPrompt(TWO);
  document.setAnswers(id, CLICK, [mask(0.5)]);
  document.undo();
  expect(document.objects.value.map(({ answers }) => answers.length)).toEqual([1]);
  document.redo();
  expect(document.objects.value.map(({ answers }) => answers.length)).toEqual([1, 0]);
});

test("an object without answers is not one that was answered", () => {
  document.setPrompt(CLICK);
  expect(document.objects.value[0]?.answered).toBeNull();
});

test("after an undo, the next object has the name and the colour of the one before", () => {
  document.setPrompt(CLICK);
  const { name, colour } = document.activeObject.value ?? {};
  document.undo();
  expect(document.nextColour()).toEqual(colour);
  document.setPrompt(TWO);
  expect(document.activeObject.value).toMatchObject({ name, colour });
});

test("names of new objects are not those of others", () => {
  const ids = [CLICK, TWO].map((prompt) => document.addObject(prompt, []));
  document.remove(ids[0] ?? 0);
  document.addObject(CLICK, []);
  expect(document.objects.value.map(({ name }) => name)).toEqual(["object 2", "object 3"]);
});

test("a prompt shows its object", () => {
  const id = document.setPrompt(CLICK);
  document.setVisible(id, false);
  document.setPrompt(TWO);
  expect(document.activeObject.value?.visible).toBe(true);
});
