import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";

import { connection, signIn, start } from "../state/connection";
import { Dialog } from "./dialog";
import { Mark } from "./icons";

/** What is shown in place of the image until the page is connected to its server. */
export function ConnectionState() {
  const state = connection.value;
  switch (state.kind) {
    case "connecting":
      return (
        <div class="state" role="status">
          <span class="spinner" />
          <p>Connecting to the server…</p>
        </div>
      );
    case "failed":
      return (
        <div class="state" role="alert">
          <h2>The server does not answer</h2>
          <p>{state.message}. Is it running?</p>
          <button type="button" class="button primary" onClick={() => void start()}>
            Try again
          </button>
        </div>
      );
    case "no-session":
      return <NoSession message={state.message} />;
    default:
      return (
        <div class="state">
          <Mark />
          <p>Segment anything in an image, with a click.</p>
        </div>
      );
  }
}

function NoSession({ message }: { readonly message: string }) {
  return (
    <div class="state" role="alert">
      <h2>Open the address that the server printed</h2>
      <p>
        The server accepts only the person who started it. It printed an address with a token to its
        terminal:
      </p>
      <p>
        <code class="address">{location.origin}/#token=…</code>
      </p>
      <p>
        Each address works once, in one tab. For another tab, take the newest address: the server
        prints one whenever one was used.
      </p>
      {message && <p class="hint">The server: {message}</p>}
    </div>
  );
}

/** The dialog for an API key or token, if the server needs one. */
export function SignIn() {
  const isWaiting = useSignal(false);
  const field = useRef<HTMLInputElement>(null);
  const state = connection.value;
  if (state.kind !== "signed-out") return null;
  return (
    <Dialog title="Sign in">
      <form
        class="sign-in"
        onSubmit={(event) => {
          event.preventDefault();
          const value = field.current?.value.trim();
          if (!value || isWaiting.value) return;
          isWaiting.value = true;
          void signIn(value).finally(() => {
            isWaiting.value = false;
            field.current?.select();
          });
        }}
      >
        <p id="sign-in-hint">
          This server needs credentials. They stay in this tab, until it is closed, and are sent to
          this server only.
        </p>
        <label class="stacked-field">
          <span>API key or token</span>
          <input
            ref={field}
            type="password"
            required
            autocomplete="off"
            spellcheck={false}
            aria-describedby={state.message ? "sign-in-error" : "sign-in-hint"}
            aria-invalid={Boolean(state.message)}
          />
        </label>
        {state.message && (
          <p id="sign-in-error" class="field-error" role="alert">
            {state.message}
          </p>
        )}
        <button type="submit" class="button primary">
          {isWaiting.value ? "Signing in…" : "Sign in"}
        </button>
      </form>
    </Dialog>
  );
}
