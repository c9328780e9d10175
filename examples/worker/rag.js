// Retrieval-augmented generation in a Worker: embed, keep the vectors in memory, retrieve, answer.

const EMBEDDER = "@cf/baai/bge-small-en-v1.5";
const MODEL = "@cf/meta/llama-2-7b-chat-int8";
const NOTES = [
  "Breakfast at the Heron Lodge is served from seven to half past nine in the glass house.",
  "The key of the boat shed hangs behind the map in the hall of the Heron Lodge.",
  "Dogs are welcome on the ground floor of the Heron Lodge, but not in the library.",
  "The last bus from the Heron Lodge to the station leaves at a quarter to eleven.",
  "The wireless network of the Heron Lodge is called bittern, and its password is on the back of the room key.",
];
let store; // the notes with their vectors, embedded by the first request

export default {
  async fetch(request, env) {
    const question = new URL(request.url).searchParams.get("question") ?? "When is breakfast?";
    try {
      store ??= await embedded(env, NOTES);
      const [asked] = await embedded(env, [question]);
      const sources = store
        .map(({ text, vector }) => ({ text, score: dot(vector, asked.vector) }))
        .sort((a, b) => b.score - a.score)
        .slice(0, 2);
      const notes = sources.map(({ text }) => text).join("\n");
      const { response } = await env.AI.run(MODEL, {
        messages: [
          { role: "system", content: `Answer in one sentence with the facts of these notes:\n${notes}` },
          { role: "user", content: question },
        ],
        temperature: 0,
        max_tokens: 60,
      });
      return Response.json({ answer: response, sources });
    } catch (error) {
      return Response.json({ name: error.name, message: error.message }, { status: 502 });
    }
  },
};

async function embedded(env, texts) {
  const { data } = await env.AI.run(EMBEDDER, { text: texts });
  return texts.map((text, index) => ({ text, vector: data[index] }));
}

// The vectors have length 1, so their product is the cosine of the angle between them.
function dot(a, b) {
  return a.reduce((sum, value, index) => sum + value * b[index], 0);
}
