/** Answers the form's question. */
export const actions = {
  async default({ request, platform }) {
    const prompt = String((await request.formData()).get("prompt"));
    const { response } = await platform.env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt, max_tokens: 60 });
    return { response };
  },
};
