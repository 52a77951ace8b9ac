"""The jobs (train, tune, score, ...) and the Ray and MLflow parts that they share.

These variables must be set before Ray or MLflow is imported. They disable the telemetry of both and keep their messages
out of the job's output. Values that the user has set stay.
"""

import logging
import os

for _name, _value in {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # By default MLflow retries for minutes while its server is unreachable; a job continues and retries later.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "RAY_DATA_LOG_LEVEL": "WARNING",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)

# Ray Data warns that its progress bars are disabled; the jobs print their own.
logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
