// The playground: settings, the conversation, and a view of the requests and events.

import { snippets } from "./code.js";
import { Refused, events, get } from "./stream.js";

const API = "client/v4/accounts/playground/ai";
const NUMBERS = ["temperature", "max_tokens", "top_p", "top_k", "seed", "repetition_penalty"];
const MOST_EVENTS = 400;
const $ = (id) => document.getElementById(id);
// The values for a model without sampling defaults, which the fields show as placeholders.
const USUAL = Object.fromEntries(NUMBERS.map((name) => [name, $(name).placeholder]));

let turns = []; // messages of the conversation: {role, content}
let sent = []; // messages of the latest request
let running = null; // AbortController of the running reply, or null
let shownTab = "events";

/* Settings */

function body(messages) {
  const fields = { messages, stream: true };
  const system = $("system").value.trim();
  if (system) fields.messages = [{ role: "system", content: system }, ...messages];
  for (const name of NUMBERS) {
    if ($(name).value !== "") fields[name] = Number($(name).value);
  }
  return fields;
}

async function listModels() {
  try {
    const models = await get(`${API}/models/search?task=Text%20Generation`, $("token").value);
    $("model").replaceChildren(...models.map(({ name }) => new Option(name)));
    $("model").onchange = () => {
      const model = models[$("model").selectedIndex];
      $("description").textContent = model?.description ?? "";
      showDefaults(model?.properties ?? []);
      showCode();
    };
    $("model").onchange();
    say(models.length ? "Ready." : "This server has no models.");
  } catch (error) {
    say(error instanceof Refused ? explained(error) : "The bridge does not answer.", true);
  }
}

function showDefaults(properties) {
  const defaults = properties.find((each) => each.property_id === "default_parameters")?.value ?? {};
  for (const name of NUMBERS) $(name).placeholder = defaults[name] ?? USUAL[name];
}

function explained(error) {
  if (error.code === 9106 || error.code === 10000) return "The bridge requires an API token: enter it under Settings.";
  return `${error.message} (${error.code})`;
}

function say(text, isWrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", isWrong);
}

/* The conversation */

async function ask(prompt) {
  const messages = [...turns, { role: "user", content: prompt }];
  sent = messages;
  addTurn("user", prompt);
  const item = addTurn("assistant", "");
  item.classList.add("running");
  running = new AbortController();
  setRunning(true);
  $("events").textContent = "";
  const meter = new Meter();
  const path = `${API}/run/${$("model").value}`;
  let text = "";
  let isDone = false;
  try {
    const request = { body: body(messages), token: $("token").value, signal: running.signal };
    for await (const data of events(path, request)) {
      showEvent(data);
      if (data === "[DONE]") {
        isDone = true;
        break;
      }
      const event = JSON.parse(data);
      if (event.errors) throw new Refused(event.errors[0].code, event.errors[0].message);
      if (event.usage) meter.finish(event.usage);
      if (event.response) {
        meter.count();
        text += event.response;
        append(item, event.response);
      }
    }
    say(isDone ? "Ready." : "The reply ended too early.", !isDone);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error instanceof Refused ? explained(error) : "The bridge does not answer.", true);
  }
  item.classList.remove("running");
  if (text) turns = [...messages, { role: "assistant", content: text }];
  else item.remove();
  running = null;
  setRunning(false);
  showCode();
}

function addTurn(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.textContent = text;
  $("turns").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function append(item, text) {
  const list = $("turns");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  item.append(text);
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function setRunning(isRunning) {
  $("send").disabled = isRunning;
  $("stop").disabled = !isRunning;
  if (!isRunning) $("prompt").focus();
}

/** Measures and shows the time to the first token and the speed of one reply. */
class Meter {
  #started = performance.now();
  #first = null;
  #events = 0;

  count() {
    this.#first ??= performance.now();
    this.#events += 1;
    this.#show(this.#events);
  }

  finish(usage) {
    this.#show(usage.completion_tokens, `, ${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
  }

  #show(tokens, rest = "") {
    if (this.#first === null) return;
    const seconds = (performance.now() - this.#first) / 1000;
    const speed = tokens > 1 && seconds > 0 ? `, ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    $("figures").textContent = `first token after ${Math.round(this.#first - this.#started)} ms${speed}${rest}`;
  }
}

/* Events and code */

const shown = [];

function showEvent(data) {
  if ($("events").textContent === "") shown.length = 0;
  shown.push(`data: ${data}\n\n`);
  if (shown.length > MOST_EVENTS) shown.shift();
  const box = $("events");
  box.textContent = shown.join("");
  box.scrollTop = box.scrollHeight;
}

function showCode() {
  if (shownTab === "events") return;
  const model = $("model").value;
  const prompt = $("prompt").value;
  // With an empty box: the latest request, or the example before the first one.
  const latest = sent.length ? sent : [{ role: "user", content: "where is new york?" }];
  const fields = body(prompt ? [...turns, { role: "user", content: prompt }] : latest);
  $("code").textContent = snippets[shownTab]({
    origin: location.origin,
    path: `/client/v4/accounts/local/ai/run/${model}`,
    model,
    body: fields,
    hasToken: $("token").value !== "",
  });
}

function showTab(tab) {
  shownTab = tab.id.replace("tab-", "");
  for (const other of document.querySelectorAll("[role=tab]")) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  $("panel-events").hidden = shownTab !== "events";
  $("panel-code").hidden = shownTab === "events";
  $("panel-code").setAttribute("aria-labelledby", tab.id);
  showCode();
}

/* Event listeners */

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value.trim();
  if (!prompt || running || !$("settings").reportValidity()) return;
  $("prompt").value = "";
  ask(prompt);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  sent = [];
  for (const id of ["turns", "events", "figures"]) $(id).replaceChildren();
  showCode();
  $("prompt").focus();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren($("code"));
    say("Selected: copy it with the keyboard.");
  }
});
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings").addEventListener("input", showCode);
$("token").addEventListener("change", listModels);
$("prompt").addEventListener("input", showCode);
const tabs = [...document.querySelectorAll("[role=tab]")];
for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => showTab(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(index + step + tabs.length) % tabs.length];
    next.focus();
    showTab(next);
  });
}
if (matchMedia("(max-width: 44rem)").matches) $("settings-details").open = false;
listModels();
