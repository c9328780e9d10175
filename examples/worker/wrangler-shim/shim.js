// Replaces the AI binding if wrangler requires Cloudflare's own: the same methods, over REST.

import { WorkerEntrypoint } from "cloudflare:workers";

export default class extends WorkerEntrypoint {
  async run(model, inputs, options = {}) {
    const response = await this.#ask("/run?version=3", {
      method: "POST",
      headers: { "content-type": "application/json", "cf-consn-model-id": model, ...options.extraHeaders },
      body: JSON.stringify({ inputs, options: { ...options, extraHeaders: undefined } }),
    });
    if (!response.ok) {
      const { name, internalCode, description } = await response.json();
      const error = new Error(`${internalCode}: ${description}`);
      error.name = name;
      throw error;
    }
    return response.headers.get("content-type") === "application/json" ? response.json() : response.body;
  }

  async models(query = {}) {
    const response = await this.#ask(`/ai-api/models/search?${new URLSearchParams(query)}`);
    return (await response.json()).result;
  }

  fetch(request) {
    return this.#ask(new URL(request.url).pathname + new URL(request.url).search, request);
  }

  #ask(path, init = {}) {
    const headers = new Headers(init.headers);
    headers.set("authorization", `Bearer ${this.env.TAILRACE_TOKEN}`);
    return fetch(this.env.BRIDGE + path, { method: init.method, body: init.body, headers });
  }
}
