import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const MAX_MESSAGE_BYTES = 256 << 20;
const LOCAL = /^(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/;

export const definitions = loadSync(["samserve/v1/samserve.proto", "google_rpc.proto"], {
  includeDirs: ["../../proto", "../shared"].map((path) => fileURLToPath(new URL(path, import.meta.url))),
  defaults: true,
  oneofs: true,
  enums: String,
  longs: Number,
});
const { SegmentationService } = /** @type {any} */ (grpc.loadPackageDefinition(definitions)).samserve.v1;

const OPTIONS = {
  "grpc.service_config": readFileSync(new URL("../retry/service_config.json", import.meta.url), "utf8"),
  // The default is 4 MiB, less than the logits of six prompts with three masks each.
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  // A call with a larger request is not retried. The default is 1 MiB, less than many photos.
  "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE_BYTES,
  "grpc.retry_buffer_size": MAX_MESSAGE_BYTES,
  "grpc.keepalive_time_ms": 60_000,
  // After an outage, connect again within seconds; by default, up to two minutes pass.
  "grpc.max_reconnect_backoff_ms": 5_000,
};

/**
 * @typedef {object} ChannelOptions
 * @property {Buffer} [ca] certificates of the CA (PEM); enables TLS
 * @property {boolean} [tls] use TLS, with the CAs of Node.js unless there is a *ca*
 * @property {string} [serverName] name in the server's certificate, if it is not the host
 * @property {string} [token] API key or bearer token
 * @property {boolean} [plaintext] allow sending the token to another machine without TLS
 */

/**
 * Return a stub with the methods of the service. It connects with the first call.
 *
 * @param {string} target host:port
 * @param {ChannelOptions} options
 * @returns {any}
 */
export function openStub(target, { ca, tls = ca !== undefined, serverName, token, plaintext = false }) {
  if (token && !tls && !plaintext && !LOCAL.test(target)) {
    throw new TypeError(`the token would be sent to ${target} without TLS`);
  }
  const credentials = tls ? grpc.credentials.createSsl(ca) : grpc.credentials.createInsecure();
  const named = serverName ? { "grpc.ssl_target_name_override": serverName } : {};
  return new SegmentationService(target, credentials, { ...OPTIONS, ...named });
}

/**
 * Return the metadata of one call.
 *
 * @param {string} requestId
 * @param {string} [token]
 */
export function metadataOf(requestId, token) {
  const metadata = new grpc.Metadata();
  metadata.set("x-request-id", requestId);
  if (token) metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}
