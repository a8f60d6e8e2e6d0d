import { signal } from "@preact/signals";

import { CallError, isAbort } from "../api/errors";

export interface Notice {
  readonly id: number;
  readonly kind: "error" | "information";
  readonly text: string;
  /** What else is known, such as the reason of the server. */
  readonly details: string;
}

/** What the user has to know, the newest last. */
export const notices = signal<readonly Notice[]>([]);

const MAX_NOTICES = 4;
let nextId = 1;

export function notify(text: string, kind: Notice["kind"] = "information", details = ""): void {
  // The same message twice has no use.
  const others = notices.value.filter((notice) => notice.text !== text);
  notices.value = [...others, { id: nextId++, kind, text, details }].slice(-MAX_NOTICES);
}

export function dismiss(id: number): void {
  notices.value = notices.value.filter((notice) => notice.id !== id);
}

/** Show an error; an abort is none. */
export function report(what: string, error: unknown): void {
  if (isAbort(error)) return;
  const message = error instanceof Error ? error.message : String(error);
  const details =
    error instanceof CallError
      ? [...unsaid(error.fields, message), error.reason || error.code].filter(Boolean).join("; ")
      : "";
  notify(`${what}: ${message}`, "error", details);
}

/** Return what the message of the server does not say already, as "FIELD: DESCRIPTION". */
function unsaid(fields: readonly string[], message: string): readonly string[] {
  const said = message.replaceAll(": ", " ");
  return fields.filter((field) => !said.includes(field));
}
