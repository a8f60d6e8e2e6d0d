/** The decoder cannot run in this browser, or not for this; the message says why in plain words. */
export class Unsupported extends Error {
  override readonly name = "Unsupported";
}

/** A prompt that the server would reject too. */
export class InvalidPrompt extends Error {
  override readonly name = "InvalidPrompt";
}

/** Return an error that a worker sent, as one of these classes if it was one there. */
export function revived(error: unknown): unknown {
  if (!(error instanceof Error)) {
    return error;
  }
  // By its text: a build shortens the names of classes.
  switch (error.name) {
    case "Unsupported":
      return new Unsupported(error.message);
    case "InvalidPrompt":
      return new InvalidPrompt(error.message);
    default:
      return error;
  }
}

/** Return what is said about a failure of the runtime that was not expected. */
export function reasonOf(error: unknown, doing: string): Error {
  if (error instanceof Unsupported || error instanceof InvalidPrompt) {
    return error;
  }
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  if (/out of memory|OOM|could not allocate|allocation fail|bad_alloc/i.test(text)) {
    return new Unsupported(`The browser has too little memory: ${doing} failed.`);
  }
  const start = /no available backend found\. ERR: \[wasm\] (?<cause>.*)/s.exec(text);
  return new Unsupported(
    start
      ? `The browser could not load the runtime of the decoder: ${start.groups?.cause}`
      : `In the browser, ${doing} failed: ${text}`,
  );
}
