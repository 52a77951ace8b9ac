"""Recording of jobs as runs in MLflow."""
