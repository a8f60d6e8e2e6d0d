import { computed, signal } from "@preact/signals";

import { Api } from "../api/client";
import { CallError, toCallError } from "../api/errors";
import { openSession, storeCredential, storedCredential } from "../api/session";
import type { ServerInfo } from "../types";
import { dismiss, notices, report } from "./notices";

export type Connection =
  | { readonly kind: "connecting" }
  | { readonly kind: "ready" }
  /** The server needs an API key or token; *message* is about the last one. */
  | { readonly kind: "signed-out"; readonly message: string }
  /** The page has to be opened by the address that the server printed. */
  | { readonly kind: "no-session"; readonly message: string }
  | { readonly kind: "failed"; readonly message: string };

// The page may be served below a path.
const base = new URL(".", location.href);
base.hash = "";
base.search = "";

export const api = new Api(base, storedCredential);

export const connection = signal<Connection>({ kind: "connecting" });
export const server = signal<ServerInfo | null>(null);
export const modelName = signal("");
export const model = computed(
  () => server.value?.models.find(({ name }) => name === modelName.value) ?? null,
);

/** Connect to the server; at the start, and to try again. */
export async function start(): Promise<void> {
  // They may be about the earlier session.
  for (const { id } of notices.value) dismiss(id);
  connection.value = { kind: "connecting" };
  try {
    await openSession(base);
  } catch (error) {
    // A used token does not matter if this tab has a session.
    if (!storedCredential()) {
      connection.value = { kind: "no-session", message: toCallError(error).message };
      return;
    }
  }
  await connect("");
}

/** Use an API key or bearer token. */
export async function signIn(credential: string): Promise<void> {
  storeCredential(credential.trim());
  await connect("The server does not accept it: ");
}

/** Handle an error of a call that may mean that the credential is no longer valid. */
export function failed(what: string, thrown: unknown): void {
  const error = toCallError(thrown);
  if (error.code === "UNAUTHENTICATED") connection.value = afterRejection(error, "");
  if (connection.value.kind === "signed-out") return;
  // Of a missing session, the page shows nothing else while an image is open.
  const isSessionMissing = error.reason === "SESSION_REQUIRED";
  const text = `${error.message}. Opened in this tab, the objects stay`;
  report(what, isSessionMissing ? new CallError(error.code, text, error.reason) : thrown);
}

async function connect(introduction: string): Promise<void> {
  try {
    server.value = await api.models();
    modelName.value ||= server.value.models.find(({ isDefault }) => isDefault)?.name ?? "";
    connection.value = { kind: "ready" };
  } catch (thrown) {
    const error = toCallError(thrown);
    connection.value =
      error.code === "UNAUTHENTICATED" || error.code === "PERMISSION_DENIED"
        ? afterRejection(error, introduction)
        : { kind: "failed", message: error.message };
    // While an image is open, the page shows no other text about it.
    if (server.value && connection.value.kind !== "signed-out")
      report("The page is not connected", thrown);
  }
}

function afterRejection(error: CallError, introduction: string): Connection {
  if (error.reason === "SESSION_REQUIRED") return { kind: "no-session", message: error.message };
  return { kind: "signed-out", message: introduction && introduction + error.message };
}
