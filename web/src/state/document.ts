import { batch, computed, signal } from "@preact/signals";

import type { Mask, Prompt, Rgb, SegmentedObject } from "../types";

/** The objects of the image. *activeId* is the one that clicks belong to; null: a new one. */
interface State {
  readonly objects: readonly SegmentedObject[];
  readonly activeId: number | null;
}

const EMPTY: State = { objects: [], activeId: null };
const MAX_UNDO = 100;

/** Colours that differ clearly on photographs, for objects in the order of their creation. */
export const PALETTE: readonly Rgb[] = [
  [56, 189, 248],
  [251, 146, 60],
  [74, 222, 128],
  [244, 114, 182],
  [250, 204, 21],
  [167, 139, 250],
  [248, 113, 113],
  [45, 212, 191],
  [217, 119, 6],
  [148, 163, 184],
];

const state = signal<State>(EMPTY);
const past = signal<readonly State[]>([]);
const future = signal<readonly State[]>([]);
let nextId = 1;

export const objects = computed(() => state.value.objects);
export const activeObject = computed(
  () => state.value.objects.find(({ id }) => id === state.value.activeId) ?? null,
);
export const canUndo = computed(() => past.value.length > 0);
export const canRedo = computed(() => future.value.length > 0);

/** Forget all objects, and the history; for another image. */
export function reset(): void {
  nextId = 1;
  state.value = EMPTY;
  past.value = [];
  future.value = [];
}

export function undo(): void {
  const previous = past.value.at(-1);
  if (!previous) return;
  past.value = past.value.slice(0, -1);
  future.value = [...future.value, state.value];
  state.value = previous;
}

export function redo(): void {
  const next = future.value.at(-1);
  if (!next) return;
  future.value = future.value.slice(0, -1);
  past.value = [...past.value, state.value];
  state.value = next;
}

/** Set the prompt of the active object, or of a new one; returns its id. */
export function setPrompt(prompt: Prompt): number {
  const active = activeObject.value;
  if (active) {
    const answers = isEmpty(prompt) ? [] : active.answers;
    // Of a hidden object, the effect would not be seen.
    commit(replaced({ ...active, prompt, answers, visible: true }));
    return active.id;
  }
  return addObject(prompt, []);
}

/** Add an object that masks are already known of; it becomes the active one. */
export function addObject(prompt: Prompt, answers: readonly Mask[], isActive = true): number {
  const [id] = addObjects([{ prompt, answers }]);
  if (isActive && id !== undefined) state.value = { ...state.value, activeId: id };
  return id ?? 0;
}

/** Add several objects as one step of the history; none of them becomes active. */
export function addObjects(
  added: readonly { readonly prompt: Prompt; readonly answers: readonly Mask[] }[],
): number[] {
  const first = nextNumber();
  const created = added.map(({ prompt, answers }, index): SegmentedObject => {
    const number = first + index;
    return {
      id: nextId++,
      name: `object ${number}`,
      colour: colourOf(number),
      visible: true,
      prompt,
      answers,
      answered: answers.length > 0 ? prompt : null,
      chosen: best(answers),
    };
  });
  commit({ ...state.value, objects: [...state.value.objects, ...created] });
  return created.map(({ id }) => id);
}

/**
 * Set the answers to a prompt of an object, wherever it has this prompt: now, and in the history,
 * of which this is no step.
 */
export function setAnswers(id: number, prompt: Prompt, answers: readonly Mask[]): void {
  const isAsked = (each: SegmentedObject) =>
    each.id === id && each.prompt === prompt && each.answered !== prompt;
  const changes = { answers, answered: prompt, chosen: best(answers) };
  const answer = (each: State): State => {
    if (!each.objects.some(isAsked)) return each;
    const changed = each.objects.map((object) =>
      isAsked(object) ? { ...object, ...changes } : object,
    );
    return { ...each, objects: changed };
  };
  batch(() => {
    state.value = answer(state.value);
    past.value = past.value.map(answer);
    future.value = future.value.map(answer);
  });
}

export function chooseAnswer(id: number, chosen: number): void {
  change(id, { chosen });
}

export function rename(id: number, name: string): void {
  change(id, { name });
}

export function recolour(id: number, colour: Rgb): void {
  change(id, { colour });
}

export function setVisible(id: number, visible: boolean): void {
  change(id, { visible });
}

export function remove(id: number): void {
  const activeId = state.value.activeId === id ? null : state.value.activeId;
  commit({ objects: state.value.objects.filter((each) => each.id !== id), activeId });
}

/** Make clicks belong to an object; null: to a new one. Not a step of the history. */
export function activate(id: number | null): void {
  state.value = { ...state.value, activeId: id };
}

/** The colour that the next object gets. Effects that call this do not depend on the objects. */
export function nextColour(): Rgb {
  return colourOf(nextNumber());
}

/** The mask of an object that is shown and exported, if there is one. */
export function maskOf(object: SegmentedObject): Mask | null {
  return object.answers[object.chosen] ?? null;
}

export function isEmpty({ points, box }: Prompt): boolean {
  return points.length === 0 && !box;
}

function change(id: number, changes: Partial<SegmentedObject>): void {
  const found = state.value.objects.find((each) => each.id === id);
  if (found) commit(replaced({ ...found, ...changes }));
}

function replaced(object: SegmentedObject): State {
  const others = state.value.objects.map((each) => (each.id === object.id ? object : each));
  return { ...state.value, objects: others };
}

function commit(next: State): void {
  past.value = [...past.value, state.value].slice(-MAX_UNDO);
  future.value = [];
  state.value = next;
}

/** The number in the name of the next object: after all that are in the names of others. */
function nextNumber(): number {
  const present = state.peek().objects;
  const numbers = present.map(({ name }) => /^object (\d{1,9})$/.exec(name)?.[1]);
  return Math.max(present.length, ...numbers.map((number) => Number(number ?? 0))) + 1;
}

function colourOf(number: number): Rgb {
  return PALETTE[(number - 1) % PALETTE.length] as Rgb;
}

/** The answer that the model thinks best of. */
function best(answers: readonly Mask[]): number {
  const scores = answers.map(({ predictedIou }) => predictedIou);
  return Math.max(0, scores.indexOf(Math.max(...scores)));
}
