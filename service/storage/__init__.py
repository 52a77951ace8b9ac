"""Objects wherever they lie: ``s3://``, ``gs://``, ``az://``, ``http(s)://``, ``file://`` and plain paths.

`objects` reads and writes whole objects, `ranges` reads parts of large ones, `stores` holds connections, credentials,
retries and the one place where foreign errors are mapped, `uri` takes names apart, `rights` says what a job may touch.
"""

from service.storage.objects import delete, delete_all, exists, list_uris, read_bytes, stat, write_bytes
from service.storage.rights import resolve
from service.storage.uri import join, name, parent

__all__ = [
    "delete",
    "delete_all",
    "exists",
    "join",
    "list_uris",
    "name",
    "parent",
    "read_bytes",
    "resolve",
    "stat",
    "write_bytes",
]
