"""Splits TAILRACE_GRPC_ADDRESS into the targets of gRPC channels. Does not look up names."""

# Prefixes of targets in gRPC's own notation. Such a target is passed on unchanged; only a prefix dns:/// is removed.
GRPC_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:")


def split_targets(text: str) -> tuple[str, ...]:
    """Return the addresses of a comma-separated list, without a prefix dns:///.

    Any other target in gRPC's notation, which may have commas, stays whole.
    """
    parts = [part.strip().removeprefix("dns:///") for part in text.split(",")]
    if parts[0].startswith(GRPC_SCHEMES):
        return (text,)
    return tuple(part for part in parts if part)
