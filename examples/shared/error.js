/** A failed call, with the details that the server sent. */
export class SamserveError extends Error {
  /**
   * @param {string} code name of the gRPC status, for instance `NOT_FOUND`
   * @param {string} message
   * @param {import("./types.js").ErrorDetails} details
   * @param {unknown} [cause] the error of the gRPC or Connect library
   */
  constructor(code, message, details, cause) {
    super(message, { cause });
    this.name = "SamserveError";
    this.code = code;
    /** For programs: for instance `EMBEDDING_NOT_FOUND`. Empty if no samserve server responded. */
    this.reason = details.reason ?? "";
    /** The numbers of the message, for instance the limit. */
    this.metadata = details.metadata ?? {};
    /** The invalid fields of the request. */
    this.fieldViolations = details.fieldViolations ?? [];
    /** When a retry can succeed; undefined if waiting does not help. */
    this.retryDelayMs = details.retryDelayMs;
    /** Owner of the exhausted quota. */
    this.quotaSubject = details.quotaSubject ?? "";
    /** Identifies the call in the server's log. */
    this.requestId = details.requestId ?? "";
  }
}
