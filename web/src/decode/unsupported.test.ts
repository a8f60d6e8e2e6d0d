import { describe, expect, it } from "vitest";
import { InvalidPrompt, reasonOf, revived, Unsupported } from "./unsupported";

describe("reasonOf", () => {
  it("names memory that is missing, however the runtime reports it", () => {
    const errors = [
      new RangeError("WebAssembly.Memory(): could not allocate memory"),
      new Error("Aborted(OOM). Build with -sASSERTIONS for more info."),
      new RangeError("Array buffer allocation failed"),
      "std::bad_alloc",
    ];
    for (const error of errors) {
      expect(reasonOf(error, "decoding").message).toBe(
        "The browser has too little memory: decoding failed.",
      );
    }
  });

  it("has the cause of a runtime that does not start", () => {
    const error = new Error("no available backend found. ERR: [wasm] Error: no SIMD");
    const reason = reasonOf(error, "loading");
    expect(reason.message).toMatch(/could not load the runtime of the decoder: Error: no SIMD$/);
  });

  it("keeps reasons, and has the text of other errors", () => {
    const [unsupported, invalid] = [new Unsupported("a"), new InvalidPrompt("b")];
    expect(reasonOf(unsupported, "decoding")).toBe(unsupported);
    expect(reasonOf(invalid, "decoding")).toBe(invalid);
    expect(reasonOf(17, "decoding").message).toBe("In the browser, decoding failed: 17");
  });
});

describe("revived", () => {
  it("has the class that an error had in the worker", () => {
    const sent = (name: string) => Object.assign(new Error("why"), { name });
    expect(revived(sent("Unsupported"))).toBeInstanceOf(Unsupported);
    expect(revived(sent("InvalidPrompt"))).toBeInstanceOf(InvalidPrompt);
    const other = sent("Other");
    expect(revived(other)).toBe(other);
    expect(revived("text")).toBe("text");
  });
});
