// Shows openapi.json as a page: contents, and a section for each route with examples. The fields are folded.

import { copied } from "./view/copied.js";

/** @typedef {Record<string, any>} Schema */
/** @typedef {{method: string, paths: string[], described: any}} Route */

/**
 * @param {string} name
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} children
 */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/**
 * @param {Schema} schema
 * @returns {string}
 */
function typeOf(schema) {
  if (schema.enum) return schema.enum.map((/** @type {unknown} */ value) => JSON.stringify(value)).join(" | ");
  const types = [schema.type ?? []].flat().filter((type) => type !== "null");
  const inner = schema.items ? ` of ${typeOf(schema.items)}` : "";
  return (types.join(" | ") || "any") + inner;
}

const LIMITS = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", maxLength: "at most", minLength: "at least" };

/** @param {Schema} schema */
function limitsOf(schema) {
  const limits = Object.entries(LIMITS).filter(([key]) => key in schema);
  const unit = (/** @type {string} */ key) => (key.endsWith("Length") ? ` character${schema[key] === 1 ? "" : "s"}` : "");
  const texts = limits.map(([key, sign]) => `${sign} ${schema[key]}${unit(key)}`);
  if ("default" in schema) texts.push(`default ${JSON.stringify(schema.default)}`);
  return texts.join(", ");
}

/**
 * @param {string} title
 * @param {Record<string, Schema>} properties
 * @param {string[]} required
 */
function table(title, properties, required) {
  const rows = Object.entries(properties).map(([name, schema]) =>
    element("tr", {},
      element("th", { scope: "row" }, element("code", {}, name)),
      element("td", {}, typeOf(schema)),
      element("td", {}, [required.includes(name) ? "required" : "", limitsOf(schema), schema.description ?? ""]
        .filter(Boolean).join("; "))));
  const head = element("tr", {}, ...["field", "type", "meaning"].map((text) => element("th", { scope: "col" }, text)));
  return element("table", {}, element("caption", {}, title), element("thead", {}, head), element("tbody", {}, ...rows));
}

/**
 * @param {string} title
 * @param {(Node | string)[]} content
 */
const folded = (title, ...content) => element("details", {}, element("summary", {}, title), ...content);

/**
 * @param {string} title
 * @param {string} text
 */
function example(title, text) {
  const button = element("button", { type: "button", class: "small", "aria-label": `Copy ${title}` }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text)) ? "Copied" : "Not copied";
  });
  const box = element("pre", { tabindex: "0", role: "region", "aria-label": title }, text);
  return [element("div", { class: "head" }, element("h3", {}, title), button), box];
}

/** @param {Schema} schema */
function fieldsOf(schema) {
  const variants = (schema.anyOf ?? schema.oneOf ?? [schema]).filter((/** @type {Schema} */ each) => each.properties);
  return variants.map((/** @type {Schema} */ variant) => {
    const count = Object.keys(variant.properties).length;
    const title = variant.title ?? "Fields";
    return folded(`${title}: ${count} field${count === 1 ? "" : "s"}`, table(title, variant.properties, variant.required ?? []));
  });
}

/** @param {Route} route */
const idOf = ({ method, paths }) => `${method}-${paths[0].replace(/[^a-z0-9]+/gi, "-").replace(/^-|-$/g, "")}`;

/** @param {Route} route */
function section(route) {
  const { method, paths, described } = route;
  const body = described.requestBody?.content["application/json"];
  const answers = described.responses["200"]?.content ?? {};
  const parameters = Object.fromEntries((described.parameters ?? []).map(
    (/** @type {any} */ each) => [each.name, { ...each.schema, description: `in the ${each.in}` }]));
  const required = (described.parameters ?? []).filter((/** @type {any} */ each) => each.required).map((/** @type {any} */ each) => each.name);
  const statuses = Object.entries(described.responses).map(([status, { description }]) =>
    element("li", {}, element("strong", {}, status), ` ${description}`));
  const id = idOf(route);
  const title = `${method.toUpperCase()} ${paths[0]}`;
  const reply = answers["application/json"]?.example;
  const stream = answers["text/event-stream"]?.example;
  return element("section", { id },
    element("h2", {}, element("code", {}, title), element("a", { class: "anchor", href: `#${id}`, "aria-label": `Link to ${title}` }, "#")),
    element("p", {}, described.summary),
    ...paths.slice(1).map((path) => element("p", { class: "hint" }, "Also ", element("code", {}, path))),
    ...(body?.example ? example("Example body", JSON.stringify(body.example, null, 2)) : []),
    ...(reply ? [folded("Example reply", ...example("Reply", JSON.stringify(reply, null, 2)))] : []),
    ...(stream ? [folded('Example stream, with "stream": true', ...example("Stream", stream.trimEnd()))] : []),
    ...(Object.keys(parameters).length ? [folded("Parameters of path, query and headers", table("Parameters", parameters, required))] : []),
    ...(body ? fieldsOf(body.schema) : []),
    folded("Statuses", element("ul", {}, ...statuses)));
}

/**
 * Return the routes. Paths with equal descriptions are one route.
 * @param {Record<string, Record<string, any>>} paths
 */
function routesOf(paths) {
  /** @type {Map<string, Route>} */
  const routes = new Map();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, described] of Object.entries(methods)) {
      const key = JSON.stringify([method, described.summary, described.requestBody, described.responses]);
      const known = routes.get(key);
      // OpenAI's short paths come first: most clients use them.
      if (!known) routes.set(key, { method, paths: [path], described });
      else if (path.startsWith("/v1/")) Object.assign(known, { paths: [path, ...known.paths], described });
      else known.paths.push(path);
    }
  }
  return [...routes.values()];
}

/** @type {[string, (path: string) => boolean][]} */
const GROUPS = [
  ["Workers AI", (path) => path.startsWith("/client/")],
  ["OpenAI", (path) => path.startsWith("/v1/")],
  ["Worker binding", (path) => /^\/(run|ai-)/.test(path)],
  ["Health", () => true],
];

/** @param {Route[]} routes */
function show(routes) {
  let rest = routes;
  for (const [title, isIn] of GROUPS) {
    const group = rest.filter(({ paths }) => isIn(paths[0]));
    rest = rest.filter((route) => !group.includes(route));
    const links = group.map((route) => element("li", {}, element("a", { href: `#${idOf(route)}` },
      `${route.method.toUpperCase()} ${route.paths[0].replace("/client/v4/accounts/{account}", "…")}`)));
    document.getElementById("contents")?.append(element("h2", {}, title), element("ul", {}, ...links));
    document.getElementById("reference")?.append(...group.map(section));
  }
  // The sections did not exist when the browser looked for the address's anchor.
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

const about = /** @type {HTMLElement} */ (document.getElementById("about"));
try {
  const description = await (await fetch("openapi.json")).json();
  about.textContent = description.info.description;
  show(routesOf(description.paths));
} catch {
  about.textContent = "The bridge does not answer.";
}
