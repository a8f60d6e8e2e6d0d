import { Code, ConnectError } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google_rpc_pb";

/** A call that failed. */
export class CallError extends Error {
  override readonly name = "CallError";

  /**
   * @param code name of the gRPC status, such as `INVALID_ARGUMENT`
   * @param reason of the server, such as `EMBEDDING_NOT_FOUND`; empty if the server gave none
   * @param fields what is wrong with which field of the request
   * @param retryDelayMs after which the server asks to repeat a call that it rejected
   */
  constructor(
    readonly code: string,
    message: string,
    readonly reason = "",
    readonly fields: readonly string[] = [],
    readonly retryDelayMs?: number,
  ) {
    super(message);
  }

  get isCancelled(): boolean {
    return this.code === "CANCELLED";
  }
}

/** Return the error of a call with its details decoded. */
export function toCallError(thrown: unknown): CallError {
  if (thrown instanceof CallError) return thrown;
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [bad] = error.findDetails(BadRequestSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const delay = retry?.retryDelay;
  const fields = bad?.fieldViolations.map(({ field, description }) => `${field} ${description}`);
  return new CallError(
    codeOf(error),
    isUnreachable(error) ? "the server cannot be reached" : error.rawMessage,
    info?.reason,
    fields,
    delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6,
  );
}

/** Return whether *error* only says that its caller did not want the result any more. */
export function isAbort(error: unknown): boolean {
  return (
    (error instanceof CallError && error.isCancelled) ||
    (error instanceof DOMException && error.name === "AbortError")
  );
}

/**
 * Return whether the server does not have an embedding: its time to live is over, or the server was
 * restarted.
 */
export function isEmbeddingMissing(error: unknown): boolean {
  return error instanceof CallError && error.reason === "EMBEDDING_NOT_FOUND";
}

/** Whether there is no connection: `fetch` throws a TypeError, with another text in each browser. */
function isUnreachable({ code, cause }: ConnectError): boolean {
  return code === Code.Unknown && cause instanceof TypeError;
}

function codeOf(error: ConnectError): string {
  const { code } = error;
  if (isUnreachable(error)) return "UNAVAILABLE";
  if (code === Code.Canceled) return "CANCELLED";
  return (Code[code] ?? "UNKNOWN").replace(/(?<=[a-z])[A-Z]/g, "_$&").toUpperCase();
}
