import { signal } from "@preact/signals";

import { isAbort } from "../api/errors";
import type { Box, Mask, Point, Prompt, Tool } from "../types";
import { failed } from "./connection";
import { predict } from "./decoding";
import {
  activate,
  activeObject,
  canRedo,
  canUndo,
  isEmpty,
  maskOf,
  objects,
  redo,
  setAnswers,
  setPrompt,
  undo,
} from "./document";
import { onChange } from "./image";

export const tool = signal<Tool>("foreground");

/** The mask that a click under the pointer would give. */
export const preview = signal<Mask | null>(null);

/** Whether an answer to a click is awaited. */
export const waiting = signal(false);

const NOTHING: Prompt = { points: [] };
// Between the starts of two calls for previews: a pointer moves 100 times a second.
const PREVIEW_INTERVAL_MS = 50;

interface Asked {
  readonly prompt: Prompt;
  readonly call: AbortController;
}

// By the ids of the objects: another object may be begun before the answer for the last one.
const asked = new Map<number, Asked>();
let previewing = new AbortController();
let previewTimer = 0;
let lastPreview = 0;

onChange(() => {
  for (const id of asked.keys()) stopAsking(id);
  endPreview();
});

/** Add a point to the active object, or begin an object with it. */
export function addPoint(point: Point): void {
  ask(withPoint(point));
}

/** Set the box of the active object, or begin an object with it. */
export function setBox(box: Box): void {
  ask({ points: activeObject.value?.prompt.points ?? [], box });
}

/** Remove the points and the box of the active object. */
export function clearPrompts(): void {
  if (!activeObject.value) return;
  stopAsking(activeObject.value.id);
  setPrompt(NOTHING);
}

/** Let the next click begin another object. */
export function newObject(): void {
  activate(null);
  endPreview();
}

export function undoPrompt(): void {
  if (!canUndo.value) return;
  undo();
  askAgain();
}

export function redoPrompt(): void {
  if (!canRedo.value) return;
  redo();
  askAgain();
}

/** Show the mask of a click at a point, in pixels of the image; newer calls end older ones. */
export function previewAt(x: number, y: number, foreground = true): void {
  previewing.abort();
  clearTimeout(previewTimer);
  // A click is being answered, which matters more.
  if (waiting.value) return;
  const delay = Math.max(0, lastPreview + PREVIEW_INTERVAL_MS - performance.now());
  previewTimer = window.setTimeout(() => void showPreview({ x, y, foreground }), delay);
}

/** Show no preview, and end the call for one. */
export function endPreview(): void {
  clearTimeout(previewTimer);
  previewing.abort();
  preview.value = null;
}

async function showPreview(point: Point): Promise<void> {
  lastPreview = performance.now();
  const current = new AbortController();
  previewing = current;
  try {
    const { masks } = await predict("Preview", withPoint(point), {
      multimask: "AUTO",
      logits: false,
      signal: current.signal,
    });
    if (!current.signal.aborted) preview.value = masks[0] ?? null;
  } catch (error) {
    if (current.signal.aborted || isAbort(error)) return;
    preview.value = null;
    failed("The preview failed", error);
  }
}

/** The prompt of the active object and one more point; it refines the answer that was chosen. */
function withPoint(point: Point): Prompt {
  const active = activeObject.value;
  const prompt = active?.prompt ?? NOTHING;
  const logits = active && maskOf(active)?.logits;
  return {
    points: [...prompt.points, point],
    ...(prompt.box && { box: prompt.box }),
    ...(logits && { logits }),
  };
}

function ask(prompt: Prompt): void {
  endPreview();
  void answer(setPrompt(prompt), prompt);
}

/** Ask for the prompts to which no answers are known, after a step in the history. */
function askAgain(): void {
  endPreview();
  const present = new Map(objects.value.map((object) => [object.id, object]));
  for (const [id, { prompt }] of asked) if (present.get(id)?.prompt !== prompt) stopAsking(id);
  for (const { id, prompt, answered } of present.values()) {
    if (answered !== prompt && !isEmpty(prompt) && !asked.has(id)) void answer(id, prompt);
  }
}

function stopAsking(id: number): void {
  asked.get(id)?.call.abort();
  asked.delete(id);
  waiting.value = asked.size > 0;
}

async function answer(id: number, prompt: Prompt): Promise<void> {
  stopAsking(id);
  const call = new AbortController();
  asked.set(id, { prompt, call });
  waiting.value = true;
  // One point is ambiguous: the part, the whole, or a part of the part.
  const isAmbiguous = prompt.points.length === 1 && !prompt.box;
  try {
    const { masks } = await predict("Click", prompt, {
      multimask: isAmbiguous ? "ALL" : "AUTO",
      logits: true,
      signal: call.signal,
    });
    if (!call.signal.aborted) setAnswers(id, prompt, masks);
  } catch (error) {
    failed("The click was not answered", error);
  } finally {
    if (asked.get(id)?.call === call) stopAsking(id);
  }
}
