// A Worker with the AI binding in all places that have bindings. The path selects the place.

import { DurableObject, WorkflowEntrypoint } from "cloudflare:workers";

const MODEL = "@cf/meta/llama-2-7b-chat-int8";
const INPUTS = { prompt: "What is the capital of Japan?", max_tokens: 12, temperature: 0 };

export class Room extends DurableObject {
  async ask() {
    return this.env.AI.run(MODEL, INPUTS);
  }
}

export class Flow extends WorkflowEntrypoint {
  async run(event, step) {
    return step.do("ask", async () => this.env.AI.run(MODEL, INPUTS));
  }
}

const PLACES = {
  async run({ AI }) {
    const reply = await AI.run(MODEL, INPUTS);
    return Response.json({ reply, id: AI.lastRequestId, class: AI.constructor.name });
  },
  async stream({ AI }) {
    const stream = await AI.run(MODEL, { ...INPUTS, stream: true });
    return new Response(stream, { headers: { "content-type": "text/event-stream" } });
  },
  async error({ AI }) {
    try {
      return Response.json(await AI.run("@cf/no/such-model", INPUTS));
    } catch (error) {
      return Response.json({ name: error.name, message: error.message, status: AI.lastRequestHttpStatusCode });
    }
  },
  async object({ ROOM }) {
    return Response.json({ reply: await ROOM.getByName("room").ask() });
  },
  async workflow({ FLOW }) {
    const instance = await FLOW.create();
    for (;;) {
      const { status, output, error } = await instance.status();
      if (status === "complete") return Response.json({ reply: output });
      if (status === "errored" || status === "terminated") return Response.json({ error }, { status: 500 });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
  service: ({ OTHER }) => OTHER.fetch("http://other/"),
  greeting: ({ GREETING }) => new Response(GREETING),
};

export default {
  async fetch(request, env) {
    const place = PLACES[new URL(request.url).pathname.slice("/api/".length)];
    return place ? place(env) : new Response("There is no such place.", { status: 404 });
  },
};
