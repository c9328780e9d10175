import { env } from "cloudflare:workers";
import { expect, it } from "vitest";

const MODEL = "@cf/meta/llama-2-7b-chat-int8";
const INPUTS = { prompt: "What is the capital of Japan?", max_tokens: 12, temperature: 0 };

it("runs", async () => {
  const reply = await env.AI.run(MODEL, INPUTS);
  expect(reply.response).toContain("Tokyo");
  expect(env.AI.lastRequestId).toHaveLength(36);
});

it("streams", async () => {
  const stream = await env.AI.run(MODEL, { ...INPUTS, stream: true });
  expect(await new Response(stream).text()).toMatch(/^data: \{"response":[\s\S]+data: \[DONE\]\s*$/);
});

it("throws", async () => {
  await expect(env.AI.run("@cf/no/such-model", INPUTS)).rejects.toThrow(/^5007: /);
});

it("runs in a Durable Object", async () => {
  const reply = await env.ROOM.getByName("room").ask();
  expect(reply.response).toContain("Tokyo");
});
