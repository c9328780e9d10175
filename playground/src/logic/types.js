// The shapes of the data that the modules share.

/** @typedef {{id: string, name: string, arguments: string}} ToolCall A call: `arguments` is JSON text. */
/** @typedef {{prompt_tokens: number, completion_tokens: number, total_tokens?: number}} Usage */

/**
 * Why a reply ended. "running" and "waiting" have no end yet. "lost" is a broken connection, "closed" a page that was
 * closed during the reply, and "failed" an error that the server reported.
 * @typedef {"waiting" | "running" | "stop" | "length" | "window" | "tools" | "stopped" | "lost" | "closed" | "failed"} Finish
 */

/**
 * One model's answer.
 * @typedef {object} Reply
 * @property {string} model
 * @property {string} text
 * @property {string} thoughts
 * @property {ToolCall[]} calls
 * @property {Finish} finish
 * @property {string} [note] A sentence about a failure.
 * @property {Usage} [usage]
 * @property {number} [firstMs] Milliseconds to the first token.
 * @property {number} [seconds] Seconds from the first token to the last one.
 * @property {number} tokens Generated tokens, counted or from `usage`.
 */

/**
 * A turn of a conversation. Turns are a tree: an edited question and a repeated reply are siblings of the earlier ones.
 * @typedef {object} Turn
 * @property {string} id
 * @property {string | null} parent
 * @property {"user" | "assistant" | "tool"} role
 * @property {number} at Time of creation in milliseconds.
 * @property {number} [changed] Time of the latest change in milliseconds.
 * @property {string} [text] Of a question or of a tool's result.
 * @property {string} [callId] The call that a tool's result answers.
 * @property {string} [name] The tool's name.
 * @property {Reply[]} [replies] One, or two of models side by side.
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} created
 * @property {number} updated
 * @property {Record<string, Turn>} turns
 * @property {string[]} [removed] Ids of turns that were removed, so that no other tab brings them back.
 * @property {string | null} leaf Last turn of the shown branch.
 * @property {string | null} from First turn that is sent; null: the first of all.
 */

/** @typedef {Record<string, any>} Schema */
/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string} description
 * @property {number} window Tokens of prompt and reply together; 0 if unknown.
 * @property {number} room Tokens of the longest prompt; 0 if unknown.
 * @property {number} longest Tokens of the longest reply; 0 if unknown.
 * @property {boolean} thinks
 * @property {string[]} adapters
 */

/**
 * The settings that the browser keeps.
 * @typedef {object} Settings
 * @property {string} model
 * @property {string} second Model beside the first one; empty: none.
 * @property {"run" | "chat"} api
 * @property {string} system
 * @property {Record<string, string>} numbers Texts of the number fields, by parameter.
 * @property {string} stop One stop string a line.
 * @property {"text" | "json_object" | "json_schema"} format
 * @property {string} schema JSON Schema as text.
 * @property {string} tools Definitions as JSON text.
 * @property {string} effort
 * @property {string} lora
 * @property {"" | "light" | "dark"} theme
 */

export {};
