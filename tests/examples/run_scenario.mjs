// Runs a scenario with the Node.js client. Reads {name, target, options, args} as one line, writes
// the result as one line, and ends when its input does: until then the client stays open.

import { createInterface } from "node:readline";

import { Client } from "../../examples/node/client.js";
import { scenarios } from "./scenarios.js";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { name, target, options, args } = JSON.parse((await lines.next()).value);
if (options.ca) options.ca = Buffer.from(options.ca);
const client = open();
console.log(JSON.stringify(client ? await scenarios[name](client, args) : { refused: "TypeError" }));
await lines.next();
client?.close();

/** Return a client, or nothing if it does not accept the options. */
function open() {
  try {
    return new Client(target, options);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
  }
}
