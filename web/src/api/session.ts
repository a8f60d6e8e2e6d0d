import { CallError } from "./errors";

const KEY = "samserve.credential";

/** Return the credential of this tab: an API key, a bearer token, or that of a session. */
export function storedCredential(): string | null {
  return sessionStorage.getItem(KEY);
}

export function storeCredential(credential: string): void {
  sessionStorage.setItem(KEY, credential);
}

/**
 * Exchange the one-time token in the address of the page, if there is one, for the credential of a
 * session. The token is removed from the address, and so from the history. Throws `CallError`.
 */
export async function openSession(base: URL): Promise<void> {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  const response = await fetch(new URL("web/session", base), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ token }),
  }).catch(() => {
    throw new CallError("UNAVAILABLE", "the server cannot be reached");
  });
  const answer: unknown = await response.json().catch(() => ({}));
  if (!response.ok) throw new CallError(...failureOf(response.status, answer));
  storeCredential((answer as { credential: string }).credential);
}

function failureOf(status: number, answer: unknown): [string, string] {
  const { code, message } = answer as { code?: string; message?: string };
  return [(code ?? "unknown").toUpperCase(), message ?? `the server answered ${status}`];
}
