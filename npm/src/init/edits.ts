/** Changes the text of a project's files so that its development commands use a local AI binding. */

import type { ParseError } from "jsonc-parser";
import { applyEdits, modify, parse, printParseErrorCode } from "jsonc-parser";
import { Failure } from "../failure.js";

/** A file's new text, and what a user has to do by hand. Neither, if there is nothing to do. */
export interface Edit {
  text?: string;
  byHand?: string;
}

/** Programs before which `tailrace dev --` makes a difference. */
const DEV_COMMAND = /^((?:\w+=\S+\s+)*)((?:npx\s+|pnpm\s+(?:exec\s+)?|yarn\s+|bunx\s+)?wrangler\s+dev\b.*)$/s;

/** Programs that run `wrangler dev` in a way that is not changed automatically. */
const OTHER_DEV = /\bwrangler(@\S+)?\s+dev\b/;
/** What shows in a project's files that it uses this package. */
const USE = /\btailrace\s+dev\b|["']tailrace\/(vite|vitest|platform)["']/;

/** Return whether a file uses this package. A dependency alone is no use. */
export function isUse(text: string): boolean {
  return USE.test(text);
}

/**
 * Let the scripts that run `wrangler dev` run it through `tailrace dev`. Other scripts, such as `deploy`, stay as they are.
 *
 * @param text - The text of package.json.
 * @param hasWrangler - Whether the project is one that `wrangler dev` runs. It then gets a script `dev` if it has none.
 * @throws Failure - The text is not JSON.
 */
export function editPackage(text: string, hasWrangler: boolean): Edit {
  const errors: ParseError[] = [];
  const value = parse(text, errors) as { scripts?: Record<string, unknown> } | undefined;
  if (errors[0] !== undefined) throw new Failure(`package.json is invalid (${printParseErrorCode(errors[0].error)}).`);
  const scripts = Object.entries(value?.scripts ?? {});
  const changes: [string, string][] = scripts.flatMap(([name, script]) => {
    const match = typeof script === "string" ? DEV_COMMAND.exec(script.trim()) : null;
    return match ? [[name, `${match[1]}tailrace dev -- ${match[2]}`] as [string, string]] : [];
  });
  if (hasWrangler && changes.length === 0 && !scripts.some(([name]) => name === "dev"))
    changes.push(["dev", "tailrace dev"]);
  const formattingOptions = {
    insertSpaces: !/^\t/m.test(text),
    tabSize: /^( +)"/m.exec(text)?.[1]?.length ?? 2,
    eol: "\n",
  };
  let result = text;
  for (const [name, script] of changes) {
    result = applyEdits(result, modify(result, ["scripts", name], script, { formattingOptions }));
  }
  const others = scripts.filter(([name, script]) => {
    const isChanged = changes.some(([changed]) => changed === name);
    return typeof script === "string" && !isChanged && OTHER_DEV.test(script) && !isUse(script);
  });
  const names = others.map(([name]) => `"${name}"`).join(" and ");
  return {
    ...(result !== text && { text: result }),
    ...(names !== "" && { byHand: `write tailrace dev -- before wrangler dev in ${names}` }),
  };
}

/** Add the plugin before `cloudflare()` of a Vite configuration. */
export function editVite(text: string): Edit {
  if (!text.includes("@cloudflare/vite-plugin") || text.includes("tailrace/vite")) return {};
  const calls = [...text.matchAll(/\bcloudflare\(/g)];
  const inList = /([[,]\s*)cloudflare\(/.exec(text);
  if (calls.length !== 1 || inList === null || /\bconfigPath\b/.test(text)) {
    return { byHand: 'import { tailrace } from "tailrace/vite", and put tailrace() before cloudflare() in plugins' };
  }
  const added = text.replace(/([[,]\s*)cloudflare\(/, (_all, before: string) => `${before}tailrace(), cloudflare(`);
  return { text: addImport(added, 'import { tailrace } from "tailrace/vite"') };
}

/** Wrap the options of the Workers pool in a vitest configuration, and add the global setup. */
export function editVitest(text: string): Edit {
  if (text.includes("tailrace/vitest") || !/@cloudflare\/vitest-(plugin|pool-workers)/.test(text)) return {};
  const advice = {
    byHand:
      'import { tailrace } from "tailrace/vitest", pass tailrace({ … }) instead of { … } to cloudflareTest, and add ' +
      'globalSetup: ["tailrace/vitest"] to test',
  };
  const call = /\bcloudflareTest\(\s*\{/.exec(text);
  if (call === null || /\bglobalSetup\b/.test(text)) return advice;
  const open = call.index + call[0].length - 1;
  const close = closing(text, open);
  if (close === undefined) return advice;
  const wrapped = `${text.slice(0, open)}tailrace(${text.slice(open, close + 1)})${text.slice(close + 1)}`;
  const withSetup = addSetup(wrapped);
  return withSetup === undefined
    ? advice
    : { text: addImport(withSetup, 'import { tailrace } from "tailrace/vitest"') };
}

function addSetup(text: string): string | undefined {
  const setup = 'globalSetup: ["tailrace/vitest"]';
  const test = /(\btest\s*:\s*\{)(\s*)/.exec(text);
  if (test !== null) return text.replace(test[0], `${test[1]}${test[2] || " "}${setup},${test[2] || " "}`);
  const plugins = /^([ \t]*)plugins\s*:/m.exec(text);
  if (plugins !== null) return text.replace(plugins[0], `${plugins[1]}test: { ${setup} },\n${plugins[0]}`);
  return undefined;
}

/** Return the position of the brace that closes the one at `open`. Strings and comments are skipped. */
function closing(text: string, open: number): number | undefined {
  const tokens = /"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`(?:\\.|[^`\\])*`|\/\/[^\n]*|\/\*[\s\S]*?\*\/|[{}]/g;
  tokens.lastIndex = open;
  let depth = 0;
  for (let match = tokens.exec(text); match !== null; match = tokens.exec(text)) {
    if (match[0] === "{") depth++;
    if (match[0] === "}" && --depth === 0) return match.index;
  }
  return undefined;
}

/** Add an import after the last one, in the file's own style. */
function addImport(text: string, line: string): string {
  const imports = [...text.matchAll(/^import\b[^;]*?from\s*(["'])[^"']+\1(;?)[ \t]*\r?$/gm)];
  const last = imports.at(-1);
  const quoted = last?.[1] === "'" ? line.replaceAll('"', "'") : line;
  const added = `${quoted}${last && !last[2] ? "" : ";"}`;
  if (last === undefined) return `${added}\n${text}`;
  const end = last.index + last[0].trimEnd().length;
  return `${text.slice(0, end)}\n${added}${text.slice(end)}`;
}
