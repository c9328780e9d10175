/** Streams a reply to the question in `?prompt=`. */
export default {
  async fetch(request, env) {
    const prompt = new URL(request.url).searchParams.get("prompt") ?? "Where is New York?";
    const stream = await env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt, stream: true });
    return new Response(stream, { headers: { "content-type": "text/event-stream" } });
  },
};
