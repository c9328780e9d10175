// Vercel's AI SDK with Cloudflare's provider and a model that thinks: prints texts and thoughts as one line of JSON.

import { generateText, streamText } from "ai";
import { createWorkersAI } from "workers-ai-provider";

const [baseURL, accountId, name] = process.argv.slice(2);
const toTailrace = (url, init) => fetch(String(url).replace("https://api.cloudflare.com/client/v4", baseURL), init);
const model = createWorkersAI({ accountId, apiKey: "any-token", fetch: toTailrace })(name);
const asked = { model, prompt: "hi", maxRetries: 0 };

const whole = await generateText(asked);
const stream = streamText(asked);
let [text, thoughts] = ["", ""];
for await (const part of stream.fullStream) {
  if (part.type === "text-delta") text += part.text;
  if (part.type === "reasoning-delta") thoughts += part.text;
}
const streamed = { text, thoughts, finishReason: await stream.finishReason, usage: await stream.usage };
console.log(
  JSON.stringify({
    whole: { text: whole.text, thoughts: whole.reasoningText, finishReason: whole.finishReason, usage: whole.usage },
    streamed,
  }),
);
