"""The command `tailrace doctor`: checks this machine, the settings and the running services, and prints a report."""

from functools import partial

from tailrace_cli.doctor import configuration, machine, network
from tailrace_cli.doctor.finding import Check
from tailrace_cli.output import write


def doctor(url: str | None, token: str, account: str = "") -> int:
    """Print every finding as soon as its check is done.

    Args:
        url: URL of the bridge; None: the environment's.
        token: API token to try; empty: none.
        account: Account that the token must be for; empty: any.

    Returns:
        The exit code: 1 if the user must change something, else 0.
    """
    sections: list[tuple[str, Check]] = [
        ("This machine", machine.machine),
        ("Packages", machine.packages),
        ("Settings", configuration.settings),
        ("Models", configuration.models),
        ("Speed of this CPU", configuration.speed),
        ("API tokens", configuration.tokens),
        # With a URL, the stack may run on another machine, so this machine's addresses are not checked.
        *([] if url else [("Addresses", network.addresses)]),
        ("The running stack", partial(network.stack, url, token, account)),
    ]
    is_healthy = True
    for title, check in sections:
        write(title)
        for finding in check():
            is_healthy = is_healthy and finding.is_ok is not False
            write(f"  {finding.mark:5} {finding.text}")
            if finding.advice:
                write(f"        {finding.advice}")
    return 0 if is_healthy else 1
