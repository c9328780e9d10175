"""Explains each error of the hub's client in one sentence with the remedy."""

import errno
import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from inference_server.errors import first_line
from inference_server.weights.disk.space import is_full
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"


@contextmanager
def explaining_the_hub(
    hub_id: str, revision: str | None, *, stored: str = "is not in the local cache"
) -> Iterator[None]:
    """Turn the exceptions of a download in the `with` block into a ConfigurationError with the remedy.

    Args:
        hub_id: The repository's id.
        revision: The revision in the catalog; None: the main branch.
        stored: A clause about the model's state in the local cache, for errors of the connection.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except GatedRepoError:
        raise ConfigurationError(gated(hub_id)) from None
    except RevisionNotFoundError:
        raise ConfigurationError(f"{hub_id} has no revision {revision!r}: correct the catalog's source") from None
    except RepositoryNotFoundError:
        raise ConfigurationError(
            f"the hub has no model {hub_id}, or it is private: check the id, and set HF_TOKEN if it needs one"
        ) from None
    except Exception as error:  # the HTTP client's exceptions have no common class, and they change between releases
        logger.debug("downloading %s failed", hub_id, exc_info=True)
        raise ConfigurationError(_sentence(hub_id, error, stored)) from None


def _sentence(hub_id: str, error: Exception, stored: str) -> str:
    chain = list(_causes(error))
    if is_untrusted(error):
        return _untrusted(hub_id)
    if full := next((each for each in chain if is_full(each)), None):
        return (
            f"downloading {hub_id} failed: the disk is full ({full}): free disk space, "
            "or set HF_HOME to a folder on a larger disk"
        )
    if denied := next((each for each in chain if isinstance(each, OSError) and each.errno in _UNWRITABLE), None):
        return (
            f"cannot write to the hub's cache, {denied.filename} ({denied.strerror}): "
            "set HF_HOME to a folder that can be written"
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            f"{hub_id} {stored} and the hub could not be reached: unset HF_HUB_OFFLINE or check the network, "
            "or point the catalog's source at a folder"
        )
    if isinstance(error, HfHubHTTPError):
        return f"downloading {hub_id} failed: {_answer(error)}"
    if any(type(each).__name__ == "ProxyError" for each in chain):
        return (
            f"downloading {hub_id} failed: the proxy in HTTPS_PROXY refused the connection or did not answer "
            f"({first_line(error)}): correct HTTPS_PROXY, or list the hub in NO_PROXY"
        )
    if any(type(each).__name__ in ("ConnectError", "ConnectTimeout") for each in chain):
        return (
            f"{hub_id} {stored} and the hub could not be reached at {constants.ENDPOINT} ({first_line(error)}): "
            "check the network, or set HTTPS_PROXY or HF_ENDPOINT, or point the catalog's source at a folder"
        )
    return f"downloading {hub_id} failed: {first_line(error)}"


def gated(hub_id: str) -> str:
    """Return the sentence about a model whose licence has not been accepted."""
    return (
        f"{hub_id} is gated: accept its licence on https://huggingface.co/{hub_id}, then set HF_TOKEN to an access token "
        "of that account"
    )


def _answer(error: HfHubHTTPError) -> str:
    """Return the end of the sentence about an HTTP error of the hub, by its status."""
    status = error.response.status_code
    if status >= 500:
        return f"the hub answered {status}: try again later"
    if status == 429:
        return "the hub answered 429, too many requests: try again later, or set HF_TOKEN for a higher limit"
    if status in (401, 403):
        return f"the hub answered {status}: HF_TOKEN is not valid, or lacks the right to read this model"
    return first_line(error)


def is_untrusted(error: BaseException) -> bool:
    """Return True if a certificate that is not trusted caused an error."""
    return any(isinstance(each, ssl.SSLCertVerificationError) or _UNTRUSTED in str(each) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _untrusted(hub_id: str) -> str:
    return (
        f"downloading {hub_id} failed: the certificate of the hub, or of a proxy before it, is not trusted: set SSL_CERT_FILE "
        "to a file (PEM) with the certificate of the authority that signed it"
    )
