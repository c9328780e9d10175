// Markdown as elements. No HTML is ever parsed: the lexer's tokens become elements with text, so that markup in a reply is shown
// as text. Only links to web pages and mail addresses are links.

import { Lexer } from "marked";
import { useMemo } from "preact/hooks";
import { CodeBlock } from "./CodeBlock.jsx";

/** @import { Token, Tokens } from "marked" */
/** @import { ComponentChildren } from "preact" */

const MAX_DEPTH = 30;
const MAX_LENGTH = 200_000;
/** @type {Record<string, string>} */
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", hellip: "…", mdash: "—", ndash: "–", copy: "©" };

/** @param {string} text */
export const decoded = (text) =>
  text.replace(/&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([a-z]{2,6}));/g, (whole, decimal, hex, name) => {
    if (name) return ENTITIES[name] ?? whole;
    const point = decimal ? Number(decimal) : Number.parseInt(hex, 16);
    return point && point <= 0x10ffff && (point < 0xd800 || point > 0xdfff) ? String.fromCodePoint(point) : "\ufffd";
  });

/**
 * Return a link's address if it is one of a web page or a mail address; otherwise an empty string.
 * @param {string} href
 */
export function safeAddress(href) {
  try {
    const url = new URL(decoded(href));
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : "";
  } catch {
    return "";
  }
}

/** @param {{text: string}} props */
export function Markdown({ text }) {
  return useMemo(() => {
    if (text.length > MAX_LENGTH) return <pre class="plain">{text}</pre>;
    try {
      return <div class="markdown">{all(new Lexer({ gfm: true, breaks: true }).lex(text), 0)}</div>;
    } catch {
      // Thousands of nested quotations or lists exceed the stack.
      return <pre class="plain">{text}</pre>;
    }
  }, [text]);
}

/**
 * @param {Token[] | undefined} tokens
 * @param {number} depth
 * @returns {ComponentChildren}
 */
const all = (tokens = [], depth) => tokens.map((token) => element(token, depth + 1));

/**
 * @param {Token} token
 * @param {number} depth
 * @returns {ComponentChildren}
 */
function element(token, depth) {
  if (depth > MAX_DEPTH) return token.raw;
  // A block's direction is that of its first letter. What is inside follows, so that lists keep their numbers on one side.
  const direction = depth === 1 ? "auto" : undefined;
  const inner = () => all(/** @type {any} */ (token).tokens, depth);
  switch (token.type) {
    case "space":
    case "def":
    case "checkbox":
      return null;
    case "paragraph":
      return <p dir={direction}>{inner()}</p>;
    case "heading": {
      const Level = /** @type {"h3"} */ (`h${Math.min(6, token.depth + 2)}`);
      return <Level dir={direction}>{inner()}</Level>;
    }
    case "code":
      return <CodeBlock text={token.text} language={(token.lang ?? "").split(/\s/)[0]} />;
    case "blockquote":
      return <blockquote dir={direction}>{inner()}</blockquote>;
    case "list":
      return list(/** @type {Tokens.List} */ (token), depth);
    case "table":
      return table(/** @type {Tokens.Table} */ (token), depth);
    case "hr":
      return <hr />;
    case "br":
      return <br />;
    case "strong":
      return <strong>{inner()}</strong>;
    case "em":
      return <em>{inner()}</em>;
    case "del":
      return <del>{inner()}</del>;
    case "codespan":
      return <code>{token.text}</code>;
    case "link":
      return link(/** @type {Tokens.Link} */ (token), inner());
    case "image":
      // The page loads nothing from other hosts, so that a picture is a link.
      return link(/** @type {Tokens.Image} */ (token), `[picture${token.text ? `: ${decoded(token.text)}` : ""}]`);
    case "text":
      return "tokens" in token && token.tokens ? inner() : decoded(token.text);
    case "escape":
      return token.text;
    default:
      return token.raw;
  }
}

/**
 * @param {{href: string}} token
 * @param {ComponentChildren} content
 */
function link({ href }, content) {
  const address = safeAddress(href);
  return address ? <a href={address} target="_blank" rel="noopener noreferrer nofollow" title={address}>{content}</a> : content;
}

/**
 * @param {Tokens.List} token
 * @param {number} depth
 */
function list(token, depth) {
  const items = token.items.map((item) => (
    <li class={item.task ? "task" : undefined}>
      {item.task && <input type="checkbox" disabled checked={item.checked} aria-label={item.checked ? "Done" : "Open"} />}
      {all(item.tokens, depth)}
    </li>
  ));
  const direction = depth === 1 ? "auto" : undefined;
  return token.ordered ? <ol dir={direction} start={Number(token.start)}>{items}</ol> : <ul dir={direction}>{items}</ul>;
}

/**
 * @param {Tokens.Table} token
 * @param {number} depth
 */
function table(token, depth) {
  const cells = (/** @type {Tokens.TableCell[]} */ row, /** @type {"th" | "td"} */ Cell) => (
    <tr>
      {row.map((cell) => (
        <Cell class={cell.align ? `align-${cell.align}` : undefined} scope={Cell === "th" ? "col" : undefined}>
          {all(cell.tokens, depth)}
        </Cell>
      ))}
    </tr>
  );
  return (
    <div class="wide" tabIndex={0} role="region" aria-label="Table">
      <table dir="auto">
        <thead>{cells(token.header, "th")}</thead>
        <tbody>{token.rows.map((row) => cells(row, "td"))}</tbody>
      </table>
    </div>
  );
}
