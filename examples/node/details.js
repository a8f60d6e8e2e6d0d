import { status } from "@grpc/grpc-js";

import { SamserveError } from "../shared/error.js";
import { definitions } from "./channel.js";

/**
 * Return the error of a call with its details decoded.
 *
 * @param {any} error a `ServiceError` of @grpc/grpc-js
 */
export function toError(error) {
  const [requestId] = error.metadata?.get("x-request-id") ?? [];
  const [serialized] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const details = serialized ? readDetails(serialized) : {};
  return new SamserveError(status[error.code] ?? "UNKNOWN", error.details, { ...details, requestId }, error);
}

/** @param {Buffer} serialized */
function readDetails(serialized) {
  /** @type {import("../shared/types.js").ErrorDetails} */
  const details = {};
  for (const { type_url, value } of decode("google.rpc.Status", serialized).details) {
    const type = type_url.slice(type_url.lastIndexOf("/") + 1);
    if (!(type in definitions)) continue; // of a newer server
    const detail = decode(type, value);
    switch (type) {
      case "google.rpc.ErrorInfo":
        details.reason = detail.reason;
        details.metadata = detail.metadata;
        break;
      case "google.rpc.BadRequest":
        details.fieldViolations = detail.fieldViolations;
        break;
      case "google.rpc.RetryInfo":
        details.retryDelayMs = detail.retryDelay.seconds * 1000 + detail.retryDelay.nanos / 1e6;
        break;
      case "google.rpc.QuotaFailure":
        details.quotaSubject = detail.violations[0]?.subject;
        break;
    }
  }
  return details;
}

/** @param {string} type @param {Buffer} bytes */
function decode(type, bytes) {
  return /** @type {any} */ (definitions[type]).deserialize(bytes);
}
