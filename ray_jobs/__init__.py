"""The jobs (train, score) and the Ray and MLflow parts that they share.

What is set here must be set before Ray or MLflow is imported: nothing is reported to anybody, and their console lines
do not bury the job's own. A user's own settings win.
"""

import logging
import os

for _name, _value in {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow waits minutes for a server that is away; a job goes on, and asks again later.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "RAY_DATA_LOG_LEVEL": "WARNING",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)

# It warns that its progress bars are off; the jobs have bars of their own.
logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
