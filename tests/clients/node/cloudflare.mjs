// Cloudflare's TypeScript SDK, unmodified: prints what came back as one line of JSON.

import Cloudflare from "cloudflare";

const [baseURL, account, model] = process.argv.slice(2);
const client = new Cloudflare({ apiToken: "any-token", baseURL, maxRetries: 0 });
const fields = { account_id: account, prompt: "What is the capital of Japan?", max_tokens: 12, temperature: 0 };

const whole = await client.ai.run(model, fields);

const response = await client.ai.run(model, { ...fields, stream: true }).asResponse();
let text = "";
let isDone = false;
for (const event of (await response.text()).split("\n\n")) {
  const data = event.replace(/^data: /, "");
  if (data === "[DONE]") isDone = true;
  else if (data) text += JSON.parse(data).response;
}

let refused;
try {
  await client.ai.run("@cf/x/y", fields);
} catch (error) {
  refused = { status: error.status, code: error.errors[0].code };
}

const models = [];
for await (const { name } of client.ai.models.list({ account_id: account })) models.push(name);

const token = await client.user.tokens.verify();
console.log(JSON.stringify({ whole: whole.response, text, isDone, refused, models, token: token.status }));
