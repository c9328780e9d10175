// Exercises the whole AI binding. The path selects what to do; the answer is JSON with `result` or `error`.

const MODEL = "@cf/meta/llama-2-7b-chat-int8";

const read = async (stream) => await new Response(stream).text();
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const step = (query, provider = "workers-ai", endpoint = MODEL) => ({ provider, endpoint, headers: {}, query });

const ACTIONS = {
  async batch({ AI }) {
    const requests = [{ prompt: "a", external_reference: "x" }, { messages: [{ role: "user", content: "b" }], external_reference: "y" }];
    const queued = await AI.run(MODEL, { requests }, { queueRequest: true });
    for (;;) {
      const answer = await AI.run(MODEL, { request_id: queued.request_id });
      if (answer.status !== "queued" && answer.status !== "running") return { queued, answer };
      await wait(20);
    }
  },
  "unknown-batch": ({ AI }) => AI.run(MODEL, { request_id: "000-000-000" }),
  async "gateway-run"({ AI }) {
    const response = await AI.gateway("g").run([step({ messages: [] }, "openai", "chat/completions"), step({ prompt: "hi" })]);
    return { status: response.status, step: response.headers.get("cf-aig-step"), body: await response.json() };
  },
  async "gateway-stream"({ AI }) {
    const response = await AI.gateway("g").run(step({ prompt: "hi", stream: true }));
    return { type: response.headers.get("content-type"), text: await response.text() };
  },
  async "gateway-chat"({ AI }) {
    const query = { model: MODEL, messages: [{ role: "user", content: "hi" }] };
    return (await AI.gateway("g").run(step(query, "workers-ai", "v1/chat/completions"))).json();
  },
  async "gateway-other"({ AI }) {
    const response = await AI.gateway("g").run(step({}, "openai", "chat/completions"));
    return { status: response.status, body: await response.json() };
  },
  "gateway-url": ({ AI }) => AI.gateway("g").getUrl("workers-ai"),
  "gateway-universal-url": ({ AI }) => AI.gateway("g").getUrl(),
  "gateway-other-url": ({ AI }) => AI.gateway("g").getUrl("openai"),
  "gateway-log": ({ AI }) => AI.gateway("g").getLog("id"),
  "gateway-patch-log": ({ AI }) => AI.gateway("g").patchLog("id", { score: 1 }),
  "gateway-option": ({ AI }) => AI.run(MODEL, { prompt: "hi" }, { gateway: { id: "g", skipCache: true } }),
  markdown: ({ AI }) => AI.toMarkdown([{ name: "a.html", blob: new Blob(["<p>a</p>"], { type: "text/html" }) }]),
  "markdown-formats": ({ AI }) => AI.toMarkdown().supported(),
  autorag: ({ AI }) => AI.autorag("name").search({ query: "hi" }),
  "autorag-list": ({ AI }) => AI.autorag().list(),
  models: ({ AI }) => AI.models({ search: "llama" }),
  openrouter: ({ AI }) => AI.models({ format: "openrouter" }),
  async raw({ AI }) {
    const options = { returnRawResponse: true, tags: ["a", "b"], extraHeaders: { "x-session-affinity": "s" } };
    const response = await AI.run(MODEL, { prompt: "hi" }, options);
    return { status: response.status, id: response.headers.get("cf-ai-req-id"), body: await response.json() };
  },
  async websocket({ AI }) {
    const response = await AI.run(MODEL, { prompt: "hi" }, { websocket: true });
    return { status: response.status, socket: response.webSocket !== null, body: await response.json() };
  },
  async strict({ AI }) {
    return AI.run(MODEL, { prompt: "hi" }, { extraHeaders: { "tailrace-profile": "2026-strict" } });
  },
  async abort({ AI }, url) {
    const controller = new AbortController();
    const stream = url.searchParams.get("stream") === "true";
    setTimeout(() => controller.abort(), 300);
    try {
      const reply = await AI.run(MODEL, { prompt: "hi", stream }, { signal: controller.signal });
      await read(reply);
      return { ended: true };
    } catch (error) {
      return { aborted: error.name };
    }
  },
};

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    const action = ACTIONS[url.pathname.slice(1)];
    if (!action) return new Response("no such action", { status: 404 });
    try {
      const result = await action(env, url);
      return Response.json({ result, lastRequestId: env.AI.lastRequestId });
    } catch (error) {
      const code = env.AI.lastRequestInternalStatusCode;
      return Response.json({ error: { name: error.name, message: error.message, code } });
    }
  },
};
