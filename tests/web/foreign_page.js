/** What a page of another origin can try against the listener at `target`: each entry is an attempt. */
async (target) => {
  const PREDICT = `${target}/samserve.v1.SegmentationService/Predict`;
  const LIST = `${target}/samserve.v1.SegmentationService/ListModels`;
  const SESSION = `${target}/web/session`;
  const JSON_TYPE = { "content-type": "application/json" };

  const read = async (url, options = {}) => {
    const response = await fetch(url, options);
    return response.type === "opaque" ? "" : `read: ${await response.text()}`;
  };
  const post = (url, headers, mode = "cors") =>
    read(url, { method: "POST", headers, body: "{}", mode, credentials: "include" });
  const element = (name, attributes) =>
    new Promise((resolve, reject) => {
      const made = Object.assign(document.createElement(name), attributes);
      made.onload = () => resolve(`loaded: ${name}`);
      made.onerror = () => reject(new Error("blocked"));
      document.body.append(made);
    });
  const form = async (url, enctype) => {
    const frame = Object.assign(document.createElement("iframe"), { name: `form${Math.random()}` });
    document.body.append(frame);
    const made = Object.assign(document.createElement("form"), {
      method: "POST",
      action: url,
      enctype,
      target: frame.name,
    });
    // As text/plain the body is valid JSON.
    made.append(Object.assign(document.createElement("input"), { name: '{"a":"', value: '"}' }));
    document.body.append(made);
    const ended = new Promise((resolve) => frame.addEventListener("load", resolve, { once: true }));
    made.submit();
    await ended;
    return frame.contentDocument?.body?.textContent ? "read the answer of a form" : "";
  };
  const framed = async () => {
    const frame = Object.assign(document.createElement("iframe"), { src: `${target}/` });
    const ended = new Promise((resolve) => {
      frame.onload = resolve;
    });
    document.body.append(frame);
    await ended;
    return frame.contentDocument?.body?.textContent ? "read the page in a frame" : "";
  };
  const socket = () =>
    new Promise((resolve, reject) => {
      const opened = new WebSocket(PREDICT.replace("http", "ws"));
      opened.onopen = () => resolve("a web socket was opened");
      opened.onerror = () => reject(new Error("blocked"));
    });
  const events = () =>
    new Promise((resolve, reject) => {
      const source = new EventSource(LIST);
      source.onopen = () => resolve("events were read");
      source.onerror = () => {
        source.close();
        reject(new Error("blocked"));
      };
    });
  const worker = () =>
    new Promise((resolve, reject) => {
      const made = new Worker(`${target}/`);
      made.onmessage = () => resolve("a worker ran");
      made.onerror = () => reject(new Error("blocked"));
    });

  const attempts = {
    "fetch the page": () => read(`${target}/`),
    "fetch the page, without reading it": () => read(`${target}/`, { mode: "no-cors" }),
    "call in JSON": () => post(PREDICT, JSON_TYPE),
    "call in JSON with a credential": () => post(PREDICT, { ...JSON_TYPE, authorization: "Bearer x" }),
    "call as text": () => post(PREDICT, { "content-type": "text/plain" }),
    "call, without reading": () => post(PREDICT, { "content-type": "text/plain" }, "no-cors"),
    "list the models": () => post(LIST, JSON_TYPE),
    "list the models in binary": () => post(LIST, { "content-type": "application/proto" }),
    "open a session": () => post(SESSION, JSON_TYPE),
    "open a session as text": () => post(SESSION, { "content-type": "text/plain" }, "no-cors"),
    "beacon": () => {
      navigator.sendBeacon(PREDICT, "{}");
      navigator.sendBeacon(SESSION, new Blob(["{}"], { type: "text/plain" }));
      return "";
    },
    "image": () => element("img", { src: `${target}/favicon.svg` }),
    "script": () => element("script", { src: `${target}/favicon.svg` }),
    "stylesheet": () => element("link", { rel: "stylesheet", href: `${target}/` }),
    "form": () => form(PREDICT, "text/plain"),
    "form for a session": () => form(SESSION, "text/plain"),
    "form of pairs": () => form(LIST, "application/x-www-form-urlencoded"),
    "frame": framed,
    "socket": socket,
    "events": events,
    "worker": worker,
  };
  const results = {};
  for (const [name, attempt] of Object.entries(attempts))
    results[name] = await Promise.resolve()
      .then(attempt)
      .catch((error) => `refused: ${error.message}`);
  return results;
};
