// Access to the server: the models of the account, and their parameters.

import { explained } from "./explain.js";
import { fieldsOf, listModels } from "./models.js";
import { keepAccess, keepSettings } from "./settings.js";
import { model, state, update } from "./store.js";

/** @import { Settings } from "./types.js" */

/** @type {AbortController | undefined} */
let looking;

/** List the models. Called again after a change of token or account. */
export async function connect() {
  looking?.abort();
  const controller = (looking = new AbortController());
  update({ status: "Looking for models…", problem: null });
  try {
    const found = await listModels(state.access, (status) => update({ status }), controller.signal);
    update({ ...found, fields: {}, hasModels: true });
    const names = found.models.map(({ name }) => name);
    const { model: chosen, second } = state.settings;
    change({ model: names.includes(chosen) ? chosen : (names[0] ?? ""), second: names.includes(second) ? second : "" });
    update({ status: names.length ? "Ready." : "This server has no models that generate text." });
  } catch (error) {
    if (!controller.signal.aborted) update({ status: "No access to the models.", problem: explained(error), models: [], hasModels: false });
  }
}

/** @param {Partial<Settings>} changes */
export function change(changes) {
  Object.assign(state.settings, changes);
  const chosen = model();
  if (chosen && !chosen.adapters.includes(state.settings.lora)) state.settings.lora = "";
  if (chosen && !chosen.thinks) state.settings.effort = "";
  keepSettings(state.settings);
  update();
  for (const name of [state.settings.model, state.settings.second]) if (name && !state.fields[name]) readFields(name);
}

/** @param {string} name */
async function readFields(name) {
  try {
    const found = await fieldsOf({ account: state.account, token: state.access.token }, name);
    update({ fields: { ...state.fields, [name]: found } });
  } catch {
    // Without the schema, the fields of the settings have neither ranges nor defaults. The server checks the values.
  }
}

/** @param {Partial<typeof state.access>} changes */
export function changeAccess(changes) {
  Object.assign(state.access, changes);
  keepAccess(state.access);
  update();
}

/** Return whether the model has thoughts that can be switched. */
export const canThink = () => Boolean(model()?.thinks);
