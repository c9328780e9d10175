// Colours for code: the lexer's tokens as elements. No HTML is generated.

import { SugarHigh, tokenize } from "sugar-high/core";
import * as c from "sugar-high/lang/c";
import * as cpp from "sugar-high/lang/cpp";
import * as go from "sugar-high/lang/go";
import * as html from "sugar-high/lang/html";
import * as java from "sugar-high/lang/java";
import * as javascript from "sugar-high/lang/javascript";
import * as json from "sugar-high/lang/json";
import * as python from "sugar-high/lang/python";
import * as rust from "sugar-high/lang/rust";
import * as shell from "sugar-high/lang/shell";
import * as sql from "sugar-high/lang/sql";
import * as typescript from "sugar-high/lang/typescript";
import * as yaml from "sugar-high/lang/yaml";

const MAX_LENGTH = 20_000;
/** @type {Record<string, any>} */
const LANGUAGES = {
  bash: shell, c, cpp, "c++": cpp, go, html, java, javascript, js: javascript, json,
  jsx: javascript, mjs: javascript, py: python, python, rs: rust, rust, sh: shell, shell, sql, ts: typescript, tsx: typescript,
  typescript, xml: html, yaml, yml: yaml, zsh: shell,
};
/** @type {Record<string, string>} The classes of style.css. Other kinds of tokens have no colour. */
const CLASSES = { keyword: "key", string: "str", comment: "com", class: "typ", entity: "fun", property: "prp" };

/**
 * Return the parts of a program with their classes; undefined for a language without a lexer.
 * @param {string} text
 * @param {string} language
 * @returns {[string | undefined, string][] | undefined}
 */
export function highlighted(text, language) {
  const lexer = LANGUAGES[language.toLowerCase()];
  if (!lexer || text.length > MAX_LENGTH) return undefined;
  /** @type {[string | undefined, string][]} */
  const parts = [];
  try {
    for (const [kind, value] of tokenize(text, lexer)) {
      const name = CLASSES[SugarHigh.TokenTypes[kind]];
      const last = parts.at(-1);
      if (last && last[0] === name) last[1] += value;
      else parts.push([name, value]);
    }
  } catch {
    return undefined;
  }
  // Not a character of the program may be lost or changed.
  return parts.map(([, value]) => value).join("") === text ? parts : undefined;
}
