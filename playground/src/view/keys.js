// Keys of input methods, for example for Chinese and Japanese.

/**
 * Return whether a key belongs to a text that is being composed. Safari ends the composition before it reports the key, and marks
 * that key with 229.
 * @param {KeyboardEvent} event
 */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;
