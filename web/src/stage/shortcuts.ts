/** Keys that work wherever the focus is, except in text fields and dialogs. */

import { image } from "../state/image";
import { newObject, redoPrompt, tool, undoPrompt } from "../state/prompting";
import { type Shortcut, shortcutOf } from "./meanings";
import { gestures } from "./pointer-events";
import { cancelLatest, isPanning, isSpaceHeld, leave } from "./pointing";
import { fit, zoomIn, zoomOut } from "./viewport-state";

const ACTIONS: Readonly<Record<Shortcut, () => void>> = {
  foreground: () => choose("foreground"),
  background: () => choose("background"),
  box: () => choose("box"),
  pan: () => choose("pan"),
  undo: undoPrompt,
  redo: redoPrompt,
  new: newObject,
  cancel,
  "zoom-in": zoomIn,
  "zoom-out": zoomOut,
  fit,
};

/** Those that a key repeats as it is held. */
const REPEATED: ReadonlySet<Shortcut> = new Set(["undo", "redo", "zoom-in", "zoom-out"]);

/** Inputs in which keys other than the space bar have no meaning of their own. */
const NOT_TYPED = new Set(["button", "checkbox", "color", "file", "radio", "range", "submit"]);

/** Follow the keys of the page; returns a function that ends this. */
export function followShortcuts(): () => void {
  const ended = new AbortController();
  const { signal } = ended;
  addEventListener("keydown", press, { signal });
  addEventListener("keyup", release, { signal });
  addEventListener("blur", releaseSpace, { signal });
  return () => ended.abort();
}

function press(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing || isTyping(event.target) || isDialogOpen())
    return;
  if (event.key === " ") {
    pressSpace(event);
    return;
  }
  const shortcut = shortcutOf(event);
  if (!shortcut) return;
  event.preventDefault();
  if (!event.repeat || REPEATED.has(shortcut)) ACTIONS[shortcut]();
}

/** With the space bar held, a press moves the image; on a button it is a click as ever. */
function pressSpace(event: KeyboardEvent): void {
  const { target } = event;
  const isElsewhere = target !== document.body && !(target instanceof HTMLCanvasElement);
  if (!image.value || isElsewhere) return;
  event.preventDefault();
  if (isSpaceHeld.value) return;
  isSpaceHeld.value = true;
  leave();
}

function release({ key }: KeyboardEvent): void {
  if (key === " ") releaseSpace();
}

function releaseSpace(): void {
  isSpaceHeld.value = false;
}

function choose(name: typeof tool.value): void {
  tool.value = name;
}

function cancel(): void {
  const wasActive = gestures.isActive;
  const wasBox = gestures.cancel();
  isPanning.value = false;
  if (!wasActive && !wasBox) cancelLatest();
}

function isTyping(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return !NOT_TYPED.has(target.type);
  return target.isContentEditable || target.matches("textarea, select");
}

function isDialogOpen(): boolean {
  return document.querySelector("dialog[open], [role=dialog][aria-modal=true]") !== null;
}
