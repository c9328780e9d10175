// Uses the bindings in Node: node platform.mjs CONFIGURATION. Prints one JSON object.

import { getPlatformProxy } from "tailrace/platform";

const MODEL = "@cf/meta/llama-2-7b-chat-int8";
const INPUTS = { prompt: "What is the capital of Japan?", max_tokens: 12, temperature: 0 };

const { env, dispose } = await getPlatformProxy({ configPath: process.argv[2] });
const { response } = await env.AI.run(MODEL, INPUTS);
const stream = await env.AI.run(MODEL, { ...INPUTS, stream: true });
const text = await new Response(stream).text();
const { message } = await env.AI.run("@cf/no/such-model", INPUTS).catch((error) => error);
console.log(JSON.stringify({ response, text, message, id: await env.AI.lastRequestId }));
await dispose();
