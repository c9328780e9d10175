// Parsers of event streams, unmodified: prints the text that each read from one stream as one line of JSON.

import { EventSource } from "eventsource";
import OpenAI from "openai";

const [host, model] = process.argv.slice(2);
const fields = { max_tokens: 12, temperature: 0, stream: true };
const prompt = "What is the capital of Japan?";

// The reference implementation of a browser's EventSource for Node. Its fetch may send a body.
function eventSource() {
  const { promise, resolve, reject } = Promise.withResolvers();
  const body = JSON.stringify({ ...fields, prompt });
  const post = (url, init) => fetch(url, { ...init, method: "POST", body });
  const source = new EventSource(`${host}/client/v4/accounts/0123/ai/run/${model}`, { fetch: post });
  let text = "";
  source.onmessage = ({ data }) => {
    if (data !== "[DONE]") return (text += JSON.parse(data).response);
    source.close();
    resolve(text);
  };
  source.onerror = (error) => reject(new Error(error.message));
  return promise;
}

async function openai() {
  const client = new OpenAI({ apiKey: "any-token", baseURL: `${host}/v1`, maxRetries: 0 });
  const messages = [{ role: "user", content: prompt }];
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...fields, model, messages })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  return text;
}

console.log(JSON.stringify({ eventSource: await eventSource(), openai: await openai() }));
