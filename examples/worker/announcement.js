// A Worker of November 2023: the AI class comes from a package.

import { Ai } from "@cloudflare/ai";

export default {
  async fetch(request, env, ctx) {
    const prompt = new URL(request.url).searchParams.get("prompt") ?? "where is new york?";
    const ai = new Ai(env.AI, { sessionOptions: { ctx } });
    const stream = await ai.run("@cf/meta/llama-2-7b-chat-int8", { prompt, stream: true, max_tokens: 40 });
    return new Response(stream, { headers: { "content-type": "text/event-stream" } });
  },
};
