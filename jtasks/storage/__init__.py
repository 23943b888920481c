"""Folders and files of the user in a bucket, `s3://...` or `gs://...`, as local paths.

The rest of the library knows paths alone. A workdir in a bucket is a local working copy whose changes are sent to the
bucket (`working_copy`, `copies`); data in a bucket is downloaded once into the user's cache folder (`cached`).
"""

from jtasks.storage.bucket import is_url
from jtasks.storage.cached import cache_folder, local, machine_lock, match_files, match_folders
from jtasks.storage.copies import (
    closing,
    fetch,
    locked,
    open_copy,
    outbox,
    publish,
    pull,
    push,
    receive_file,
    refresh,
    remove,
    remove_file,
    require_writable,
    send,
    send_file,
    shown,
    url_of,
)

__all__ = [
    "cache_folder",
    "closing",
    "fetch",
    "is_url",
    "local",
    "locked",
    "machine_lock",
    "match_files",
    "match_folders",
    "open_copy",
    "outbox",
    "publish",
    "pull",
    "push",
    "receive_file",
    "refresh",
    "remove",
    "remove_file",
    "require_writable",
    "send",
    "send_file",
    "shown",
    "url_of",
]
