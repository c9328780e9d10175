/** Asks the agent over a WebSocket, as `useAgent` does in a browser: node ask.mjs URL QUESTION */
import { AgentClient } from "agents/client";

const [url, question] = process.argv.slice(2);
const client = new AgentClient({ agent: "assistant", name: "websocket", host: new URL(url).host, protocol: "ws" });
console.log(await client.call("ask", [question]));
client.close();
