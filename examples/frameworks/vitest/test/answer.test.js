import { env, exports } from "cloudflare:workers";
import { expect, it } from "vitest";

it("answers a question", async () => {
  const response = await exports.default.fetch("https://example.com/?prompt=What+is+the+capital+of+Japan?");
  expect(await response.json()).toEqual({ answer: expect.stringContaining("Tokyo") });
});

it("reports the model's error", async () => {
  await expect(env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt: "word ".repeat(4000) })).rejects.toThrow("5021");
});

it("refuses a request without a question", async () => {
  const response = await exports.default.fetch("https://example.com/");
  expect(response.status).toBe(400);
});

it("streams a reply", async () => {
  const stream = await env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt: "Where is New York?", stream: true, max_tokens: 20 });
  expect(await new Response(stream).text()).toMatch(/^data: \{"response":".*\n\ndata: \[DONE\]\n\n$/s);
});
