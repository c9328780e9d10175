/**
 * Provides the miniflare plugin that replaces the AI binding with one that calls Tailrace.
 *
 * miniflare imports this module by the name or the path in `dev.plugin.package` of a binding, and uses `plugins`.
 */

import { createHash } from "node:crypto";
import { defaultToken, defaultUrl } from "./address.js";
import type { LocalBinding } from "./miniflare.js";
import { bindingsOf, callersMiniflare } from "./miniflare.js";

/** Options of a binding: where its requests go. Both may be absent. */
export interface TailraceOptions {
  /** URL of the bridge. Default: the variable TAILRACE_URL, or http://127.0.0.1:8787. */
  url?: string;
  /** API token. Default: the variable TAILRACE_TOKEN, or "local-token". */
  token?: string;
}

/** workerd's module of the class `Ai`. */
const AI_MODULE = "cloudflare-internal:ai-api";

/** Return the URL and the token of a binding, and a service name that is equal only for equal addresses. */
function target({ name, options }: LocalBinding): { url: URL; token: string; service: string } {
  const text = options.url ?? defaultUrl();
  const token = options.token ?? defaultToken();
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !["http:", "https:"].includes(url.protocol) || !["", "/"].includes(url.pathname)) {
    throw new TypeError(`The binding ${name} needs Tailrace's URL in the form http://host:port, but has ${text}.`);
  }
  const digest = createHash("sha256").update(`${url.origin} ${token}`).digest("hex").slice(0, 12);
  return { url, token, service: `tailrace:${digest}` };
}

/** Return workerd's description of the server at the binding's address. */
function service(binding: LocalBinding): object {
  const { url, token, service: name } = target(binding);
  const http = { injectRequestHeaders: [{ name: "Authorization", value: `Bearer ${token}` }] };
  if (url.protocol === "http:") return { name, external: { address: `${url.hostname}:${url.port || 80}`, http } };
  const tls = { options: http, tlsOptions: { trustBrowserCas: true }, certificateHost: url.hostname };
  return { name, external: { address: `${url.hostname}:${url.port || 443}`, https: tls } };
}

const anything = {
  parse: (value: unknown): unknown => value,
  safeParse: (value: unknown): object => ({ success: true, data: value }),
};

const tailrace = {
  // miniflare 4 parses options with this object, as it would with a schema of zod. miniflare 5 has no such step.
  options: anything,
  bindingTypeDescription: "AI (Tailrace)",

  /** Return bindings of workerd's own class `Ai`, whose requests go to Tailrace. */
  async getBindings(options: unknown): Promise<object[]> {
    return bindingsOf(options).map((binding) => ({
      name: binding.name,
      wrapped: {
        moduleName: AI_MODULE,
        innerBindings: [{ name: "fetcher", service: { name: target(binding).service } }],
      },
    }));
  },

  /** Return the bindings that getPlatformProxy passes to Node: proxies of the bindings in workerd. */
  async getNodeBindings(options: unknown): Promise<Record<string, object>> {
    const names = bindingsOf(options).map(({ name }) => name);
    if (names.length === 0) return {};
    const { ProxyNodeBinding } = await callersMiniflare(new Error());
    return Object.fromEntries(names.map((name) => [name, new ProxyNodeBinding()]));
  },

  /** Return the services that the bindings call. */
  async getServices({ options }: { options: unknown }): Promise<object[]> {
    return bindingsOf(options).map(service);
  },
};

/** The plugins of this package, by the name in `dev.plugin.name`. */
export const plugins = { tailrace };
