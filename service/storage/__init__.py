"""Access to objects by URI: ``s3://``, ``gs://``, ``az://``, ``http(s)://``, ``file://`` and plain paths.

`objects` reads and writes whole objects, `ranges` reads byte ranges of large ones, `stores` holds the connections,
credentials and retries and maps the errors of client libraries, `uri` parses names, `rights` limits what a job may
access.
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
