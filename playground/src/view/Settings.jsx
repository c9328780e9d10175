// The settings: the prompt and the parameters, the form of the reply, tools, and the access to the server.

import { canThink, change, changeAccess, connect } from "../logic/access.js";
import { defaults, isShown, jsonFault, labelOf, NO_NUMBER, numberFault, stepOf } from "../logic/settings.js";
import { fields, model, state, update } from "../logic/store.js";

/** @import { Schema } from "../logic/types.js" */

const TOOLS_EXAMPLE = `[{"name": "weather", "description": "Weather of a city",
  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}]`;
const SCHEMA_EXAMPLE = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}';
// Without the server's description of the model, these fields are shown.
/** @type {Record<string, Schema>} */
const USUAL = { temperature: { type: "number" }, max_tokens: { type: "integer" }, top_p: { type: "number" }, seed: { type: "integer" } };

export function Settings() {
  const { settings } = state;
  const known = Object.entries(fields()).filter(([name, schema]) => isShown(name, schema));
  const numbers = known.length ? known : Object.entries(USUAL);
  const reset = () => (update({ bad: {} }), change({ numbers: defaults().numbers, stop: "", effort: "", lora: "" }));
  return (
    <form id="settings" class="settings" aria-label="Settings" noValidate onSubmit={(event) => event.preventDefault()}>
      {model()?.description && <p class="hint">{model()?.description}</p>}
      <Area id="system" label="System prompt" value={settings.system} rows={3} placeholder="None" onInput={(system) => change({ system })} />
      <fieldset>
        <legend>Parameters</legend>
        <div class="grid">
          {numbers.map(([name, schema]) => (
            <NumberField key={name} name={name} schema={schema} />
          ))}
        </div>
        <Area id="stop" label="Stop strings, one a line" value={settings.stop} rows={1} placeholder="None" onInput={(stop) => change({ stop })} />
        {canThink() && (
          <Choice label="Thinking" value={settings.effort} onChange={(effort) => change({ effort })}
            options={[["", "The model's default"], ["none", "Off"], ["low", "Low"], ["medium", "Medium"], ["high", "High"]]} />
        )}
        {!!model()?.adapters.length && (
          <Choice label="LoRA adapter" value={settings.lora} onChange={(lora) => change({ lora })}
            options={[["", "None"], .../** @type {[string, string][]} */ (model()?.adapters.map((name) => [name, name]) ?? [])]} />
        )}
        <button type="button" class="small" onClick={reset}>
          Reset the parameters
        </button>
      </fieldset>
      <fieldset>
        <legend>Form of the reply</legend>
        <Choice label="Format" value={settings.format} onChange={(format) => change({ format: /** @type {any} */ (format) })}
          options={[["text", "Text"], ["json_object", "JSON"], ["json_schema", "JSON with a schema"]]} />
        {settings.format === "json_schema" && (
          <Area id="schema" label="JSON Schema" value={settings.schema} rows={5} placeholder={SCHEMA_EXAMPLE} isCode
            fault={jsonFault(settings.schema, "object")} onInput={(schema) => change({ schema })} />
        )}
        <Area id="tools" label="Tools" value={settings.tools} rows={3} placeholder={TOOLS_EXAMPLE} isCode
          fault={jsonFault(settings.tools, "array")} onInput={(tools) => change({ tools })} />
        <Choice label="API" value={settings.api} onChange={(api) => change({ api: /** @type {any} */ (api) })}
          options={[["run", "Workers AI: /ai/run"], ["chat", "OpenAI: /v1/chat/completions"]]} />
      </fieldset>
      <Access />
    </form>
  );
}

/** @param {{name: string, schema: Schema}} props */
function NumberField({ name, schema }) {
  const value = state.settings.numbers[name] ?? "";
  const fault = state.bad[name] ? NO_NUMBER : numberFault(value, schema);
  const longest = name === "max_tokens" && model()?.longest ? `at most ${model()?.longest}` : "";
  return (
    <div class="field">
      <label for={name}>{labelOf(name)}</label>
      <input
        id={name}
        type="number"
        inputMode="decimal"
        min={schema.minimum ?? schema.exclusiveMinimum}
        max={schema.maximum}
        step={stepOf(schema)}
        placeholder={schema.default === undefined ? longest || "default" : String(schema.default)}
        title={schema.description}
        value={value}
        aria-invalid={fault ? "true" : undefined}
        aria-describedby={fault ? `${name}-fault` : undefined}
        onInput={(event) => {
          const { value: text, validity } = event.currentTarget;
          // The text of a field that is no number yet, such as "-", cannot be read, and must not be overwritten.
          update({ bad: { ...state.bad, [name]: validity.badInput } });
          change({ numbers: { ...state.settings.numbers, [name]: text } });
        }}
      />
      {fault && (
        <span id={`${name}-fault`} class="fault">
          {fault}
        </span>
      )}
    </div>
  );
}

/** @param {{id: string, label: string, value: string, rows: number, placeholder: string, isCode?: boolean, fault?: string, onInput: (text: string) => void}} props */
const Area = ({ id, label, value, rows, placeholder, isCode = false, fault = "", onInput }) => (
  <div class="field">
    <label for={id}>{label}</label>
    <textarea id={id} class={isCode ? "mono" : ""} dir={isCode ? "ltr" : "auto"} rows={rows} placeholder={placeholder} value={value}
      spellcheck={!isCode} aria-invalid={fault ? "true" : undefined} aria-describedby={fault ? `${id}-fault` : undefined}
      onInput={(event) => onInput(event.currentTarget.value)} />
    {fault && (
      <span id={`${id}-fault`} class="fault">
        {fault}
      </span>
    )}
  </div>
);

/** @param {{label: string, value: string, options: [string, string][], onChange: (value: string) => void}} props */
const Choice = ({ label, value, options, onChange }) => (
  <label>
    {label}
    <select aria-label={label} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
      {options.map(([key, text]) => (
        <option value={key} selected={key === value}>
          {text}
        </option>
      ))}
    </select>
  </label>
);

function Access() {
  const { access, account } = state;
  return (
    <fieldset>
      <legend>Access</legend>
      <label for="token">
        API token
        <input id="token" type="password" autocomplete="off" placeholder="If the server requires one" value={access.token}
          onInput={(event) => changeAccess({ token: event.currentTarget.value.trim() })} onChange={connect} />
      </label>
      <label for="account">
        Account
        <input id="account" autocomplete="off" spellcheck={false} placeholder={account ? `From the token: ${account}` : "From the token"} value={access.account}
          onInput={(event) => changeAccess({ account: event.currentTarget.value.trim() })} onChange={connect} />
      </label>
      <label class="check">
        <input type="checkbox" checked={access.isRemembered} onChange={(event) => changeAccess({ isRemembered: event.currentTarget.checked })} />
        Remember the token in this browser
      </label>
      <p class="hint">Otherwise the token is forgotten when this tab is closed.</p>
    </fieldset>
  );
}
