// Shows openapi.json as a page: a section for each path, with its fields in a table.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function typeOf(schema) {
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const types = [schema.type ?? []].flat().filter((type) => type !== "null");
  const inner = schema.items ? ` of ${typeOf(schema.items)}` : "";
  return (types.join(" | ") || "any") + inner;
}

const LIMITS = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", maxLength: "at most", minLength: "at least" };

function limitsOf(schema) {
  const limits = Object.entries(LIMITS).filter(([key]) => key in schema);
  const unit = (key) => (key.endsWith("Length") ? ` character${schema[key] === 1 ? "" : "s"}` : "");
  const texts = limits.map(([key, sign]) => `${sign} ${schema[key]}${unit(key)}`);
  if ("default" in schema) texts.push(`default ${JSON.stringify(schema.default)}`);
  return texts.join(", ");
}

function fieldsOf(schema) {
  const variants = schema.anyOf ?? schema.oneOf ?? [schema];
  return variants.map((variant) => table(variant.title ?? "Fields", variant.properties ?? {}, variant.required ?? []));
}

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

function operation(path, method, described) {
  const body = described.requestBody?.content["application/json"].schema;
  const parameters = Object.fromEntries(
    (described.parameters ?? []).map(({ name, schema, in: place }) => [name, { ...schema, description: `in the ${place}` }]));
  const required = (described.parameters ?? []).filter((parameter) => parameter.required).map(({ name }) => name);
  const answers = Object.entries(described.responses).map(([status, { description }]) =>
    element("li", {}, element("strong", {}, status), ` ${description}`));
  return element("section", {},
    element("h2", {}, element("code", {}, `${method.toUpperCase()} ${path}`)),
    element("p", {}, described.summary),
    ...(required.length || Object.keys(parameters).length ? [table("Parameters", parameters, required)] : []),
    ...(body ? fieldsOf(body) : []),
    element("details", {}, element("summary", {}, "Answers"), element("ul", {}, ...answers)));
}

try {
  const description = await (await fetch("openapi.json")).json();
  document.getElementById("about").textContent = description.info.description;
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, described] of Object.entries(methods)) {
      document.getElementById("reference").append(operation(path, method, described));
    }
  }
} catch {
  document.getElementById("about").textContent = "The bridge does not answer.";
}
