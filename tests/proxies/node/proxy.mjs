// A proxy as many web applications have one: Express, its compressing middleware, and a route to the bridge.

import compression from "compression";
import express from "express";
import { createProxyMiddleware } from "http-proxy-middleware";

const [host, port] = process.env.LISTEN.split(":");
const target = process.env.BRIDGE;
// Removes no-transform, for the comparison without it.
const forget = { proxyRes: (response) => (response.headers["cache-control"] = "no-cache") };

const app = express();
app.use(compression({ threshold: 0 }));
app.use("/without", createProxyMiddleware({ target, on: forget }));
app.use(createProxyMiddleware({ target }));
app.listen(Number(port), host);
