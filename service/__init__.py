"""Everything but the network and the Ray jobs: slides, storage, cohorts, results, settings, queue, API, command line.

Nothing here imports torch, Ray or MLflow.
"""
