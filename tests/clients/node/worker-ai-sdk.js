// A Worker with Vercel's AI SDK over its AI binding: answers with what came back as JSON, or with a stream of text.

import { generateText, Output, streamText, tool } from "ai";
import { createWorkersAI } from "workers-ai-provider";
import { z } from "zod";

const NAME = "@cf/meta/llama-2-7b-chat-int8";
const prompt = "What is the capital of Japan?";
const getWeather = tool({
  description: "Returns the weather of a city",
  inputSchema: z.object({ city: z.string().max(20) }),
});

export default {
  async fetch(request, env) {
    const model = createWorkersAI({ binding: env.AI })(NAME);
    const asked = { model, prompt, temperature: 0, maxRetries: 0 };
    const query = new URL(request.url).searchParams;
    if (!query.has("whole")) return streamText({ ...asked, maxOutputTokens: 12 }).toTextStreamResponse();
    const output = Output.object({ schema: z.object({ city: z.string().max(20) }) });
    const whole = await generateText({ ...asked, maxOutputTokens: 12 });
    const object = await generateText({ ...asked, output, maxOutputTokens: 60 });
    const called = await generateText({ ...asked, tools: { getWeather }, toolChoice: "required", maxOutputTokens: 60 });
    const calls = called.toolCalls.map(({ toolName, input }) => [toolName, Object.keys(input)]);
    return Response.json({ whole: whole.text, object: object.output, calls });
  },
};
