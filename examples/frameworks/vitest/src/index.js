/** Answers the question in `?prompt=` with one sentence. */
export default {
  async fetch(request, env) {
    const prompt = new URL(request.url).searchParams.get("prompt");
    if (!prompt) return new Response("The parameter prompt is missing.", { status: 400 });
    const { response } = await env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt, temperature: 0, max_tokens: 30 });
    return Response.json({ answer: response });
  },
};
