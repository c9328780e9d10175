import { Hono } from "hono";

const app = new Hono<{ Bindings: { AI: Ai } }>();

/** Answers the question in `?prompt=` with one JSON body. */
app.get("/", async (context) => {
  const prompt = context.req.query("prompt") ?? "Where is New York?";
  return context.json(await context.env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt }));
});

/** Streams the answer as server-sent events. */
app.get("/stream", async (context) => {
  const prompt = context.req.query("prompt") ?? "Where is New York?";
  const stream = await context.env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt, stream: true });
  return context.body(stream, 200, { "content-type": "text/event-stream" });
});

export default app;
