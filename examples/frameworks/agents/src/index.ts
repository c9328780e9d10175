import { Agent, callable, getAgentByName, routeAgentRequest } from "agents";

type State = { questions: number };

/** An agent is a Durable Object. Its state survives a restart, and its AI binding is the Worker's. */
export class Assistant extends Agent<Env, State> {
  initialState: State = { questions: 0 };

  /** Answer one question, and count it. */
  @callable()
  async ask(prompt: string) {
    const { response } = await this.env.AI.run("@cf/meta/llama-2-7b-chat-int8", { prompt, max_tokens: 60 });
    this.setState({ questions: this.state.questions + 1 });
    return { response, questions: this.state.questions };
  }
}

export interface Env {
  AI: Ai;
  Assistant: DurableObjectNamespace<Assistant>;
}

export default {
  async fetch(request: Request, env: Env) {
    const routed = await routeAgentRequest(request, env);
    if (routed) return routed;
    const prompt = new URL(request.url).searchParams.get("prompt") ?? "Where is New York?";
    const assistant = await getAgentByName(env.Assistant, "example");
    return Response.json(await assistant.ask(prompt));
  },
};
