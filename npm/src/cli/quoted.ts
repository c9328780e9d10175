/** Quotes words for the shell of Windows. */

/**
 * Return a word as cmd.exe and the programs of Windows read it: in quotation marks if it has spaces or characters with a meaning.
 *
 * Backslashes before a quotation mark are doubled. Variables such as %PATH% are replaced in quotation marks too.
 */
export function quoted(word: string): string {
  if (/^[\w@+:.,/\\=-]+$/.test(word)) return word;
  return `"${word.replace(/(\\*)"/g, '$1$1\\"').replace(/(\\+)$/, "$1$1")}"`;
}
