import { Code, ConnectError } from "@connectrpc/connect";

import { SamserveError } from "../shared/error.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RetryInfoSchema,
} from "./gen/google_rpc_pb.js";

/**
 * Return the error of a call with its details decoded.
 *
 * @param {unknown} thrown
 */
export function toError(thrown) {
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [bad] = error.findDetails(BadRequestSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const [quota] = error.findDetails(QuotaFailureSchema);
  const delay = retry?.retryDelay;
  return new SamserveError(
    nameOf(error),
    error.rawMessage,
    {
      reason: info?.reason,
      metadata: info?.metadata,
      fieldViolations: bad?.fieldViolations.map(({ field, description }) => ({ field, description })),
      retryDelayMs: delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6,
      quotaSubject: quota?.violations[0]?.subject,
      requestId: info?.metadata.request_id,
    },
    thrown,
  );
}

/** Return the name of the gRPC status. @param {ConnectError} error */
function nameOf({ code, cause }) {
  // What `fetch` throws if there is no connection, no trusted certificate, or no permission by CORS.
  if (code === Code.Unknown && cause instanceof TypeError) return "UNAVAILABLE";
  if (code === Code.Canceled) return "CANCELLED";
  return Code[code].replace(/(?<=[a-z])[A-Z]/g, "_$&").toUpperCase();
}
