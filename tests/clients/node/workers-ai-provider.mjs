// Vercel's AI SDK with Cloudflare's provider, unmodified but for the address: prints what came back as one line of JSON.

import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { createWorkersAI } from "workers-ai-provider";
import { z } from "zod";

const [baseURL, accountId, name] = process.argv.slice(2);
const toTailrace = (url, init) => fetch(String(url).replace("https://api.cloudflare.com/client/v4", baseURL), init);
const model = createWorkersAI({ accountId, apiKey: "any-token", fetch: toTailrace })(name);
const asked = { model, prompt: "What is the capital of Japan?", temperature: 0, maxRetries: 0 };
const place = Output.object({ schema: z.object({ city: z.string().max(20) }) });

const whole = await generateText({ ...asked, maxOutputTokens: 12 });

const stream = streamText({ ...asked, maxOutputTokens: 12 });
let text = "";
for await (const piece of stream.textStream) text += piece;
const usage = await stream.usage;

const object = (await generateText({ ...asked, output: place, maxOutputTokens: 60 })).output;
const objectStream = streamText({ ...asked, output: place, maxOutputTokens: 60 });
let partial;
for await (const each of objectStream.partialOutputStream) partial = each;

const cities = [];
const getWeather = tool({
  description: "Returns the weather of a city",
  inputSchema: z.object({ city: z.string().max(20) }),
  execute: async ({ city }) => {
    cities.push(city);
    return `sunny in ${city}`;
  },
});
const tools = { getWeather };
const calling = { ...asked, tools, maxOutputTokens: 60 };
const required = await generateText({ ...calling, toolChoice: "required" });
const named = streamText({ ...calling, toolChoice: { type: "tool", toolName: "getWeather" } });
await named.consumeStream();
// Two steps: the call, and the answer to its result.
const steps = await generateText({
  ...calling,
  toolChoice: "required",
  stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "auto" : "required" }),
});

console.log(
  JSON.stringify({
    whole: whole.text,
    tokens: whole.usage.outputTokens,
    text,
    streamTokens: usage.outputTokens,
    object,
    partial,
    calls: [...required.toolCalls, ...(await named.toolCalls)].map(({ toolName, input }) => [toolName, Object.keys(input)]),
    cities: cities.length,
    steps: steps.steps.map(({ finishReason }) => finishReason),
  }),
);
