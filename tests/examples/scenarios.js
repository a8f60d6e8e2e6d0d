// What the tests do with a client, in Node.js and in a browser; results are values of JSON.

/** Several masks of points; then the best of the first prompt, refined by its logits. */
async function predict(client, { photo, prompts }) {
  const image = await client.embed(bytes(photo));
  const masks = await client.predict(image.id, prompts, { multimask: "ALL", logits: true });
  const best = masks[0].reduce((a, b) => (a.predictedIou > b.predictedIou ? a : b));
  const again = { ...prompts[0], logits: best.lowResLogits };
  const [[refined]] = await client.predict(image.id, [again], { multimask: "SINGLE" });
  return { image, masks: masks.map((each) => each.map(plain)), best: masks[0].indexOf(best), refined: plain(refined) };
}

async function embedTwice(client, { photo }) {
  const first = await client.embed(bytes(photo));
  return { first, second: await client.embed(bytes(photo)) };
}

async function automask(client, { photo, parameters }) {
  const [progress, masks, summaries] = [[], [], []];
  for await (const event of client.automask(bytes(photo), { parameters })) {
    if (event.kind === "progress") progress.push([event.done, event.total]);
    if (event.kind === "mask") masks.push(plain(event.mask));
    if (event.kind === "summary") summaries.push(event.maskCount);
  }
  return { progress, masks, summaries };
}

/** Begin AutoMask and cancel it by a signal. */
async function abortAutomask(client, { photo, parameters }) {
  const abort = new AbortController();
  const options = { parameters, signal: abort.signal };
  const error = await failure(async () => {
    for await (const event of client.automask(bytes(photo), options)) {
      if (event.kind === "progress" && event.done > 0) abort.abort();
    }
  });
  return { error, usable: await usable(client) };
}

/** Begin AutoMask and leave the loop. */
async function leaveAutomask(client, { photo, parameters }) {
  for await (const event of client.automask(bytes(photo), { parameters })) {
    if (event.kind === "progress" && event.done > 0) break;
  }
  return { usable: await usable(client) };
}

async function abortUnary(client, { photo }) {
  const abort = new AbortController();
  const started = failure(() => client.embed(bytes(photo), { signal: abort.signal }));
  setTimeout(() => abort.abort(), 500); // after the upload, unless the machine is busy
  const before = await failure(() => client.models({ signal: AbortSignal.abort() }));
  return { started: await started, before, usable: await usable(client) };
}

async function errors(client, { photo }) {
  const image = await client.embed(bytes(photo));
  const inside = { points: [{ x: 1, y: 1 }] };
  const outside = { points: [{ x: -1, y: 1 }, { x: 1, y: 1e6 }] };
  const unknown = "0".repeat(64);
  const [[mask]] = await client.predict(unknown, [inside], { file: bytes(photo) });
  return {
    invalid: await failure(() => client.predict(image.id, [outside])),
    model: await failure(() => client.embed(bytes(photo), { model: "another" })),
    embedding: await failure(() => client.predict(unknown, [inside])),
    sentAgain: mask.area,
    stream: await failure(() => drain(client.automask(unknown))),
  };
}

async function deadlines(client, { photo, parameters }) {
  const options = { parameters, timeoutMs: 500 };
  return {
    unary: await failure(() => client.embed(bytes(photo), { timeoutMs: 500 })),
    stream: await failure(() => drain(client.automask(bytes(photo), options))),
  };
}

/** Call twice within a quota of one call. */
async function twice(client, { timeoutMs }) {
  await client.models({ timeoutMs });
  return { error: await failure(() => client.models({ timeoutMs })) };
}

/** Read AutoMask to its end, or to its error. */
async function beginAutomask(client) {
  return { error: await failure(() => drain(client.automask("id"))) };
}

async function models(client) {
  return { error: await failure(() => client.models()) };
}

/** Return the number of bytes of logits in one response. */
async function manyLogits(client, { photo, prompts }) {
  const image = await client.embed(bytes(photo));
  const masks = await client.predict(image.id, prompts, { multimask: "ALL", logits: true });
  return { bytes: masks.flat().reduce((sum, mask) => sum + mask.lowResLogits.length, 0) };
}

/** Call with names that messages do not have; `proto-loader` would ignore them. */
async function misnamed(client) {
  const rejected = async (action) => action().then(String, (error) => `${error.name}: ${error.message}`);
  return {
    box: await rejected(() => client.predict("0".repeat(64), [{ box: { x: 1, y: 1, width: 5, height: 5 } }])),
    parameter: await rejected(() => client.automask("0".repeat(64), { parameters: { points_per_side: 4 } }).next()),
  };
}

export const scenarios = {
  ...{ predict, embedTwice, automask, abortAutomask, leaveAutomask, abortUnary },
  ...{ errors, deadlines, twice, beginAutomask, models, manyLogits, misnamed },
};

async function drain(events) {
  for await (const _ of events);
}

/** Return the error of an action, or null. */
async function failure(action) {
  try {
    await action();
    return null;
  } catch (error) {
    if (error.name !== "SamserveError") throw error;
    const { code, message, reason, metadata, fieldViolations, retryDelayMs, quotaSubject, requestId } = error;
    const fields = fieldViolations.map(({ field, description }) => [field, description]);
    return { code, message, reason, metadata, fields, retryDelayMs: retryDelayMs ?? null, quotaSubject, requestId };
  }
}

async function usable(client) {
  return (await client.models()).models.length > 0;
}

function plain(mask) {
  const { width, height, area, predictedIou, stabilityScore, tokenIndex, box, lowResLogits } = mask;
  const bbox = [box.x, box.y, box.width, box.height];
  const facts = { width, height, area, predictedIou, stabilityScore, tokenIndex, bbox };
  return { ...facts, pixels: base64(mask.pixels()), logits: base64(lowResLogits) };
}

function bytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function base64(data) {
  let text = "";
  for (const byte of data) text += String.fromCharCode(byte);
  return btoa(text);
}
