"""Python client of the HTTP API: `from service.client import Client`.

It needs neither the database nor the settings of jobs, so that importing it is cheap; every command of `magnet` does.
"""

from service.client.client import Client, JobEvent
from service.client.connection import ServiceError

__all__ = ["Client", "JobEvent", "ServiceError"]
