import { cloudflare } from "@cloudflare/vite-plugin";
import { tailrace } from "tailrace/vite";
import { defineConfig } from "vite";

export default defineConfig({ plugins: [tailrace(), cloudflare()] });
