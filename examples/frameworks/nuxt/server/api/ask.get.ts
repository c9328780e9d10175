/** Streams a reply to the question in `?prompt=`. */
export default defineEventHandler(async (event) => {
  const { prompt = "Where is New York?" } = getQuery<{ prompt?: string }>(event);
  const { AI } = event.context.cloudflare.env;
  setHeader(event, "content-type", "text/event-stream");
  return AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt, stream: true });
});
