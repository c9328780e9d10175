/** Describes the part of wrangler that this package uses. The type check of a project uses wrangler's own description. */
declare module "wrangler" {
  export interface GetPlatformProxyOptions {
    environment?: string;
    configPath?: string;
    envFiles?: string[];
    persist?: boolean | { path: string };
    remoteBindings?: boolean;
  }
  export interface PlatformProxy<Env = Record<string, unknown>, CfProperties extends Record<string, unknown> = any> {
    env: Env;
    cf: CfProperties;
    ctx: object;
    caches: object;
    dispose: () => Promise<void>;
  }
  export function getPlatformProxy<Env, CfProperties extends Record<string, unknown>>(
    options?: GetPlatformProxyOptions,
  ): Promise<PlatformProxy<Env, CfProperties>>;
}
