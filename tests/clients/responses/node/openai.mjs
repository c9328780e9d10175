// OpenAI's Node SDK and the Responses API: prints what came back as one line of JSON.

import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ apiKey: "any-token", baseURL, maxRetries: 0 });
const input = "How is the weather in Oslo?";

const whole = (await client.responses.create({ model, input })).output_text;

const stream = client.responses.stream({ model, input });
let text = "";
stream.on("response.output_text.delta", (event) => (text += event.delta));
const final = (await stream.finalResponse()).output_text;

const Weather = z.object({ city: z.string(), degrees: z.number() });
const format = zodTextFormat(Weather, "weather");
const parsed = (await client.responses.parse({ model, input, text: { format } })).output_parsed;

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", name: "get_weather", parameters, strict: false }];
const first = await client.responses.create({ model, input, tools });
const made = first.output.find((item) => item.type === "function_call");
const call = { name: made.name, arguments: JSON.parse(made.arguments) };
const result = { type: "function_call_output", call_id: made.call_id, output: "sunny" };
const items = [{ role: "user", content: input }, ...first.output, result];
const after = (await client.responses.create({ model, input: items, tools })).output_text;

let refused;
try {
  await client.responses.create({ model, input, previous_response_id: "resp_1" });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, param: error.param };
}
console.log(JSON.stringify({ whole, text, final, parsed, call, after, refused }));
