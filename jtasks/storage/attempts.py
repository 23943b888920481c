"""One operation on a bucket: again while the store does not answer, and one message that says what is wrong.

What trying again cannot mend is a ConfigError at once: a bucket that does not exist, credentials, a wrong address.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from jtasks.errors import ConfigError, StorageError, printable

T = TypeVar("T")

PATIENCE = "JTASKS_PATIENCE"  # environment variable: seconds
FIRST = 20.0  # seconds of patience with a bucket that has not answered yet: its address may be wrong
LONGEST_PAUSE = 10.0  # seconds between two tries

NO_STORE = "what answers is no store of objects, perhaps a proxy with a page of its own"

RAISE: Any = object()  # a missing object raises FileNotFoundError
NO_BUCKET: Any = object()  # nothing can be missing except the bucket

ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}
SETTINGS = {"s3": "AWS_ENDPOINT_URL and AWS_DEFAULT_REGION", "gs": "STORAGE_EMULATOR_HOST"}
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")
KEYS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to the file of a key",
}
# Names of errors, codes of the store and the beginnings of messages, by what they mean.
_NO_NAME = re.compile(r"InvalidBucketName|.*Invalid bucket name.*", re.I)
_MISSING_BUCKET = re.compile(r"NoSuchBucket")
_NO_KEYS = re.compile(r"(No|Partial|Default)Credentials\w*|CredentialRetrievalError|ProfileNotFound|Anonymous caller.*")
_BAD_KEYS = re.compile(
    r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken\w*|InvalidToken|TokenRefreshRequired|RequestTimeTooSkewed"
    r"|InvalidSecurity|InvalidClientTokenId|(UnauthorizedSSO)?Token\w*Error|SSO\w*Error|RefreshError|401"
)
_FORBIDDEN = re.compile(r"PermissionError|AccessDenied|AllAccessDisabled|403|Forbidden\b.*")
_BAD_ADDRESS = re.compile(
    r"Invalid endpoint\b.*|AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraintException"
    r"|InvalidRegionError|NoRegionError"
)
_PAGE = re.compile(r"<html|<!doctype|An error occurred \(\) when", re.I)  # an answer without a code of the store

_UNABLE = re.compile(r"NotImplemented|501")

_reached: set[str] = set()  # buckets that have answered


def attempt(url: str, verb: str, action: Callable[[], T], *, absent: Any = RAISE, patience: float | None = None) -> T:
    """Return the action's result; try again for `patience` seconds while the store does not answer.

    Args:
      url: for messages.
      verb: what the action does, for messages, such as "read".
      action: what to do.
      absent: returned if there is no such object; by default FileNotFoundError is raised.
      patience: seconds; by default those of the environment. At most `FIRST` before the first answer.

    Raises:
      ConfigError: trying again cannot help; see `refusal`.
      StorageError: the store does not answer.
    """
    place = "/".join(url.split("/")[:3])
    limit = seconds_of_patience() if patience is None else patience
    limit = limit if place in _reached else min(FIRST, limit)
    begun, pause, told = time.monotonic(), 0.25, False
    while True:
        try:
            result = action()
            _reached.add(place)
            return result
        except Exception as error:
            if _is_local(error) or isinstance(error, ConfigError):
                raise
            if message := refusal(url, verb, error, no_bucket=absent is NO_BUCKET):
                raise ConfigError(message) from error
            if isinstance(error, FileNotFoundError):
                _reached.add(place)
                if absent is RAISE:
                    raise FileNotFoundError(f"{url}: there is no such object") from error
                return absent
            if isinstance(error, TypeError | AttributeError | NameError):  # a fault of ours
                raise
            if time.monotonic() - begun + pause > limit:
                tried = f" for {limit:.0f} s" if limit else ""
                raise StorageError(
                    f"{url} could not be {verb}{tried} ({reason(error)}): "
                    + (
                        "run the same command again once the store answers"
                        if place in _reached
                        else f"check the network{_settings(url)}, and run the same command again"
                    )
                ) from error
            if not told and limit:
                tell(f"WARNING: {url} does not answer ({reason(error)}): trying again for up to {limit:.0f} s")
            told = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def refusal(url: str, verb: str, error: BaseException, *, no_bucket: bool = False) -> str:
    """Return a message if the store refuses the operation for good; "" if it may succeed later, or found no object.

    Args:
      url: the object or folder.
      verb: what the operation does, such as "read".
      error: what it raised.
      no_bucket: whether a missing thing can only be the bucket.
    """
    scheme, _, rest = url.partition("://")
    bucket, marks, why = rest.partition("/")[0], [*_marks(error)], reason(error)

    def has(pattern: re.Pattern[str]) -> bool:
        return any(pattern.fullmatch(mark) for mark in marks)

    if why == NO_STORE:
        return ""
    if has(_NO_NAME):
        return f"{url}: {bucket} is no name of a bucket, which has small letters, digits, - and .: check the address"
    if has(_MISSING_BUCKET) or (no_bucket and isinstance(error, FileNotFoundError)):
        return f"{url}: there is no such bucket: check its name, make it, or give another one"
    if has(_NO_KEYS):
        return f"{url} cannot be {verb}: there are no credentials ({why}): {KEYS[scheme]}"
    if has(_BAD_KEYS):
        return f"{url} cannot be {verb}: the credentials are not accepted ({why}): renew them, or {KEYS[scheme]}"
    if has(_FORBIDDEN):
        return (
            f"{url} cannot be {verb}: the credentials do not allow it ({why}): let them list, read, write and delete"
            " in this bucket, or check its name"
        )
    if has(_UNABLE):
        return f"{url} cannot be {verb}: the store is not able to ({why}): it must write an object only if it is absent"
    if has(_BAD_ADDRESS):
        return f"{url} cannot be {verb}: a wrong address or region of the store ({why}): check {SETTINGS[scheme]}"
    return ""


def reason(error: BaseException) -> str:
    """Return what an error says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ in ("JSONDecodeError", "ResponseParserError") or _PAGE.search(text):
        return NO_STORE
    text = re.sub(r"^\[Errno \d+\] |^Forbidden: \S+ (?=.)|\?[\w-]+=[^\s\"']*", "", text)  # codes, query of an address
    return text if len(text) < 300 else f"{text[:297]}..."


def seconds_of_patience() -> float:
    """Return for how many seconds an operation is tried again: $JTASKS_PATIENCE, or 300."""
    text = os.environ.get(PATIENCE) or "300"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{PATIENCE}={text}: expected a number of seconds") from None


def add_note(error: BaseException, text: str) -> None:
    """Add those lines of a text to an error that it does not say yet."""
    said = "\n".join([str(error), *getattr(error, "__notes__", [])])
    if new := [line for line in text.splitlines() if line not in said]:
        error.add_note("\n".join(new))


def tell(text: str) -> None:
    """Print to stderr, not by console.say: the processes of a run may not know each other yet."""
    if sys.stderr is not None:
        print(printable(text), file=sys.stderr, flush=True)


def _marks(error: BaseException) -> Iterator[str]:
    """Yield the names of an error and of its cause, the store's codes, and the messages."""
    for each in filter(None, (error, error.__cause__)):
        yield from (kind.__name__ for kind in type(each).__mro__)
        answer = getattr(each, "response", None)
        if isinstance(answer, dict):  # of S3
            yield str(answer.get("Error", {}).get("Code"))
            yield str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        yield str(getattr(each, "code", ""))  # of Cloud Storage
        yield " ".join(str(each).split())


def _settings(url: str) -> str:
    """Return the settings that lead to the store; a proxy's address may hold a password."""
    endpoint = ENDPOINTS[url.partition("://")[0]]
    names = [f"{endpoint}={os.environ[endpoint]}"] if os.environ.get(endpoint) else []
    names += [name for name in PROXIES if os.environ.get(name)]
    return f" and {', '.join(names)}" if names else ""


def _is_local(error: BaseException) -> bool:
    """Return whether an error is that of the local disk, such as a full one: it names a file."""
    return isinstance(error, OSError) and str(error.filename or "").startswith("/")
