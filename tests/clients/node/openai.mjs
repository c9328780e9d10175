// OpenAI's Node SDK, unmodified: prints what came back as one line of JSON.

import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ apiKey: "any-token", baseURL, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of Japan?" }];
const fields = { model, messages, max_tokens: 12, temperature: 0 };

const whole = await client.chat.completions.create(fields);

const stream = await client.chat.completions.create({ ...fields, stream: true, stream_options: { include_usage: true } });
let text = "";
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}

let refused;
try {
  await client.chat.completions.create({ ...fields, model: "@cf/x/y" });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, code: error.code };
}

const models = [];
for await (const { id } of client.models.list()) models.push(id);
console.log(JSON.stringify({ whole: whole.choices[0].message.content, text, usage, refused, models }));
