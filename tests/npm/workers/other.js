// Another Worker with an AI binding, which the first one calls.

export default {
  async fetch(request, env) {
    const inputs = { prompt: "What is the capital of Japan?", max_tokens: 12, temperature: 0 };
    return Response.json({ reply: await env.AI.run("@cf/meta/llama-2-7b-chat-int8", inputs) });
  },
};
