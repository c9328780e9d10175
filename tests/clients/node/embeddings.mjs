// The embeddings of OpenAI's SDK and of Vercel's AI SDK with both providers: prints each client's vectors as JSON.

import { createOpenAI } from "@ai-sdk/openai";
import { embed, embedMany } from "ai";
import OpenAI from "openai";
import { createWorkersAI } from "workers-ai-provider";

const [host, name, accountId] = process.argv.slice(2);
const values = ["where is new york?", "the city on the Hudson", "a recipe for bread"];
const toTailrace = (url, init) => fetch(String(url).replace("https://api.cloudflare.com", host), init);

const sdk = new OpenAI({ apiKey: "any-token", baseURL: `${host}/v1`, maxRetries: 0 });
const workersai = createWorkersAI({ accountId, apiKey: "any-token", fetch: toTailrace }).textEmbedding(name);
const openai = createOpenAI({ apiKey: "any-token", baseURL: `${host}/v1` }).textEmbeddingModel(name);
const many = async (model) => (await embedMany({ model, values, maxRetries: 0 })).embeddings;

console.log(
  JSON.stringify({
    openai: (await sdk.embeddings.create({ model: name, input: values })).data.map(({ embedding }) => embedding),
    "ai sdk, openai": await many(openai),
    "ai sdk, cloudflare": await many(workersai),
    "ai sdk, cloudflare, one": [(await embed({ model: workersai, value: values[0], maxRetries: 0 })).embedding],
  }),
);
