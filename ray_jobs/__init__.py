"""The jobs (train, score) and the Ray and MLflow parts that they share."""
