// A current Worker: the runtime itself has the AI class.

export default {
  async fetch(request, env) {
    const query = new URL(request.url).searchParams;
    const prompt = query.get("prompt") ?? "where is new york?";
    const stream = !query.has("whole");
    try {
      const answer = await env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt, stream, max_tokens: 40 });
      if (!stream) return Response.json(answer);
      return new Response(answer, { headers: { "content-type": "text/event-stream" } });
    } catch (error) {
      return Response.json({ name: error.name, message: error.message }, { status: 502 });
    }
  },
};
