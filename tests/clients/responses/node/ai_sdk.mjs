// Vercel's AI SDK with the OpenAI provider's default model: prints what came back as one line of JSON.

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const model = createOpenAI({ baseURL, apiKey: "any-token" })(name);
const prompt = "How is the weather in Oslo?";

const generated = (await generateText({ model, prompt })).text;

const streamed = streamText({ model, prompt });
let text = "";
for await (const piece of streamed.textStream) text += piece;
const reason = await streamed.finishReason;

const weather = tool({
  description: "Weather of a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const agent = await generateText({ model, prompt, tools: { weather }, stopWhen: isStepCount(3) });
const results = agent.steps.flatMap((step) => step.toolResults.map((result) => result.output));

const agentStream = streamText({ model, prompt, tools: { weather }, stopWhen: isStepCount(3) });
let agentText = "";
for await (const piece of agentStream.textStream) agentText += piece;

const schema = z.object({ city: z.string(), degrees: z.number() });
const object = (await generateText({ model, prompt, output: Output.object({ schema }) })).output;
const partial = streamText({ model, prompt, output: Output.object({ schema }) });
const objectStream = await partial.output;

// By default, the provider refers to the items of earlier replies instead of sending them.
const again = [...agent.response.messages, { role: "user", content: "Thanks" }];
const referring = (await generateText({ model, messages: [{ role: "user", content: prompt }, ...again] })).text;

const providerOptions = { openai: { store: false, reasoningSummary: "auto", forceReasoning: true } };
const thinking = await generateText({ model, prompt, providerOptions });
const messages = [{ role: "user", content: prompt }, ...thinking.response.messages, { role: "user", content: "Thanks" }];
const next = (await generateText({ model, messages, providerOptions })).text;

console.log(
  JSON.stringify({
    generated,
    text,
    reason,
    agent: agent.text,
    results,
    agentText,
    object,
    objectStream,
    referring,
    reasoning: thinking.reasoningText,
    next,
  }),
);
