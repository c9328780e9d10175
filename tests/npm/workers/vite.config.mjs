import { cloudflare } from "@cloudflare/vite-plugin";
import { tailrace } from "tailrace/vite";

const local = tailrace();
const auxiliaryWorkers = [{ configPath: "other.toml", config: local.worker }];

export default { plugins: [local, cloudflare({ auxiliaryWorkers })], logLevel: "info" };
